"""fp32 master weights of a module stored in less: it learns in fp32 and computes with the weights that samplers get.

In bf16 most updates of a usual learning rate are rounded away. Here the parameters themselves are fp32, and so are
their gradient, summed over micro-batches and ranks, and the optimizer's state. Each is rounded where a pass uses it,
as a parametrization of its module: what shards or joins parameters sees fp32 ones and needs no policy of its own.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.utils.parametrize import ParametrizationList, register_parametrization

MASTERS = "masters.safetensors"  # beside the optimizer's tensors in a checkpoint
_SUFFIX = ".original"  # `proj.weight` of a module becomes `proj.parametrizations.weight.original`


def hold_masters(module: nn.Module, keep_rounded: bool) -> None:
    """Has `module` learn in fp32 what it holds in less; nothing changes if that is nothing.

    Its forward pass uses, and its `state_dict` has, the same names, dtypes and bits as before. `load_state_dict` takes
    these, or masters in their place. To be called before the module is joined to other ranks' and before its optimizer
    is made.

    Args:
        keep_rounded: hold all rounded weights beside the masters, at the price of their memory, so that neither the
            forward nor the backward pass rounds one by one. Not where weights are sharded: no rank has all of them.
    """
    rounding: _RoundBefore | _RoundAnew = _RoundBefore() if keep_rounded else _RoundAnew()
    stored: dict[str, torch.dtype] = {}  # by the names of the masters
    for path, owner in list(module.named_modules()):
        for name, p in list(owner.named_parameters(recurse=False)):
            if p.is_floating_point() and p.dtype.itemsize < torch.float32.itemsize:
                stored[f"{path}.parametrizations.{name}{_SUFFIX}".lstrip(".")] = p.dtype
                setattr(owner, name, nn.Parameter(p.detach().float()))
                rounded = _Rounded(p.dtype, rounding.round)
                register_parametrization(owner, name, rounded, unsafe=True)  # unsafe: it is of another dtype
                rounding.weights.append(owner.parametrizations[name])
    if not stored:
        return

    def round_state(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
        for name, dtype in stored.items():
            state[prefix + plain_name(name)] = state.pop(prefix + name).to(dtype)

    def find_masters(module: nn.Module, state: dict[str, Any], prefix: str, *unused: Any) -> None:
        for name in stored:
            if (plain := prefix + plain_name(name)) in state:
                state[prefix + name] = state.pop(plain)

    module.register_state_dict_post_hook(round_state)
    module.register_load_state_dict_pre_hook(find_masters)
    module.register_forward_pre_hook(rounding.enter)
    module.register_forward_hook(rounding.leave, always_call=True)


def masters(module: nn.Module) -> dict[str, Tensor]:
    """The fp32 parameters that `state_dict` has rounded, under its names."""
    return {plain_name(name): p.detach() for name, p in module.named_parameters() if name.endswith(_SUFFIX)}


def plain_name(parameter: str) -> str:
    """The name in `state_dict` of one of `named_parameters`."""
    return parameter.replace("parametrizations.", "").removesuffix(_SUFFIX)


class _Rounded(nn.Module):
    """The parametrization of one weight."""

    def __init__(self, dtype: torch.dtype, round: "Callable[[_Rounded, Tensor], Tensor]"):
        super().__init__()
        self.dtype, self._round = dtype, round
        self.kept: Tensor | None = None

    def forward(self, master: Tensor) -> Tensor:
        return self._round(self, master)


class _RoundBefore:
    """Rounds all weights at the beginning of a pass, into the same memory every time."""

    def __init__(self) -> None:
        self.weights: list[ParametrizationList] = []
        self._passing = False

    @torch.no_grad()
    def enter(self, *unused: Any) -> None:
        for weight in self.weights:
            rounded, master = cast(_Rounded, weight[0]), weight.original
            if rounded.kept is None or rounded.kept.device != master.device:
                rounded.kept = torch.empty_like(master, dtype=rounded.dtype)
            rounded.kept.copy_(master)
        self._passing = True

    def leave(self, *unused: Any) -> None:
        self._passing = False

    def round(self, rounded: _Rounded, master: Tensor) -> Tensor:
        # Outside a pass the kept ones may be of before the optimizer's last step.
        return _AsRounded.apply(master, rounded.kept) if self._passing else master.to(rounded.dtype)


class _AsRounded(torch.autograd.Function):
    """`kept` in the place of `master`, which it is rounded from."""

    @staticmethod
    def forward(ctx: Any, master: Tensor, kept: Tensor) -> Tensor:
        return kept.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.float(), None


class _RoundAnew:
    """Rounds in a pass, and once more for its backward pass: no rounded weight is kept from the one to the other.

    Where weights are sharded, each layer's would otherwise stay whole on every rank.
    """

    def __init__(self) -> None:
        self.weights: list[ParametrizationList] = []
        # By the memory of the rounded: autograd hands its hooks another tensor on it. A weak reference keeps the
        # memory's identity from being given to something else.
        self._masters: dict[StorageWeakRef, Tensor] = {}
        self._hooks: list[saved_tensors_hooks] = []

    def enter(self, *unused: Any) -> None:
        self._hooks.append(saved_tensors_hooks(self._pack, self._unpack))
        self._hooks[-1].__enter__()

    def leave(self, *unused: Any) -> None:
        self._hooks.pop().__exit__()
        self._masters.clear()

    def round(self, rounded: _Rounded, master: Tensor) -> Tensor:
        found = master.to(rounded.dtype)
        if self._hooks:
            self._masters[StorageWeakRef(found.untyped_storage())] = master
        return found

    def _pack(self, x: Tensor) -> Any:
        master = self._masters.get(StorageWeakRef(x.untyped_storage()))
        return x if master is None else (master, x.dtype, x.shape, x.stride(), x.storage_offset())

    @staticmethod
    def _unpack(packed: Any) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        master, dtype, *view = packed
        return master.detach().to(dtype).as_strided(*view)
