"""vLLM behind the interface of the native engine, from a process that does not have vLLM.

`import vllm` replaces classes of transformers that the trainer needs, and pins other packages. So vLLM runs in a
process of its own, with an interpreter of its own (docs/VLLM.md has the commands); this module needs neither.
"""

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from deltarl.model.weights import WeightMismatchError, WeightUpdate, checksum
from deltarl.rollout.outputs import CompletionOutput, RequestOutput
from deltarl.rollout.params import SamplingParams
from deltarl.rollout.vllm.process import ServerProcess, VLLMError

INTERPRETER = "DELTARL_VLLM_PYTHON"
PROBE_TOKENS = 4  # decoded from each prompt of a probe
LEAST_TEMPERATURE = 0.01  # above 0; vLLM raises what is below without an error
# -P: nothing beside the caller may be taken for vLLM, such as this folder.
SERVER = ("-P", "-m", "deltarl.rollout.vllm.server")


@dataclasses.dataclass(frozen=True)
class Probe:
    """Fixed prompts, at least one of two tokens or more, and what a model must say to them.

    `logprobs` are those of all their tokens but the first.
    """

    prompts: list[list[int]]
    logprobs: list[list[float]]

    @classmethod
    @torch.no_grad()
    def of(cls, model: Any, prompts: Sequence[Sequence[int]]) -> "Probe":
        """What `model`, ours or any of transformers' causal language models, says to them at temperature 1."""
        logprobs = []
        for prompt in prompts:
            ids = torch.tensor([list(prompt)], device=next(model.parameters()).device)
            every = model(ids).logits[0, :-1].float().log_softmax(-1)
            logprobs.append(every.gather(-1, ids[0, 1:, None]).squeeze(-1).tolist())
        return cls([list(prompt) for prompt in prompts], logprobs)

    def largest_gap(self, logprobs: Sequence[Sequence[float]]) -> float:
        """Largest |difference|; infinite if something is not a number."""
        gaps = [
            abs(a - b)
            for ours, theirs in zip(self.logprobs, logprobs, strict=True)
            for a, b in zip(ours, theirs, strict=True)
        ]
        return max(gaps) if all(map(math.isfinite, gaps)) else math.inf


def checkpoint_update(model: PreTrainedModel, version: int) -> WeightUpdate:
    """The weights of one of transformers' models under the names of its checkpoint, which are what vLLM knows.

    In memory transformers may use others, such as one tensor for all experts. Ours do not: `WeightUpdate.of` is enough.
    """
    arrays = {}
    for name, x in revert_weight_conversion(model, model.state_dict()).items():
        x = x.detach().cpu().contiguous()
        arrays[name] = (x.view(torch.int16) if x.dtype == torch.bfloat16 else x).numpy().copy()
    return WeightUpdate(version, checksum(arrays), arrays)


