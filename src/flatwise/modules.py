"""What a model carries besides its weights: modes, buffers, the random state. Saved, restored, and left as they were."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

Mode: TypeAlias = Literal["current", "eval", "train"]


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

    Every registered buffer counts, of any module: a list of known BatchNorm classes misses the next custom one. One that was
    replaced, resized, registered or removed since is put back as well. What a module keeps elsewhere is not seen.
    """

    def __init__(self, model: nn.Module | None) -> None:
        self._model = model
        self._registered = [(m, dict(m._buffers)) for m in model.modules()] if model is not None else []
        distinct = {id(b): b for _, buffers in self._registered for b in buffers.values() if b is not None}
        self._values = [(b, b.detach().clone()) for b in distinct.values() if _is_writable(b)]

    def again(self) -> Buffers:
        """The buffers of the same model as they are now."""
        return Buffers(self._model)

    def restore(self) -> None:
        """Register the same buffers, and write the saved values into the same storage."""
        for module, buffers in self._registered:
            if not _are_the_same(module._buffers, buffers):
                module._buffers.clear()
                module._buffers.update(buffers)
        with torch.no_grad():
            for buffer, value in self._values:
                if buffer.shape != value.shape:
                    buffer.resize_(value.shape)
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
    """The first DistributedDataParallel of a model: the model itself, or what `torch.compile` or Lightning's Fabric wrapped."""
    return next(iter(replicated(model)), None)


def replicated(model: nn.Module | None) -> list[nn.parallel.DistributedDataParallel]:
    """The modules of a model that are a DistributedDataParallel, the model itself among them."""
    return (
        [m for m in model.modules() if isinstance(m, nn.parallel.DistributedDataParallel)] if model is not None else []
    )


def flattened(model: nn.Module | None) -> bool:
    """Whether some module is a FullyShardedDataParallel (FSDP1), asked without importing the distributed package."""
    return model is not None and any(hasattr(m, "_fsdp_wrapped_module") for m in model.modules())


def sharded(model: nn.Module | None) -> list[Any]:
    """The modules of a model that FSDP2 shards, asked without importing the distributed package."""
    return [m for m in model.modules() if hasattr(m, "reshard")] if model is not None else []


@contextmanager
def measuring(model: nn.Module, mode: Mode = "current") -> Generator[None]:
    """Evaluate `model` in the given mode; afterwards modes, buffers and the random state are as before.

    Measuring changes nothing, also when the body raises, or between a forward pass and its backward.
    """
    modes, buffers = Modes(model), Buffers(model)
    random = RandomState(devices([*model.parameters(), *model.buffers()]))
    with unseen(model.buffers()):
        try:
            if mode != "current":
                modes.set(mode == "train")
            yield
        finally:
            surely(modes.restore, buffers.restore, random.restore)


def unseen(tensors: Iterable[Tensor]) -> AbstractContextManager[Any]:
    """A context in which these tensors are written to and given back bitwise, so that graphs which hold them need not know."""
    return torch.autograd._unsafe_preserve_version_counter(tuple(t for t in tensors if not t.is_inference()))


def surely(*actions: Callable[[], None]) -> None:
    """Do all of them, whatever happens. What Ctrl-C breaks off is done again from its beginning; the first error comes last."""
    errors: list[BaseException] = []
    for action in actions:
        try:
            action()
        except KeyboardInterrupt as interruption:
            errors.append(interruption)
            action()
        except Exception as error:
            errors.append(error)
    if errors:
        raise errors[0]


def _unchanged(module: nn.Module, mode: bool = True) -> nn.Module:
    """In place of `module.train` while its mode is held."""
    del mode
    return module


def _put_back(module: nn.Module, train: Any) -> None:
    if train is None:
        del vars(module)["train"]
    else:
        vars(module)["train"] = train


def _is_writable(buffer: Tensor) -> bool:
    """Nobody can write into an expanded tensor, whose copy may be huge, nor in training into one made in inference mode."""
    if buffer.is_inference() and not torch.is_inference_mode_enabled():
        return False
    return buffer.layout != torch.strided or not any(d == 0 and n > 1 for d, n in zip(buffer.stride(), buffer.shape))


def _are_the_same(now: Mapping[str, Tensor | None], before: Mapping[str, Tensor | None]) -> bool:
    return now.keys() == before.keys() and all(now[name] is b for name, b in before.items())
