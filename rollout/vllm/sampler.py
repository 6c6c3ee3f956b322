"""vLLM's sampler with both log-probabilities of the sampled token. Imported in vLLM's process only."""

import torch
from vllm.v1.outputs import LogprobsTensors, SamplerOutput
from vllm.v1.sample.metadata import SamplingMetadata
from vllm.v1.sample.sampler import Sampler


class ScoringSampler(Sampler):
    """Neither of vLLM's modes gives what a learner compares with, `softmax(logits / temperature)` over all tokens: its
    raw ones leave the temperature out, its processed ones put penalties and truncation in. Here the columns of a
    request's log-probabilities are that number for the sampled token, its processed one, and that number for the most
    likely tokens; a request asks for one column more than it wants most likely tokens.
    """

    def forward(self, logits: torch.Tensor, sampling_metadata: SamplingMetadata, *args, **kwargs) -> SamplerOutput:  # type: ignore[no-untyped-def]
        columns, temperature = sampling_metadata.max_num_logprobs, sampling_metadata.temperature
        if not columns:
            return super().forward(logits, sampling_metadata, *args, **kwargs)
        scaled = logits.float()
        if temperature is not None:  # None: all requests are greedy
            scaled = scaled / torch.where(temperature > 0, temperature, 1.0).unsqueeze(1)
        every = scaled.log_softmax(-1)  # before the call below, which works in place
        output = super().forward(logits, sampling_metadata, *args, **kwargs)
        sampled = output.sampled_token_ids.long().squeeze(1)
        ids, values, rank, *_ = self.gather_logprobs(every, columns - 1, sampled)
        drawn = output.logprobs_tensors.logprobs[:, :1]
        output.logprobs_tensors = LogprobsTensors(
            torch.cat([ids[:, :1], ids], 1), torch.cat([values[:, :1], drawn, values[:, 1:]], 1), rank
        )
        return output
