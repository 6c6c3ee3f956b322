"""Metrics of one learner update, gathered over micro-batches, minibatches and ranks."""

import torch
from accelerate import Accelerator
from torch import Tensor

from deltarl.rl.loss import TokenLoss


class UpdateStats:
    """Sums and maxima over tokens, so that the result does not depend on how the batch was split."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._maxima: dict[str, float] = {"ratio/max": 0.0, "mismatch/logprob_abs_max": 0.0}
        self._tokens = self._on_policy_tokens = 0
        self._norms: list[float] = []
        self._lr = 0.0

    def add_tokens(self, out: TokenLoss, entropy: Tensor) -> None:
        self._tokens += len(entropy)
        per_token = {
            "loss/policy": out.loss.detach(),
            "ratio/mean": out.ratio,
            "kl/old": out.kl_old,
            "clip/frac_low": out.clipped_low,
            "clip/frac_high": out.clipped_high,
            "entropy": entropy,
        }
        if out.kl_ref is not None:
            per_token["kl/ref"] = out.kl_ref
        for name, x in per_token.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(x.double().sum())
        self._raise_to("ratio/max", out.ratio)

    def add_mismatch(self, difference: Tensor) -> None:
        """`difference`: learner's minus sampler's log-probabilities, under the very weights that sampled."""
        self._on_policy_tokens += len(difference)
        d = difference.double()
        for name, x in (("mismatch/logprob_abs_mean", d.abs()), ("mismatch/k3", torch.expm1(d) - d)):
            self._sums[name] = self._sums.get(name, 0.0) + float(x.sum())
        self._raise_to("mismatch/logprob_abs_max", d.abs())

    def add_step(self, grad_norm: float, lr: float) -> None:
        self._norms.append(grad_norm)
        self._lr = lr

    def reduce(self, accelerator: Accelerator) -> dict[str, float]:
        """The metrics, over all ranks."""
        names = sorted(self._sums)
        sums = torch.tensor(
            [self._tokens, self._on_policy_tokens, *(self._sums[n] for n in names)],
            dtype=torch.float64,
            device=accelerator.device,
        )
        maxima = torch.tensor(list(self._maxima.values()), dtype=torch.float64, device=accelerator.device)
        tokens, on_policy, *totals = accelerator.reduce(sums, "sum").tolist()
        largest = accelerator.gather(maxima.unsqueeze(0)).max(0).values.tolist()
        means = {
            name: total / (on_policy if name.startswith("mismatch/") else tokens)
            for name, total in zip(names, totals, strict=True)
        }
        norm = sum(self._norms) / len(self._norms)
        step = {"optim/grad_norm": norm, "optim/lr": self._lr}
        return means | dict(zip(self._maxima, largest, strict=True)) | step

    def _raise_to(self, name: str, x: Tensor) -> None:
        if len(x):
            self._maxima[name] = max(self._maxima[name], float(x.max()))
