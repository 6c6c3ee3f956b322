"""The forget gate as the kernels take it. Free of Triton."""

from dataclasses import dataclass

from torch import Tensor

# What the gate input is: the log decay itself, or the pre-activation of the softplus or of the bounded sigmoid gate.
LOG_DECAY, SOFTPLUS, BOUNDED = 0, 1, 2


@dataclass(frozen=True)
class Gate:
    """How the gate input becomes a log decay: `kind` as above; a_log `[H]`, dt_bias `[H*K]` fp32 or None."""

    kind: int
    a_log: Tensor | None
    dt_bias: Tensor | None
    lower_bound: float

    @classmethod
    def of(cls, a_log: Tensor | None, dt_bias: Tensor | None, lower_bound: float | None, in_kernel: bool) -> "Gate":
        if not in_kernel:
            return cls(LOG_DECAY, None, None, 0.0)
        if a_log is None or dt_bias is None:
            raise ValueError("use_gate_in_kernel needs A_log [H] and dt_bias [H*K]")
        if lower_bound is not None and lower_bound >= 0:
            raise ValueError(f"lower_bound must be below 0, got {lower_bound}")
        kind = SOFTPLUS if lower_bound is None else BOUNDED
        return cls(kind, a_log.float().flatten(), dt_bias.float().flatten(), lower_bound or 0.0)

    def heads(self, some: slice, key_dim: int) -> "Gate":
        """A view of that of some heads."""
        a_log = None if self.a_log is None else self.a_log[some]
        dt_bias = None if self.dt_bias is None else self.dt_bias.view(-1, key_dim)[some].flatten()
        return Gate(self.kind, a_log, dt_bias, self.lower_bound)
