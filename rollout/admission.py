"""What an engine refuses at the door: requests that it could never answer."""

from dataclasses import dataclass

from deltarl.model.cache import PAGE_SIZE
from deltarl.rollout.pages import pages_of
from deltarl.rollout.params import SamplingParams
from deltarl.rollout.sampling_rows import check_params


@dataclass(frozen=True)
class Admission:
    """What a request has to keep to.

    Attributes:
        vocab_size: of the model.
        max_model_len: most tokens of prompt and answer together.
        total_pages: of latents, for all sequences together.
        has_text: whether tokens can be turned into text, which stop strings need.
    """

    vocab_size: int
    max_model_len: int
    total_pages: int
    has_text: bool

    def check(self, request_id: str, prompt: list[int], params: SamplingParams) -> None:
        """
        Raises:
            ValueError: what is wrong with the request, and what to do.
        """
        if not prompt:
            raise ValueError(f"prompt of request {request_id!r} is empty")
        if len(prompt) >= self.max_model_len:
            raise ValueError(
                f"prompt of request {request_id!r} has {len(prompt)} tokens and max_model_len is "
                f"{self.max_model_len}: no room for an answer; shorten the prompt or raise max_model_len"
            )
        if not 0 <= min(prompt) <= max(prompt) < self.vocab_size:
            raise ValueError(
                f"prompt of request {request_id!r} has token ids outside the vocabulary 0..{self.vocab_size - 1}"
            )
        check_params(params, self.vocab_size)
        if params.stop and not self.has_text:
            raise ValueError("SamplingParams.stop needs an engine with a tokenizer")
        longest = min(len(prompt) + params.max_tokens, self.max_model_len)
        # Its prompt, and one sample of it beside, must fit with nobody else there.
        wanted = int(pages_of(longest)) + int(pages_of(len(prompt)))
        if wanted > self.total_pages:
            raise ValueError(
                f"request {request_id!r} may need {wanted} pages of {PAGE_SIZE} tokens and there are "
                f"{self.total_pages}: raise num_pages, or lower max_tokens"
            )
