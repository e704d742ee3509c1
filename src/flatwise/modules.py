"""What a model carries besides its weights: modes, buffers, the random state. Saved, restored, and left as they were."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

Mode: TypeAlias = Literal["current", "eval", "train"]
_Place: TypeAlias = tuple[nn.Module, str, Tensor]


class Modes:
    """The training flag of every module, as it was when this was made.

    `model.train()` cannot give back a model whose frozen BatchNorm was in evaluation mode; this can.
    """

    def __init__(self, model: nn.Module | None) -> None:
        self._flags = [(m, m.training) for m in model.modules()] if model is not None else []

    def restore(self) -> None:
        """Set every flag back."""
        for module, training in self._flags:
            module.training = training

    def set(self, training: bool) -> None:
        """Put every module in training or evaluation mode."""
        for module, _ in self._flags:
            module.training = training

    @contextmanager
    def held(self, training: bool) -> Generator[None]:
        """Every module in training or evaluation mode, whatever `train()` or `eval()` the body calls; restored afterwards."""
        self.set(training)
        own = [vars(m).get("train") for m, _ in self._flags]
        for module, _ in self._flags:
            vars(module)["train"] = partial(_unchanged, module)
        try:
            yield
        finally:
            for (module, _), before in zip(self._flags, own, strict=True):
                _put_back(module, before)
            self.restore()


class Buffers:
    """The buffers of a model (running statistics, counters), as they were when this was made.

    Every registered buffer counts, of any module: a list of known BatchNorm classes misses the next custom one.
    """

    def __init__(self, model: nn.Module | None, *, places: Iterable[_Place] | None = None) -> None:
        found = places if places is not None else _buffer_places(model) if model is not None else ()
        self._places = list(found)
        self._values = [buffer.detach().clone() for _, _, buffer in self._places]

    def again(self) -> Buffers:
        """The same buffers as they are now."""
        return Buffers(None, places=[(m, name, _current(m, name, buffer)) for m, name, buffer in self._places])

    def restore(self) -> None:
        """Write the saved values into the same storage; a buffer that was replaced is put back."""
        for module, name, buffer in self._places:
            if module._buffers.get(name) is not buffer:
                module._buffers[name] = buffer
        with torch.no_grad():
            for (_, _, buffer), value in zip(self._places, self._values, strict=True):
                buffer.copy_(value)


class RandomState:
    """The state of torch's random generators on the CPU and on the given devices, as it was when this was made."""

    def __init__(self, devices: Iterable[torch.device] = ()) -> None:
        self._cpu = torch.get_rng_state()
        self._accelerators = {d: torch.get_device_module(d).get_rng_state(d) for d in devices if d.type != "cpu"}

    def restore(self) -> None:
        """Set the generators back."""
        torch.set_rng_state(self._cpu)
        for device, state in self._accelerators.items():
            torch.get_device_module(device).set_rng_state(state, device)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RandomState) and torch.equal(self._cpu, other._cpu) and self._same_devices(other)

    __hash__ = None  # type: ignore[assignment]

    def _same_devices(self, other: RandomState) -> bool:
        return all(torch.equal(state, other._accelerators[d]) for d, state in self._accelerators.items())


def devices(tensors: Iterable[Tensor]) -> list[torch.device]:
    """The distinct devices of some tensors, in order of appearance."""
    return list(dict.fromkeys(t.device for t in tensors))


def data_parallel(model: nn.Module | None) -> nn.parallel.DistributedDataParallel | None:
    """The DistributedDataParallel that `model` is, or that `torch.compile` wrapped."""
    inner = getattr(model, "_orig_mod", model)
    return inner if isinstance(inner, nn.parallel.DistributedDataParallel) else None


def sharded(model: nn.Module | None) -> list[Any]:
    """The modules of a model that FSDP2 shards, asked without importing the distributed package."""
    return [m for m in model.modules() if hasattr(m, "reshard")] if model is not None else []


@contextmanager
def measuring(model: nn.Module, mode: Mode = "current") -> Generator[None]:
    """Evaluate `model` in the given mode; afterwards modes, buffers and the random state are as before.

    Measuring changes nothing, also when the body raises.
    """
    modes, buffers = Modes(model), Buffers(model)
    random = RandomState(devices([*model.parameters(), *model.buffers()]))
    try:
        if mode != "current":
            modes.set(mode == "train")
        yield
    finally:
        modes.restore()
        buffers.restore()
        random.restore()


def _unchanged(module: nn.Module, mode: bool = True) -> nn.Module:
    """In place of `module.train` while its mode is held."""
    del mode
    return module


def _put_back(module: nn.Module, train: Any) -> None:
    if train is None:
        del vars(module)["train"]
    else:
        vars(module)["train"] = train


def _current(module: nn.Module, name: str, known: Tensor) -> Tensor:
    buffer = module._buffers.get(name)
    return known if buffer is None else buffer


def _buffer_places(model: nn.Module) -> Iterable[_Place]:
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None:
                yield module, name, buffer
