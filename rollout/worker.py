"""A sampler as a fleet hosts it: a backend over its own copy of the policy."""

import os
from collections.abc import Sequence
from typing import Any, Literal, cast

from deltarl.model.weight_group import Call, TransferError
from deltarl.model.weight_meeting import Receiver
from deltarl.model.weights import WeightMismatchError, WeightUpdate
from deltarl.rollout.backend import RolloutBackend
from deltarl.rollout.fetched import Fetched, Offer
from deltarl.rollout.outputs import RequestOutput
from deltarl.rollout.params import SamplingParams

BackendName = Literal["native", "transformers", "vllm"]


def make_backend(
    name: BackendName,
    model_path: str,
    *,
    max_num_seqs: int,
    max_model_len: int | None = None,
    record_routing: bool = False,
) -> RolloutBackend:
    """The backend of that name, over the checkpoint in a folder.

    Args:
        name: "native" is our engine, for the hybrid; "transformers" samples any other causal language model, "vllm"
            either.
        record_routing: see `Engine`; of "native" only.

    Raises:
        ValueError: an unknown name, or the hybrid for transformers, whose class of it names its weights otherwise;
            `record_routing` of another backend than the native one, or of a model without experts.
    """
    if record_routing and name != "native":
        raise ValueError(f"the rollout backend {name!r} does not say which experts it used; the native one does")
    if name == "native":
        from deltarl.model.checkpoint import load_model
        from deltarl.rollout.engine import Engine

        return Engine(
            on_gpu(load_model(model_path)),
            max_num_seqs=max_num_seqs,
            max_model_len=max_model_len,
            record_routing=record_routing,
        )
    if name == "transformers":
        from deltarl.model.hf_policy import load_causal_lm
        from deltarl.model.policy import is_hybrid
        from deltarl.rollout.hf_backend import HFBackend

        if is_hybrid(model_path):
            raise ValueError(f'{model_path} is a hybrid: have the "native" backend sample it, or "vllm"')
        return HFBackend(on_gpu(load_causal_lm(model_path)), max_num_seqs=max_num_seqs, max_model_len=max_model_len)
    if name == "vllm":
        from deltarl.rollout.vllm.backend import VLLMEngine

        return VLLMEngine(model_path, max_num_seqs=max_num_seqs, max_model_len=max_model_len)
    raise ValueError(f'the rollout backend must be "native", "transformers" or "vllm", got {name!r}')


def on_gpu(model: Any) -> Any:
    """The model, moved to the GPU that this process sees if there is one."""
    import torch

    return model.to("cuda") if torch.cuda.is_available() else model


class RolloutWorker:
    """Samples with the weights it was last given."""

    def __init__(
        self,
        model_path: str,
        *,
        max_num_seqs: int,
        max_model_len: int | None = None,
        backend: BackendName = "native",
        batch_invariant: bool = False,
        record_routing: bool = False,
    ):
        """
        Args:
            record_routing: see `make_backend`.
            batch_invariant: see `deltarl.kernels.batch_invariant`; not for vLLM, which has kernels of its own.
        """
        if batch_invariant:
            from deltarl.kernels.batch_invariant import set_batch_invariant

            set_batch_invariant(True)
        self._backend = make_backend(
            backend,
            model_path,
            max_num_seqs=max_num_seqs,
            max_model_len=max_model_len,
            record_routing=record_routing,
        )
        self._receiver = Receiver()

    def generate(self, prompts: Sequence[Sequence[int]], params: Sequence[SamplingParams]) -> list[RequestOutput]:
        """See `RolloutBackend.generate`."""
        return self._backend.generate(prompts, params)

    def load_weights(self, update: WeightUpdate) -> None:
        """See `RolloutBackend.load_weights`."""
        self._backend.load_weights(update)

    def receive_weights(self, offer: Offer, call: Call | None = None) -> str | None:
        """Fetches published weights from the learner.

        Args:
            call: of a broadcast.

        Returns:
            Why they are not here, if they are not. Then the worker must be given some by `load_weights` before it
            samples again.
        """
        try:
            # It has all that our engine and transformers' backend use of a WeightUpdate; vLLM is refused before.
            self._backend.load_weights(cast(Any, Fetched(offer, call, self._receiver)))
        except (TransferError, WeightMismatchError) as error:
            return str(error)
        return None

    def pid(self) -> int:
        """Process id, for whoever watches the process."""
        return os.getpid()