class VLLMEngine:
    """A vLLM engine for one checkpoint: sampling, verified weight updates, sleep.

    `logprobs` of its answers are those of `softmax(logits / temperature)` over the whole vocabulary, as everywhere in
    deltarl, and `sampling_logprobs` vLLM's "processed" ones. vLLM draws its own random numbers: the same seed gives
    other tokens than the native engine, but the same ones again, whatever else is in the batch.

    Not thread-safe: one thread calls it.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        python: str | None = None,
        dtype: str = "auto",
        max_num_seqs: int = 256,
        max_model_len: int | None = None,
        cache_gib: int = 1,
        threads: int = 1,
        start_timeout: float = 600.0,
        call_timeout: float = 3600.0,
        **options: Any,
    ):
        """Starts the process and waits until it has loaded the model.

        Args:
            model: folder of a checkpoint, ours or one that vLLM knows, or a name on the HuggingFace hub.
            python: the interpreter that has vLLM; if None, that named by the environment variable DELTARL_VLLM_PYTHON.
            dtype: to compute in, "auto" for the checkpoint's.
            max_num_seqs, max_model_len: samples decoded at once, and most tokens of prompt and answer together.
            cache_gib: memory of the KV cache and the recurrent states, on a CPU.
            threads: OpenMP threads of the process. On a CPU, several processes with several each slow each other down
                many times over.
            start_timeout, call_timeout: seconds that the start and any later call, such as `generate` for all its
                prompts, may take; a process that takes longer is killed.
            options: further arguments of `vllm.LLM`, such as `gpu_memory_utilization`.

        Raises:
            VLLMError: no interpreter, no vLLM in it, or it did not start.
            ValueError: a checkpoint or options that vLLM does not take.
        """
        self._python = python or os.environ.get(INTERPRETER)
        if not self._python:
            raise VLLMError(
                f"no interpreter with vLLM: set {INTERPRETER}, or pass python=...; docs/VLLM.md says how to make one"
            )
        arguments = {"dtype": dtype, "max_num_seqs": max_num_seqs, "enforce_eager": True, **options}
        if max_model_len is not None:
            arguments["max_model_len"] = max_model_len
        self._start = {"model": os.fspath(model), "options": arguments}
        self._env = _environment(cache_gib, threads, bool(arguments["enforce_eager"]))
        self._start_timeout, self._call_timeout = start_timeout, call_timeout
        self._last: tuple[WeightUpdate, Probe | None] | None = None
        self._asleep = 0
        self.weight_version = 0
        self._begin()

    def generate(
        self, prompts: Sequence[Sequence[int]], params: SamplingParams | Sequence[SamplingParams]
    ) -> list[RequestOutput]:
        """Samples `params.n` answers to each prompt of token ids; results are in the order of the prompts.

        Raises:
            ValueError: prompts or parameters that vLLM cannot take.
            WeightMismatchError: the last update failed halfway.
            VLLMError: the process has failed, died, or was killed because it took longer than `call_timeout`, now or
                before: `restart` it and ask again.
        """
        every = [params] * len(prompts) if isinstance(params, SamplingParams) else list(params)
        if len(every) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts but {len(every)} SamplingParams")
        for i, prompt in enumerate(prompts):
            self._check_prompt(i, prompt)
        fields = [vllm_fields(p, self.vocab_size, self.has_tokenizer) for p in every]
        groups = self._call("generate", {"prompts": [list(p) for p in prompts], "params": fields})
        return [
            RequestOutput(
                str(i),
                list(prompt),
                [self._completion(k, sample, p) for k, sample in enumerate(group)],
            )
            for i, (prompt, p, group) in enumerate(zip(prompts, every, groups, strict=True))
        ]

    def score(self, prompts: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probability of every token but the first of each prompt, at temperature 1."""
        for i, prompt in enumerate(prompts):
            self._check_prompt(i, prompt)
        return self._call("score", {"prompts": [list(p) for p in prompts]})

    def load_weights(self, update: WeightUpdate, probe: Probe | None = None, tolerance: float = 1e-3) -> None:
        """Takes over published weights, with proof that they are what vLLM now computes with.

        The arrays must have their published checksum when they arrive, and every element of them must be found again,
        unchanged, in the memory of vLLM's model. With a `probe`, the model must also say what the publisher's says, and
        say it token by token too: vLLM decodes with other code than it prefills, and in part with other tensors.

        Raises:
            WeightMismatchError: they are not, or the probe's log-probabilities differ by more than `tolerance`. The
                engine refuses to sample then until an update has succeeded.
            VLLMError: the process has died.
        """
        self._call("load_weights", {"published": update.checksum}, dict(update.arrays))
        if probe is not None:
            gaps = {
                "log-probabilities differ from the publisher's": probe.largest_gap(self.score(probe.prompts)),
                "decoding differs from prefill": self._decoding_gap(probe.prompts),
            }
            for what, gap in gaps.items():
                if not gap <= tolerance:
                    self._call("distrust", {"reason": f"weights version {update.version} failed their probe"})
                    raise WeightMismatchError(
                        f"weights version {update.version}: {what} by {gap:.2g}, more than {tolerance:.2g}; vLLM does "
                        "not compute what the publisher's model does"
                    )
        self._last, self.weight_version = (update, probe), update.version

    def sleep(self, level: int = 1) -> None:
        """Frees the cache, and moves the weights to host memory (level 1) or drops them (level 2).

        On a GPU only; on a CPU vLLM keeps its memory, which `close` frees and `restart` takes again.
        """
        self._call("sleep", {"level": level})
        self._asleep = level

    def wake_up(self) -> None:
        """Ends `sleep`. Weights that were dropped are loaded again: those of the last update."""
        level, self._asleep = self._asleep, 0
        self._call("wake_up", {})
        if level > 1:
            if self._last is None:
                raise VLLMError("vLLM dropped its weights at sleep level 2, and no update has been loaded: restart it")
            self.load_weights(*self._last)

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process.alive

    def restart(self) -> None:
        """Ends the process, starts another one and loads the last weights into it again."""
        self._process.close(grace=0.0)
        self._begin()
        if self._last is not None:
            self.load_weights(*self._last)

    def close(self) -> None:
        """Ends the process."""
        self._process.close()

    def __enter__(self) -> "VLLMEngine":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _begin(self) -> None:
        assert self._python is not None  # refused by __init__
        self._process = ServerProcess([self._python, *SERVER], self._env)
        self._asleep = 0
        try:
            about = self._process.call("start", self._start, timeout=self._start_timeout)
        except ImportError as error:
            self._process.close()
            raise VLLMError(
                f"{self._python} cannot import vLLM ({error}); docs/VLLM.md says how to install it"
            ) from error
        except Exception:
            self._process.close()
            raise
        self.max_model_len: int = about["max_model_len"]
        self.vocab_size: int = about["vocab_size"]
        self.has_tokenizer: bool = about["has_tokenizer"]

    def _call(self, name: str, arguments: Mapping[str, Any], arrays: Mapping[str, Any] | None = None) -> Any:
        if self._asleep:
            raise ValueError("the engine sleeps; wake_up first")
        try:
            return self._process.call(name, arguments, arrays, timeout=self._call_timeout)
        except VLLMError as error:
            raise VLLMError(f"{error}\nrestart() starts another process with the last weights.") from error

    def _decoding_gap(self, prompts: list[list[int]]) -> float:
        """Largest |difference| between what decoding and what prefill says to a few sampled tokens."""
        answers = [output.outputs[0] for output in self.generate(prompts, SamplingParams(max_tokens=PROBE_TOKENS))]
        scores = self.score([prompt + a.token_ids for prompt, a in zip(prompts, answers, strict=True)])
        tails = [score[-len(a.token_ids) :] for score, a in zip(scores, answers, strict=True)]
        return Probe(prompts, tails).largest_gap([a.logprobs for a in answers])

    def _check_prompt(self, i: int, prompt: Sequence[int]) -> None:
        if not prompt:
            raise ValueError(f"prompt {i} is empty")
        if len(prompt) >= self.max_model_len:
            raise ValueError(
                f"prompt {i} has {len(prompt)} tokens and max_model_len is {self.max_model_len}: no room for an "
                "answer; shorten the prompt or raise max_model_len"
            )
        if not 0 <= min(prompt) <= max(prompt) < self.vocab_size:
            raise ValueError(f"prompt {i} has token ids outside the vocabulary 0..{self.vocab_size - 1}")

    def _completion(self, index: int, sample: Mapping[str, Any], params: SamplingParams) -> CompletionOutput:
        tokens, logprobs, reason = sample["token_ids"], sample["logprobs"], sample["finish_reason"]
        stop_reason = sample["stop_reason"] if reason == "stop" else None
        if not all(map(math.isfinite, logprobs)):
            reason, stop_reason = "error", "the model's logits are not finite"
        top = [dict(zip(*pair, strict=True)) for pair in sample["top"]] if params.logprobs is not None else None
        return CompletionOutput(
            index=index,
            token_ids=tokens,
            logprobs=logprobs,
            sampling_logprobs=sample["sampling_logprobs"] if params.temperature > 0 else [0.0] * len(tokens),
            weight_versions=[self.weight_version] * len(tokens),
            finish_reason=reason,
            stop_reason=stop_reason,
            text=sample["text"] if self.has_tokenizer else None,
            top_logprobs=top,
        )


