"""Metrics of one learner update, gathered over micro-batches, minibatches and ranks."""

import torch
from accelerate import Accelerator
from torch import Tensor

from deltarl.model.routing import UNKNOWN
from deltarl.rl.loss import TokenLoss
from deltarl.rl.objectives.ratio import LARGEST_LOG_RATIO
from deltarl.rl.objectives.tokens import answer_sums
from deltarl.rl.objectives.value import ValueLoss


class UpdateStats:
    """Sums and maxima over tokens, so that the result does not depend on how the batch was split."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._maxima = {"ratio/max": 0.0, "mismatch/logprob_abs_max": 0.0, "mismatch/ratio_max": 0.0}
        self._divisor = 0
        self._norms: list[float] = []
        self._critic_norms: list[float] = []
        self._lr, self._skipped = 0.0, 0

    def add_minibatch(self, divisor: int) -> None:
        """`divisor`: what the loss of the minibatch is divided by, over all ranks."""
        self._divisor += divisor

    def add_tokens(self, out: TokenLoss, loss: Tensor, entropy: Tensor) -> None:
        """`loss`: of each token, as its sum is minimised."""
        self._add("tokens", len(entropy))
        per_token = {
            "loss/policy": loss.detach(),
            "ratio/mean": out.ratio,
            "kl/old": out.kl_old,
            "clip/frac_low": out.clipped_low,
            "clip/frac_high": out.clipped_high,
            "entropy": entropy,
        }
        if out.kl_ref is not None:
            per_token["kl/ref"] = out.kl_ref
        if out.corrected is not None:
            per_token["clip/frac_corrected"] = out.corrected
        for name, x in per_token.items():
            self._add(name, x.double().sum())
        self._raise_to("ratio/max", out.ratio)

    def add_mismatch(self, difference: Tensor, lengths: Tensor) -> None:
        """`difference` `[n]`: learner's minus sampler's log-probabilities, under the weights the iteration starts with,
        of answers of `lengths` `[N]`."""
        d = difference.double()
        per_token = {"logprob_abs_mean": d.abs(), "k3": torch.expm1(d) - d, "kl": -d}
        self._add("mismatch/tokens", len(d))
        for name, x in per_token.items():
            self._add(f"mismatch/{name}", x.sum())
        self._raise_to("mismatch/logprob_abs_max", d.abs())
        for kind, log_weight in (("ess", d), ("ess_answer", answer_sums(d, lengths))):
            weight = log_weight.clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO).exp()
            self._add(f"{kind}/count", len(weight))
            self._add(f"{kind}/sum", weight.sum())
            self._add(f"{kind}/squares", (weight**2).sum())
            if kind == "ess":
                self._raise_to("mismatch/ratio_max", weight)

    def add_routing(self, otherwise: Tensor, experts: Tensor) -> None:
        """`otherwise`: how many of the `experts` given to a micro-batch its routers would not have chosen."""
        self._add("router/disagreement", otherwise)
        self._add("router/experts", (experts != UNKNOWN).sum())

    def add_imitated(self, loss: float, tokens: int) -> None:
        """`loss`: summed over the solutions' `tokens`."""
        self._add("loss/ptx", loss)
        self._add("ptx/tokens", tokens)

    def add_values(self, out: ValueLoss) -> None:
        self._add("value/tokens", len(out.loss))
        self._add("loss/value", out.loss.detach().double().sum())
        self._add("clip/frac_value", out.clipped.double().sum())

    def add_critic_step(self, grad_norm: float) -> None:
        self._critic_norms.append(grad_norm)

    def add_skipped_step(self, lr: float) -> None:
        self._skipped += 1
        self._lr = lr

    def add_step(self, grad_norm: float, lr: float) -> None:
        self._norms.append(grad_norm)
        self._lr = lr

    def reduce(self, accelerator: Accelerator) -> dict[str, float]:
        """The metrics, over all ranks."""
        names = sorted(self._sums)
        sums = torch.tensor([self._sums[n] for n in names], dtype=torch.float64, device=accelerator.device)
        maxima = torch.tensor(list(self._maxima.values()), dtype=torch.float64, device=accelerator.device)
        total = dict(zip(names, accelerator.reduce(sums, "sum").tolist(), strict=True))
        largest = accelerator.gather(maxima.unsqueeze(0)).max(0).values.tolist()
        tokens, compared = total.pop("tokens"), total.pop("mismatch/tokens")
        # Kish's effective sample size, (Σw)² / Σw², as a share of the samples.
        ess = {
            f"mismatch/{kind}": total.pop(f"{kind}/sum") ** 2
            / (total.pop(f"{kind}/count") * total.pop(f"{kind}/squares"))
            for kind in ("ess", "ess_answer")
        }
        loss = {"loss/policy": total.pop("loss/policy") / self._divisor}
        if "ptx/tokens" in total:
            loss["loss/ptx"] = total.pop("loss/ptx") / max(1, total.pop("ptx/tokens"))
        if "router/experts" in total:
            loss["router/disagreement"] = total.pop("router/disagreement") / total.pop("router/experts")
        if "value/tokens" in total:
            valued = total.pop("value/tokens")
            loss |= {name: total.pop(name) / valued for name in ("loss/value", "clip/frac_value")}
        means = {name: x / (compared if name.startswith("mismatch/") else tokens) for name, x in total.items()}
        norm = sum(self._norms) / len(self._norms) if self._norms else float("nan")
        step = {"optim/grad_norm": norm, "optim/lr": self._lr, "optim/skipped": float(self._skipped)}
        if self._critic_norms:
            step["optim/critic_grad_norm"] = sum(self._critic_norms) / len(self._critic_norms)
        return loss | means | ess | dict(zip(self._maxima, largest, strict=True)) | step

    def _add(self, name: str, x: Tensor | float) -> None:
        self._sums[name] = self._sums.get(name, 0.0) + float(x)

    def _raise_to(self, name: str, x: Tensor) -> None:
        if len(x):
            self._maxima[name] = max(self._maxima[name], float(x.max()))
