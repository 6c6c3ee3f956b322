"""vLLM's side of the pipe. Run by `backend.VLLMEngine` with vLLM's interpreter."""

import sys
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deltarl.model.weights import WeightMismatchError, checksum
from deltarl.rollout.rng import derive_seed
from deltarl.rollout.vllm import live, plugin
from deltarl.rollout.vllm.protocol import receive, reply, serve


class Server:
    """One vLLM engine, in this process."""

    def __init__(self, model: str, options: Mapping[str, Any]):
        import vllm
        from vllm.platforms import current_platform
        from vllm.v1.worker import gpu_model_runner

        from deltarl.rollout.vllm.sampler import ScoringSampler

        plugin.register()  # also where deltarl is not installed and has no entry point
        gpu_model_runner.Sampler = ScoringSampler
        arguments: dict[str, Any] = {"logprobs_mode": "processed_logprobs", "max_logprobs": 21, **options}
        if current_platform.is_cpu():
            live.keep_weights_unpacked()
        config = vllm.transformers_utils.config.get_config(model, trust_remote_code=False)
        if arguments["dtype"] == "auto" and config.dtype == torch.float32:
            arguments["dtype"] = "float32"  # vLLM's "auto" would round it to bf16
        if config.model_type == "kimi_linear":
            arguments["enable_prefix_caching"] = False  # with it, vLLM refuses hybrids on a CPU
            if current_platform.is_cpu():
                arguments["attention_config"] = {"backend": "CPU_MLA"}
        self.has_tokenizer = not Path(model).is_dir() or bool(list(Path(model).glob("token*")))
        self.llm = vllm.LLM(
            model,
            skip_tokenizer_init=not self.has_tokenizer,
            generation_config="vllm",  # a checkpoint's own defaults must not change what is sampled
            enable_sleep_mode=not current_platform.is_cpu(),
            **arguments,
        )
        self.model_config = self.llm.llm_engine.model_config
        self.model = self.llm.apply_model(lambda model: model)[0]
        self.shapes = live.checkpoint_shapes(self.model, self.model_config)
        self.broken = ""

    def about(self) -> dict[str, Any]:
        import vllm

        return {
            "max_model_len": self.model_config.max_model_len,
            "vocab_size": self.model_config.get_vocab_size(),
            "has_tokenizer": self.has_tokenizer,
            "vllm": vllm.__version__,
        }

    def generate(self, prompts: list[list[int]], params: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
        """The samples of each prompt, in order. A sample is a request of its own, so that its seed is."""
        self._check_weights()
        requests, every = [], []
        for prompt, fields in zip(prompts, params, strict=True):
            for i in range(fields["n"]):
                requests.append({"prompt_token_ids": prompt})
                every.append(self._sampling_params(fields, derive_seed(fields["seed"], i)))
        outputs = iter(self.llm.generate(requests, every, use_tqdm=False))
        return [[_sample(next(outputs).outputs[0]) for _ in range(fields["n"])] for fields in params]

    def score(self, prompts: list[list[int]]) -> list[list[float]]:
        """Log-probability of every token but the first of each prompt, at temperature 1."""
        import vllm

        self._check_weights()
        params = vllm.SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False)
        requests = [{"prompt_token_ids": prompt} for prompt in prompts]
        outputs = self.llm.generate(requests, params, use_tqdm=False)
        return [
            [scores[token].logprob for token, scores in zip(prompt[1:], output.prompt_logprobs[1:], strict=True)]
            for prompt, output in zip(prompts, outputs, strict=True)
        ]

    def load_weights(self, published: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Takes over arrays whose checksum is `published`; refuses to sample after a failure halfway."""
        if checksum(arrays) != published:
            raise WeightMismatchError(
                "the arrays that arrived do not have their published checksum; publish them again"
            )
        tensors = {name: _tensor(array) for name, array in arrays.items()}
        tensors = live.without_tied_copy(tensors, self.shapes, self.model_config.hf_config)
        live.check_names(tensors, self.shapes)
        self.broken = "the last weight update failed halfway"
        live.load(self.model, self.model_config, tensors)
        if not self.llm.reset_prefix_cache():
            raise RuntimeError("vLLM did not drop the prefix cache of the old weights")
        self.broken = ""

    def distrust(self, reason: str) -> None:
        """Refuses to sample until an update has succeeded."""
        self.broken = reason

    def sleep(self, level: int) -> None:
        self.llm.sleep(level)

    def wake_up(self) -> None:
        self.llm.wake_up()

    def _check_weights(self) -> None:
        if self.broken:
            raise WeightMismatchError(f"{self.broken}; load weights again before sampling")

    def _sampling_params(self, fields: Mapping[str, Any], seed: int) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RepetitionDetectionParams, RequestOutputKind

        fields = dict(fields)
        detection = fields["repetition_detection"]
        fields |= {
            "n": 1,
            "seed": seed,
            "logit_bias": dict(fields["logit_bias"]) or None,
            "repetition_detection": RepetitionDetectionParams(**detection) if detection else None,
            "logprobs": 1 + (fields["logprobs"] or 0),  # see ScoringSampler
            "flat_logprobs": True,
            "ignore_eos": True,  # the caller's stop_token_ids say what ends an answer
            "detokenize": self.has_tokenizer,
            "output_kind": RequestOutputKind.FINAL_ONLY,
        }
        return SamplingParams(**fields)


def _sample(output: Any) -> dict[str, Any]:
    """A vLLM completion as JSON; `top` are the `logprobs` most likely tokens of each step with theirs."""
    flat = output.logprobs
    rows = list(zip(flat.start_indices, flat.end_indices, strict=True))
    return {
        "token_ids": list(output.token_ids),
        "logprobs": [flat.logprobs[start] for start, _ in rows],
        "sampling_logprobs": [flat.logprobs[start + 1] for start, _ in rows],
        "top": [[flat.token_ids[start + 2 : end], flat.logprobs[start + 2 : end]] for start, end in rows],
        "finish_reason": output.finish_reason,
        "stop_reason": output.stop_reason,
        "text": output.text,
    }


def _tensor(array: np.ndarray) -> torch.Tensor:
    """numpy has no bf16: `WeightUpdate` sends its bits as int16."""
    x = torch.from_numpy(array.copy())
    return x.view(torch.bfloat16) if x.dtype == torch.int16 else x


def main() -> None:
    pipe = Connection(int(sys.argv[1]))
    start, _ = receive(pipe)
    server: list[Server] = []

    def begin() -> dict[str, Any]:
        server.append(Server(**start["with"]))
        return server[0].about()

    reply(pipe, begin)
    names = ("generate", "score", "load_weights", "distrust", "sleep", "wake_up")
    serve(pipe, {name: getattr(server[0], name) for name in names}, (ValueError, WeightMismatchError))


if __name__ == "__main__":
    main()