def vllm_fields(params: SamplingParams, vocab_size: int, has_tokenizer: bool) -> dict[str, Any]:
    """`params` as the server takes them: the fields of vLLM's `SamplingParams`, in what JSON can hold.

    Raises:
        ValueError: what this model cannot do in vLLM.
    """
    if params.stop and not has_tokenizer:
        raise ValueError("stop strings need a tokenizer beside the checkpoint; use stop_token_ids")
    if 0 < params.temperature < LEAST_TEMPERATURE:
        raise ValueError(
            f"vLLM takes temperature {params.temperature} for {LEAST_TEMPERATURE}; ask for that, or for 0 to be greedy"
        )
    outside = [t for t in (*params.stop_token_ids, *params.logit_bias) if not 0 <= t < vocab_size]
    if outside:
        raise ValueError(
            f"stop_token_ids or logit_bias name token {outside[0]}, outside the vocabulary of {vocab_size}"
        )
    fields = {field.name: getattr(params, field.name) for field in dataclasses.fields(params)}
    detection = params.repetition_detection
    return fields | {
        "logit_bias": list(params.logit_bias.items()),
        "stop": list(params.stop),
        "stop_token_ids": list(params.stop_token_ids),
        "repetition_detection": dataclasses.asdict(detection) if detection else None,
    }


def _environment(cache_gib: int, threads: int, eager: bool) -> dict[str, str]:
    env = dict(os.environ)
    env.pop("VIRTUAL_ENV", None)
    env |= {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine in the server's process: one to watch, not three
        "VLLM_CPU_KVCACHE_SPACE": str(cache_gib),
        "OMP_NUM_THREADS": str(threads),
        "VLLM_NO_USAGE_STATS": "1",
    }
    env.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    if eager:
        env["TORCHDYNAMO_DISABLE"] = "1"  # or a helper for log-probabilities is compiled at the first request
    return env
