"""A device that is not there: tensors that say they are elsewhere, and whose arithmetic is that of the CPU.

Mixing them with tensors of the CPU fails as it does with those of a GPU, so code that forgets to place a
tensor is found without one. Speed, streams and the bits of other kernels are not simulated.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map_only

# Of all devices that this build of torch knows, the one that needs no driver.
DEVICE = torch.device("meta")

# Operations that take tensors of two devices.
_ACROSS = {torch.ops.aten.copy_.default}
_MOVING = {torch.ops.aten._to_copy.default, torch.ops.aten.to.device, torch.ops.aten.to.dtype_layout}


class Elsewhere(Tensor):
    """A tensor of the simulated device; ``here`` has its values."""

    here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor) -> Elsewhere:
        with torch.inference_mode(here.is_inference()):
            made: Elsewhere = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
                cls,
                here.shape,
                strides=here.stride(),
                storage_offset=here.storage_offset(),
                dtype=here.dtype,
                device=DEVICE,
            )
        made.here = here
        return made

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"Elsewhere({self.here})"

    def tolist(self) -> Any:
        return self.here.tolist()

    def untyped_storage(self) -> Any:
        return self.here.untyped_storage()

    # torch would make numbers and lists tensors of the real device of that name, which have no values.

    def __getitem__(self, index: Any) -> Elsewhere:
        _check_alike("__getitem__", tree_flatten(index)[0])
        return Elsewhere(self.here[tree_map_only(Elsewhere, lambda x: x.here, index)])

    def __setitem__(self, index: Any, value: Any) -> None:
        _check_alike("__setitem__", [self, *tree_flatten((index, value))[0]])
        index, value = tree_map_only(Elsewhere, lambda x: x.here, (index, value))
        self.here[index] = value

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.ops.aten._local_scalar_dense.default:
            return func(args[0].here)
        if func in _MOVING:
            return _moved(func, args, kwargs)
        tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
        if func not in _ACROSS:
            _check_alike(func, tensors)
        if kwargs.get("device") is not None:
            assert torch.device(kwargs["device"]) == DEVICE, f"{func} leaves the device"
            kwargs["device"] = "cpu"
        args_here, kwargs_here = tree_map_only(Elsewhere, lambda x: x.here, (args, kwargs))
        # What works in place gives its argument back.
        known = {id(x.here): x for x in tensors if isinstance(x, Elsewhere)}
        out = func(*args_here, **kwargs_here)
        return tree_map_only(Tensor, lambda x: known[id(x)] if id(x) in known else Elsewhere(x), out)


def _check_alike(func: Any, values: Any) -> None:
    """Whether all tensors are on the simulated device, but for numbers."""
    for x in values:
        if isinstance(x, Tensor) and not isinstance(x, Elsewhere) and (x.dim() or x.is_meta):
            raise RuntimeError(f"{func}: tensors on two devices")


def _moved(func: Any, args: Any, kwargs: Any) -> Tensor:
    """A conversion, to whichever device."""
    devices = [x for x in (*args[1:], *kwargs.values()) if isinstance(x, torch.device)]
    there = not devices or devices[0] == DEVICE
    cpu = torch.device("cpu")
    args, kwargs = tree_map_only(torch.device, lambda _: cpu, (args, kwargs))
    out: Tensor = func(args[0].here, *args[1:], **kwargs)
    if not there:
        return out
    return args[0] if out is args[0].here else Elsewhere(out)


def _where(*args: Any) -> Tensor:
    # As with `Elsewhere.__setitem__`, numbers must not become tensors of the real device.
    elsewhere = any(isinstance(x, Elsewhere) for x in args)
    if elsewhere:
        _check_alike("where", args)
    out = torch.where(*tree_map_only(Elsewhere, lambda x: x.here, args))
    return Elsewhere(out) if elsewhere else out


class _Moves(TorchFunctionMode):
    """Makes tensors of the simulated device where it is asked for."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        named = kwargs.get("device", args[1] if func is Tensor.to and len(args) > 1 else None)
        if func is torch.where:
            return _where(*args)
        is_device = isinstance(named, str | torch.device)
        source = args[0] if args else None
        if not is_device or torch.device(named) != DEVICE or isinstance(source, Elsewhere):
            return func(*args, **kwargs)
        if func is Tensor.to:
            kwargs = {name: value for name, value in kwargs.items() if name != "device"}
            rest = args[2:] if "device" not in kwargs and len(args) > 1 else args[1:]
            converted = func(source, *rest, **kwargs) if rest or kwargs else source
            return Elsewhere(converted.clone())
        return Elsewhere(func(*args, **{**kwargs, "device": "cpu"}))


@contextmanager
def simulated_device() -> Iterator[torch.device]:
    """Within it, the simulated device can be named like any other."""
    with _Moves():
        yield DEVICE
