"""A sample on its way from one engine to another, or to a file."""

import json
from dataclasses import asdict, dataclass, replace

import torch
from safetensors.torch import load, save
from torch import Tensor

from deltarl.model.cache import RowState
from deltarl.rollout.params import RepetitionDetection, SamplingParams
from deltarl.rollout.sequence import Answer

FORMAT = 2


@dataclass(frozen=True)
class Snapshot:
    """All that the rest of a sample depends on: any engine with the same weights goes on to the same tokens.

    Attributes:
        index: which of the samples of its request.
        prefilled: tokens of the answer that were last computed with the prompt, the others one by one as sampled.
        weight_version: of the engine that it was taken out of. `state_versions` says which weights `state` comes from.
        state: None if it has no token yet, or is to be computed from the tokens again.
    """

    prompt: list[int]
    params: SamplingParams
    index: int
    answer: Answer
    prefilled: int
    weight_version: int
    state: RowState | None

    @property
    def nbytes(self) -> int:
        """Of the state: a constant for the KDA layers, the latents of the attention layers, routed experts."""
        return 0 if self.state is None else self.state.nbytes

    @property
    def state_versions(self) -> tuple[int, ...]:
        """Of the weights that `state` was computed with; several if it was kept when new weights came.

        A token is fed under the weights that sample the next one, and the prompt under those of the first.
        """
        fed = [] if self.state is None else self.answer.weight_versions[self.prefilled :]
        return tuple(dict.fromkeys(fed))

    def without_state(self) -> "Snapshot":
        """One that is to be computed from its tokens again, under whatever weights the engine then has."""
        return replace(self, state=None)

    def to_bytes(self) -> bytes:
        """As a safetensors file."""
        tensors: dict[str, Tensor] = {"_": torch.empty(0)}
        if self.state is not None:
            tensors |= {f"recurrent.{i}": x.contiguous() for i, x in enumerate(self.state.recurrent)}
            tensors |= {f"latents.{i}": x.contiguous() for i, x in enumerate(self.state.latents)}
            if self.state.routed_experts is not None:
                tensors["routed_experts"] = self.state.routed_experts
        params = asdict(self.params) | {"logit_bias": [[k, v] for k, v in self.params.logit_bias.items()]}
        about = {
            "format": FORMAT,
            "prompt": self.prompt,
            "params": params,
            "index": self.index,
            "answer": asdict(self.answer),
            "prefilled": self.prefilled,
            "weight_version": self.weight_version,
            "length": None if self.state is None else self.state.length,
        }
        return save(tensors, metadata={"deltarl": json.dumps(about)})

    @classmethod
    def from_bytes(cls, data: bytes) -> "Snapshot":
        """
        Raises:
            ValueError: bytes that are not a snapshot, or of another format.
        """
        try:
            header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
            about = json.loads(header["__metadata__"]["deltarl"])
            tensors = load(data)
        except Exception as error:
            raise ValueError(f"these {len(data)} bytes are not a snapshot of a sample: {error}") from error
        if about["format"] != FORMAT:
            raise ValueError(f"the snapshot has format {about['format']}, this version of deltarl reads {FORMAT}")
        state = None
        if about["length"] is not None:
            parts = {kind: [x for name, x in _numbered(tensors, kind)] for kind in ("recurrent", "latents")}
            state = RowState(about["length"], parts["recurrent"], parts["latents"], tensors.get("routed_experts"))
        params = about["params"] | {"logit_bias": {int(k): v for k, v in about["params"]["logit_bias"]}}
        for name in ("stop", "stop_token_ids"):
            params[name] = tuple(params[name])
        if params["repetition_detection"] is not None:
            params["repetition_detection"] = RepetitionDetection(**params["repetition_detection"])
        answer = about["answer"] | {"top_logprobs": [_int_keys(x) for x in about["answer"]["top_logprobs"]]}
        return cls(
            about["prompt"],
            SamplingParams(**params),
            about["index"],
            Answer(**answer),
            about["prefilled"],
            about["weight_version"],
            state,
        )


def _numbered(tensors: dict[str, Tensor], kind: str) -> list[tuple[int, Tensor]]:
    found = [(int(name.split(".")[1]), x) for name, x in tensors.items() if name.startswith(kind + ".")]
    return sorted(found, key=lambda item: item[0])


def _int_keys(x: dict[str, float]) -> dict[int, float]:
    return {int(k): v for k, v in x.items()}
