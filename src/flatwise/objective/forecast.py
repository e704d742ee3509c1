"""What a measurement will cost, before it starts: from evaluations on a few samples, in a straight line to the largest batch."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from flatwise import vectors as V
from flatwise.objective.batches import samples

if TYPE_CHECKING:
    from flatwise.objective.objective import Objective


@dataclass(frozen=True)
class Cost:
    """What one evaluation of a kind costs on one batch: `fixed + slope * samples`."""

    seconds: tuple[float, float]
    memory: tuple[float, float]


@dataclass(frozen=True)
class Forecast:
    """What evaluations will cost on this process. Seconds and bytes are estimates, as of a few samples.

    Attributes:
        parameters: the number of coordinates of a Vector.
        vector: bytes of a Vector; Lanczos holds up to 23 of them for one eigenpair.
        samples: of all batches.
        batches: how many, as they come.
        largest: samples of the largest one.
        gradient: the cost of a gradient, also of one of the two in a difference.
        product: the cost of a product by differentiating twice; None where that is impossible.
    """

    parameters: int
    vector: int
    samples: int
    batches: int
    largest: int
    gradient: Cost
    product: Cost | None

    def seconds(self, gradients: float = 1, products: float = 0) -> float:
        """Of so many gradients and exact products over all the data; without exact products one is two gradients."""
        if self.product is None:
            return self.seconds(gradients + 2 * products) if products else gradients * self._seconds(self.gradient)
        return gradients * self._seconds(self.gradient) + products * self._seconds(self.product)

    def memory(self, samples: int | None = None) -> float:
        """Bytes that the heavier kind takes at its peak for so many samples at once, by default the largest batch."""
        fixed, slope = (self.product or self.gradient).memory
        return fixed + slope * (self.largest if samples is None else samples)

    def micro_batch(self, max_memory: float) -> int | None:
        """How many samples at once stay below so many bytes; None if whole batches do.

        Raises:
            ValueError: not even one sample does.
        """
        if self.memory() <= max_memory:
            return None
        fixed, slope = (self.product or self.gradient).memory
        if fixed + slope > max_memory:
            raise ValueError(
                f"max_memory is {_bytes(max_memory)}, but one sample takes {_bytes(fixed + slope)}; differences of gradients "
                "(engine='differences') and activation checkpointing take less than differentiating twice"
            )
        return int((max_memory - fixed) / slope)

    def __str__(self) -> str:
        product = "two gradients" if self.product is None else f"about {self.seconds(0, 1):.2g} s"
        return (
            f"{self.samples:,} samples in {self.batches:,} batches of up to {self.largest:,}; {self.parameters:,} parameters "
            f"({_bytes(self.vector)} a vector). A gradient takes about {self.seconds():.2g} s, a product {product}; the largest "
            f"batch takes {_bytes(self.memory())} besides weights and data"
        )

    def _seconds(self, cost: Cost) -> float:
        fixed, slope = cost.seconds
        return self.batches * fixed + self.samples * slope


def forecast(objective: Objective) -> Forecast:
    """Evaluate two small parts of the first batch of this process, and count what the others hold."""
    twice = objective.preflight().twice
    with objective.evaluation():
        first = objective.first()
        sizes = [samples(batch) for batch in objective.data]
    weights = objective.weights
    direction = V.random_like(weights, objective.seed)
    trial = objective.uncut() if objective.in_step else objective.uncut().alone()
    parts = [] if first is None else [objective.beginning(first, size) for size in _trial_sizes(samples(first))]
    return Forecast(
        parameters=V.size(weights),
        vector=sum(t.numel() * t.element_size() for t in V.locals_of(V.present(weights))),
        samples=sum(sizes),
        batches=len(sizes),
        largest=max(sizes, default=0),
        gradient=_cost(trial, parts, lambda some: some.gradient()),
        product=_cost(trial, parts, lambda some: some.differentiated_twice(direction)) if twice else None,
    )


def _trial_sizes(whole: int) -> tuple[int, int]:
    """Two small sizes, up to a sixteenth and a quarter; both are the whole batch where that is small."""
    small = min(whole, max(2, whole // 16))
    return small, min(whole, max(2 * small, whole // 4))


def _cost(objective: Objective, parts: list[Any], evaluate: Callable[[Objective], object]) -> Cost:
    """Tensors of the shapes of weights, gradients mostly, are as large for any number of samples; the others grow with it."""
    if not parts:
        return Cost((0.0, 0.0), (0.0, 0.0))
    points = [(samples(part), *_measured(objective.on([part]), evaluate)) for part in parts]
    (less, *low), (more, *high) = points
    seconds, memory = (_line(less, a, more, b) for a, b in zip(low[:2], high[:2], strict=True))
    return Cost(seconds, (memory[0] + max(low[2], high[2]), memory[1]))


def _line(less: int, low: float, more: int, high: float) -> tuple[float, float]:
    """The intercept and slope of the line through two points, neither below zero."""
    slope = (high - low) / (more - less) if more > less else low / less
    slope = min(max(slope, 0.0), high / more)
    return high - slope * more, slope


def _measured(objective: Objective, evaluate: Callable[[Objective], object]) -> tuple[float, float, float]:
    """Seconds of one evaluation, bytes of its tensors, and bytes of those that have the shape of a weight."""
    with Allocated(t.shape for t in V.locals_of(V.present(objective.weights))) as allocated:
        evaluate(objective)
    started = time.perf_counter()
    evaluate(objective)
    _wait(objective.device)
    return time.perf_counter() - started, float(allocated.most), float(allocated.most_apart)


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.get_device_module(device).synchronize(device)


class Allocated(TorchDispatchMode):
    """Counts the bytes of all tensors that come into being and are alive at once, on any device, the backward pass included.

    What a kernel allocates for itself is not seen.

    Args:
        apart: tensors of these shapes are counted apart.
    """

    def __init__(self, apart: Iterable[torch.Size] = ()) -> None:
        super().__init__()
        self._apart = set(apart)
        self._now = {False: 0, True: 0}
        self._most = {False: 0, True: 0}
        self._alive: set[int] = set()

    @property
    def most(self) -> int:
        """The largest number of bytes at any moment."""
        return self._most[False]

    @property
    def most_apart(self) -> int:
        """The same for the tensors that are counted apart."""
        return self._most[True]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {_storage(t).data_ptr() for t in _tensors((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            if _storage(tensor).data_ptr() not in before | self._alive:
                self._count(_storage(tensor), tensor.shape in self._apart)
        return result

    def _count(self, storage: torch.UntypedStorage, apart: bool) -> None:
        address, size = storage.data_ptr(), storage.nbytes()
        if size:
            self._alive.add(address)
            self._now[apart] += size
            self._most[apart] = max(self._most[apart], self._now[apart])
            weakref.finalize(storage, self._release, address, size, apart)

    def _release(self, address: int, size: int, apart: bool) -> None:
        self._alive.discard(address)
        self._now[apart] -= size


def _tensors(tree: Any) -> list[Tensor]:
    return V.locals_of([leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)])


def _storage(tensor: Tensor) -> torch.UntypedStorage:
    return tensor.untyped_storage()


def _bytes(number: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} TB"
