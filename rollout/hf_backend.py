"""Any causal language model of transformers as the policy, sampled by transformers' own generation.

For models that the native engine does not know; slower than it, and nothing is locked in. With continuous batching
where transformers has it for the model, else `generate` on padded batches.
"""

import logging
import threading
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import (
    ContinuousBatchingConfig,
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteriaList,
)
from transformers.generation.continuous_batching.cb_logits_processors import ContinuousBatchingLogitsProcessorList

from deltarl.model.weights import WeightUpdate
from deltarl.rollout.backend import RolloutBackend
from deltarl.rollout.hf_draw import ContinuousDraw, Drawer, PaddedDraw
from deltarl.rollout.outputs import RequestOutput
from deltarl.rollout.params import SamplingParams
from deltarl.rollout.sampling_rows import check_params
from deltarl.rollout.sequence import Request, Sample

log = logging.getLogger(__name__)

PAGE_SIZE = 32  # tokens; small, because transformers reads whole pages
PREFILL_TOKENS = 512  # a step's tokens, prompts in pieces; its attention mask has so many rows, one for all sequences
PAD = 0  # any token: what stands at a pad is not looked at


class HFBackend(RolloutBackend):
    """A model of transformers behind the interface of the native engine.

    Sampling is the native engine's, from the model's logits to the token: the same parameters, and the same token for
    the same logits and seed. A prompt is prefilled for each of its samples. Not thread-safe.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        max_num_seqs: int = 64,
        max_model_len: int | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        continuous_batching: bool | None = None,
    ):
        """
        Args:
            model: the policy, in the attention implementation it is to have. Put in eval mode, and its generation
                config is replaced: `SamplingParams` alone say how to sample.
            max_num_seqs: samples decoded at once.
            max_model_len: most tokens of prompt and answer together, the config's `max_position_embeddings` if None.
            tokenizer: gives outputs a text; needed for stop strings.
            continuous_batching: of transformers; None uses it if the model then says what its forward pass says.
        """
        config = model.config.get_text_config()
        limit = getattr(config, "max_position_embeddings", None) or max_model_len
        if limit is None:
            raise ValueError("the model's config has no max_position_embeddings: max_model_len must be given")
        self.max_model_len = limit if max_model_len is None else max_model_len
        if not 2 <= self.max_model_len <= limit:
            raise ValueError(f"max_model_len must be 2..{limit} (the model's limit), got {max_model_len}")
        if max_num_seqs < 1:
            raise ValueError(f"max_num_seqs must be at least 1, got {max_num_seqs}")
        self.model = model.eval()
        self.model.generation_config = GenerationConfig(do_sample=False, pad_token_id=PAD)
        self.max_num_seqs = max_num_seqs
        self.tokenizer = tokenizer
        self.vocab_size = int(config.vocab_size)
        self._weight_version = 0
        self.continuous_batching = self._batches_continuously() if continuous_batching is None else continuous_batching

    @property
    def weight_version(self) -> int:
        return self._weight_version

    def generate(
        self, prompts: Sequence[Sequence[int]], params: SamplingParams | Sequence[SamplingParams]
    ) -> list[RequestOutput]:
        """See `RolloutBackend.generate`.

        Raises:
            ValueError: an empty prompt, one that leaves no room for an answer, or token ids outside the vocabulary;
                stop strings without a tokenizer.
            FloatingPointError: the model produced logits that are not finite.
            RuntimeError: transformers' generation failed.
        """
        every = [params] * len(prompts) if isinstance(params, SamplingParams) else list(params)
        if len(every) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts but {len(every)} SamplingParams")
        requests = [self._request(i, prompt, p) for i, (prompt, p) in enumerate(zip(prompts, every, strict=True))]
        self._sample([sample for request in requests for sample in request.samples])
        if any(sample.finish_reason == "error" for request in requests for sample in request.samples):
            raise FloatingPointError(
                f"the model's logits are not finite under weights version {self.weight_version}; "
                "the learner has diverged (lower the learning rate) or the checkpoint is damaged"
            )
        return [RequestOutput(r.id, r.prompt, [s.output(self.tokenizer) for s in r.samples]) for r in requests]

    def load_weights(self, update: WeightUpdate) -> None:
        """Takes over published weights, verified by checksum. No state outlives a call of `generate`."""
        update.load_into(self.model)
        self._weight_version = update.version

    def close(self) -> None:
        """Nothing to give back: the model is the caller's."""

    # ------------------------------------------------------------------------------------------------- sampling

    @torch.no_grad()
    def _sample(self, samples: Sequence[Sample]) -> None:
        if not samples:
            return
        if self.continuous_batching:
            self._sample_continuously(samples)
        else:
            for begin in range(0, len(samples), self.max_num_seqs):
                self._sample_padded(samples[begin : begin + self.max_num_seqs])

    def _sample_padded(self, samples: Sequence[Sample]) -> None:
        """One batch, as long as its longest answer takes."""
        drawer = self._drawer()
        prompts = [sample.request.prompt for sample in samples]
        longest = max(map(len, prompts))
        ids = torch.tensor([[PAD] * (longest - len(p)) + p for p in prompts], device=self.model.device)
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=self.model.device)
        draw = PaddedDraw(drawer, samples, PAD)
        self.model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=max(drawer.limit(sample) for sample in samples),
            logits_processor=LogitsProcessorList([draw]),
            stopping_criteria=StoppingCriteriaList([draw.all_finished]),
        )
        drawer.write_back()

    def _sample_continuously(self, samples: Sequence[Sample]) -> None:
        drawer = self._drawer()
        limits = [drawer.limit(sample) for sample in samples]
        at_once = min(self.max_num_seqs, len(samples))
        longest = max(len(s.request.prompt) + limit for s, limit in zip(samples, limits, strict=True))
        manager = self.model.init_continuous_batching(
            GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=PAD),
            ContinuousBatchingConfig(
                page_size=PAGE_SIZE,
                num_blocks=at_once * (-(-longest // PAGE_SIZE) + 1),
                max_batch_tokens=max(PREFILL_TOKENS, at_once),
                max_requests_per_batch=at_once,
                # The draw is not something to capture in a graph or to run ahead of.
                use_async_batching=False,
                use_cuda_graph=False,
                # The learner's attention is the sampler's.
                auto_switch_to_flash=False,
            ),
        )
        over, left = threading.Event(), set(range(len(samples)))

        def finished(i: int) -> None:  # called in the manager's thread
            manager.cancel_request(str(i))
            left.discard(i)
            if not left:
                over.set()

        processors = ContinuousBatchingLogitsProcessorList(
            LogitsProcessorList([ContinuousDraw(drawer, samples, finished)])
        )
        processors.tensors_required = 1  # counted only for transformers' own kinds
        manager.logit_processor = processors
        manager.start()
        try:
            for i, (sample, limit) in enumerate(zip(samples, limits, strict=True)):
                # One more than it will get: an answer ends here, not there.
                manager.add_request(sample.request.prompt, str(i), max_new_tokens=limit + 1, sample=i)
            while not over.wait(timeout=0.2):
                if not manager.is_running():
                    error = manager.background_thread_status.fatal_error
                    raise RuntimeError(f"transformers' continuous batching failed: {error}") from error
        finally:
            manager.stop(hard_stop=True)
            manager.destroy()
        drawer.write_back()

    def _drawer(self) -> Drawer:
        return Drawer(self.vocab_size, self.max_model_len, self.model.device, self.weight_version)

    # ---------------------------------------------------------------------------------------------- bookkeeping

    def _request(self, i: int, prompt_token_ids: Sequence[int], params: SamplingParams) -> Request:
        prompt = [int(token) for token in prompt_token_ids]
        if not prompt:
            raise ValueError(f"prompt {i} is empty")
        if len(prompt) >= self.max_model_len:
            raise ValueError(
                f"prompt {i} has {len(prompt)} tokens and max_model_len is {self.max_model_len}: no room for an "
                "answer; shorten the prompt or raise max_model_len"
            )
        if not 0 <= min(prompt) <= max(prompt) < self.vocab_size:
            raise ValueError(f"prompt {i} has token ids outside the vocabulary 0..{self.vocab_size - 1}")
        check_params(params, self.vocab_size)
        if params.stop and self.tokenizer is None:
            raise ValueError("SamplingParams.stop needs a backend with a tokenizer")
        request = Request(str(i), i, prompt, params)
        for index in range(params.n):
            request.add_sample(index, self.tokenizer)
        return request

    @torch.no_grad()
    def _batches_continuously(self) -> bool:
        """Whether continuous batching works with this model, and says what its forward pass says."""
        tokens = [token % self.vocab_size for token in (3, 1, 4, 1, 5, 9, 2)][: self.max_model_len - 1]
        params = SamplingParams(n=2, temperature=0, max_tokens=3)
        requests = [self._request(0, tokens, params), self._request(1, tokens[:1], params)]
        gap = torch.inf
        try:
            self._sample_continuously([sample for request in requests for sample in request.samples])
            gap = max(self._gap(sample) for request in requests for sample in request.samples)
        except Exception as error:  # whatever a model does not have that transformers takes for given
            log.info("no continuous batching for %s: %s", type(self.model).__name__, error)
        close = 1e-3 if self.model.dtype == torch.float32 else 0.1
        if close <= gap < torch.inf:
            log.warning("continuous batching of %s is off by %.2g: not used", type(self.model).__name__, gap)
        return gap < close

    def _gap(self, sample: Sample) -> float:
        """Largest |difference| of the answer's log-probabilities to those of a forward pass; temperature 1."""
        prompt, answer = sample.request.prompt, sample.answer
        ids = torch.tensor([prompt + answer.token_ids], device=self.model.device)
        logits: Tensor = self.model(ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
        want = logits.float().log_softmax(-1).gather(-1, ids[0, len(prompt) :, None]).squeeze(-1)
        return float((torch.tensor(answer.logprobs, device=want.device) - want).abs().max())
