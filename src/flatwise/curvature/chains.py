"""A network cut into pieces at the outputs of some layers, each piece a function of its own, by hooks while it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from flatwise.objective.derivatives import gradient

INPUT = "input"
"""The name of what goes into the first layer."""


class Chain:
    """Layers of a model, in the order in which they run.

    Args:
        model: the network.
        layers: names of its modules.
        from_input: whether what goes into the first layer is a place to cut too.

    Raises:
        TypeError: the names are no list of strings.
        ValueError: too few names, one twice, or one that no module has.
    """

    def __init__(self, model: nn.Module, layers: Sequence[str], from_input: bool) -> None:
        known = dict(model.named_modules())
        _check_names(layers, known)
        self.names = [*([INPUT] if from_input else []), *layers]
        if len(self.names) < 2:
            raise ValueError(f"a Jacobian is from one layer to another: name two layers at least, got {list(layers)}")
        self._modules = [known[name] for name in layers]
        self._from_input = from_input

    def segments(self, run: Callable[[], object]) -> list[Segment]:
        """The pieces between the layers, at what `run` computes."""
        cuts: list[_Cut] = []
        with ExitStack() as hooks:
            if self._from_input:
                handle = self._modules[0].register_forward_pre_hook(lambda _, args: self._before(cuts, args))
                hooks.callback(handle.remove)
            for name, module in zip(self.names[-len(self._modules) :], self._modules, strict=True):
                handle = module.register_forward_hook(lambda _, __, out, name=name: self._after(cuts, name, out))
                hooks.callback(handle.remove)
            run()
        missing = self.names[len(cuts) :]
        if missing:
            raise ValueError(f"layer {missing[0]!r} did not run")
        return [Segment(f"{a.name} -> {b.name}", a.place, b.value) for a, b in pairwise(cuts)]

    def _before(self, cuts: list[_Cut], inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        if cuts:
            raise ValueError(f"layer {self.names[1]!r} ran more than once, or not as the first")
        cuts.append(_Cut.at(INPUT, inputs[0] if inputs else None))
        return cuts[-1].place.clone(), *inputs[1:]

    def _after(self, cuts: list[_Cut], name: str, output: Any) -> Any:
        """Record what a layer returns, and let what follows start from a copy without history."""
        expected = self.names[len(cuts)] if len(cuts) < len(self.names) else None
        if name != expected:
            raise ValueError(
                f"layer {name!r} ran where {expected!r} was to run; name layers in their order, each run once"
            )
        first, *rest = output if isinstance(output, (tuple, list)) else [output]
        cuts.append(_Cut.at(name, first))
        # A copy, so that an operation in place can follow.
        place = cuts[-1].place.clone()
        if output is first:
            return place
        return type(output)(place, *rest) if hasattr(output, "_fields") else type(output)([place, *rest])


@dataclass(frozen=True)
class _Cut:
    """What a layer returned, and the place from which the next layers go on."""

    name: str
    value: Tensor
    place: Tensor

    @staticmethod
    def at(name: str, value: Any) -> _Cut:
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.ndim < 2:
            raise TypeError(
                f"a layer must return real numbers of shape [samples, ...], {name!r} has {_described(value)}; name another"
            )
        return _Cut(name, value, value.detach().requires_grad_())


@dataclass(frozen=True)
class Segment:
    """A piece of a network: `value` as a function of `place`, sample by sample; both have the shape [samples, ...].

    Raises:
        ValueError: the value does not depend on the place, or that of one sample on the place of another.
    """

    name: str
    place: Tensor
    value: Tensor

    def __post_init__(self) -> None:
        if len(self.place) != len(self.value):
            raise ValueError(f"{self.name}: {len(self.place)} samples go in and {len(self.value)} come out")
        found: tuple[Tensor | None, ...] = (None,)
        if self.value.requires_grad:
            one = torch.zeros_like(self.value)
            one[0] = torch.randn(one[0].shape, generator=torch.Generator().manual_seed(0)).to(one)
            found = torch.autograd.grad(self.value, self.place, one, retain_graph=True, allow_unused=True)
        if found[0] is None:
            raise ValueError(f"{self.name}: the one does not depend on the other")
        if bool(found[0][1:].any()):
            raise ValueError(
                f"{self.name}: a sample's output depends on other samples' inputs (BatchNorm in training mode?), so there is no "
                'Jacobian of a sample; mode="eval" has one'
            )

    @property
    def sizes(self) -> tuple[int, int]:
        """The numbers of inputs and outputs of a sample."""
        return self.place[0].numel(), self.value[0].numel()

    def forward(self, vectors: Tensor) -> Tensor:
        """The Jacobians times a vector for each sample: [samples, inputs] to [samples, outputs]."""
        applied = torch.zeros_like(self.value, requires_grad=True)
        (transposed,) = torch.autograd.grad(self.value, self.place, applied, create_graph=True)
        along = vectors.view_as(self.place).to(self.place.dtype)
        (found,) = gradient([transposed], [applied], [along])
        return found.flatten(1).to(vectors.dtype)

    def backward(self, vectors: Tensor) -> Tensor:
        """The transposed Jacobians times a vector for each sample: [samples, outputs] to [samples, inputs]."""
        along = vectors.reshape(self.value.shape).to(self.value.dtype)
        (found,) = torch.autograd.grad(self.value, self.place, along, retain_graph=True)
        return found.flatten(1).to(vectors.dtype)


def _check_names(layers: Any, known: Mapping[str, nn.Module]) -> None:
    if isinstance(layers, str) or not all(isinstance(name, str) for name in layers):
        raise TypeError(f"layers must be a list of names of modules, got {layers!r}")
    for name in layers:
        if name not in known or list(layers).count(name) > 1:
            problem = "appears twice" if name in known else "is no module of this model"
            raise ValueError(f"layer {name!r} {problem}; layers are names from model.named_modules(), each once")


def _described(value: Any) -> str:
    return f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
