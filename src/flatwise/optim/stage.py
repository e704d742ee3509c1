"""Where a dialogue takes place: moves the weights, looks after what the model carries besides, and puts all of it back."""

from __future__ import annotations

import weakref
from collections.abc import Generator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from flatwise import modules
from flatwise import vectors as V
from flatwise.methods import At
from flatwise.modules import Buffers, Modes, RandomState
from flatwise.optim.backup import Backup
from flatwise.optim.replicas import Replicas
from flatwise.vectors import Vector


class Stage:
    """One dialogue's surroundings. `close` may be called at any time, also twice, and always leaves the weights exact.

    Attributes:
        displacement_norm: of the last place that was no probe.
        reach: how far the present place is from the weights; where it is not finite, the weights have not moved.
        last_counts: whether the last evaluation is the one whose loss is the step's, and in which buffers advanced.
        repeatable: whether the first evaluation drew no random numbers and was the same on all replicas.
    """

    def __init__(
        self,
        parameters: list[Tensor],
        ratios: Sequence[float],
        model: nn.Module | None,
        replicas: Replicas,
        backup: Backup,
        fresh_noise: bool,
    ) -> None:
        self.parameters = parameters
        self.ratios = ratios
        self.model = model
        self.replicas = replicas
        self.fresh_noise = fresh_noise
        self.buffers_before = Buffers(model)
        self.last_counts = False
        self.repeatable = False
        self._backup = backup
        self._devices = modules.devices(parameters)
        self.displacement_norm: Tensor | float = 0.0
        self.reach: Tensor | float = 0.0
        self._buffers_after: Buffers | None = None
        self._advanced_at_weights = False
        self._random_before = RandomState(self._devices)
        self._random_after: RandomState | None = None
        self._closed = False
        self._last = KnownNorm()

    @contextmanager
    def visit(self, at_weights: bool, probe: bool) -> Generator[None]:
        """Around the user's forward and backward at one place, and around the displacement to it."""
        self._replay_random()
        buffers = self._buffers_for(at_weights, probe)
        with self.replicas.evaluating(probe), self._evaluation_mode(probe):
            try:
                yield
            finally:
                self._return()
        self._settle_random()
        self._settle_buffers(at_weights, buffers)

    @torch.no_grad()
    def displace(self, at: At) -> None:
        """Move the weights there, in place; leaving `visit` moves them back.

        After an overflow there is no such place. The weights stay, since a forward at NaN may raise before the step is skipped.
        """
        self.reach = 0.0
        if at.vector is None:
            return
        restricted = at.by_group and not all(self.ratios)
        vector = V.restrict(at.vector, [r > 0 for r in self.ratios]) if restricted else at.vector
        norm = self._last.of(vector)
        factor = at.length * V.reciprocal(norm) if at.normalised else at.length
        self.reach = reach = self._length_of(vector, norm, factor, at.by_group)
        self._backup.save(self.parameters, vector)
        self._add(vector, factor, at.by_group, torch.isfinite(reach))
        self._forget_copies()
        if not at.probe:
            self.displacement_norm = reach

    def norm(self, vector: Vector) -> Tensor:
        """The norm of a gradient or a direction. That of the last one is known: going along it does not compute it again."""
        return self._last.of(vector)

    def clear_gradients(self) -> None:
        """Start an evaluation with nothing left of the one before."""
        for p in self.parameters:
            p.grad = None

    def set_gradients(self, direction: Vector) -> None:
        """Leave the direction where the base optimizer, clipping and a scaler look for it."""
        for p, d in zip(self.parameters, direction, strict=True):
            p.grad = d

    def close(self, succeeded: bool) -> None:
        """Weights as before; buffers and random state as after one plain pass, or as before where the step failed."""
        if self._closed:
            return
        self._return()
        self.replicas.reshard()  # the base optimizer is about to move the shards
        self._backup.forget()
        if not succeeded:
            self.buffers_before.restore()
        if self._random_after is not None:
            self._random_after.restore()
        self._closed = True

    # --- weights ------------------------------------------------------------------------------------------------------

    def _add(self, vector: Vector, factor: Tensor | float, by_group: bool, reachable: Tensor) -> None:
        ratios = self._distinct_ratios() if by_group else [1.0]
        for ratio in ratios:
            part = V.restrict(vector, [r == ratio for r in self.ratios]) if len(ratios) > 1 else vector
            V.add_where_(reachable, self.parameters, part, factor if ratio == 1 else factor * ratio)

    def _length_of(self, vector: Vector, norm: Tensor, factor: Tensor | float, by_group: bool) -> Tensor:
        ratios = self._distinct_ratios() if by_group else [1.0]
        if ratios in ([], [1.0]):
            return norm * factor
        parts = [V.norm(V.restrict(vector, [r == ratio for r in self.ratios])) * ratio for ratio in ratios]
        return V.norm(V.scale(parts, factor))

    def _distinct_ratios(self) -> list[float]:
        return sorted({r for r in self.ratios if r > 0})

    @torch.no_grad()
    def _return(self) -> None:
        if self._backup.restore():
            self._forget_copies()

    def _forget_copies(self) -> None:
        """Drop what was made of the weights before they moved: FSDP2's gathered shards, autocast's casts to lower precision."""
        self.replicas.reshard()
        torch.clear_autocast_cache()

    # --- modes, buffers, random numbers, synchronisation --------------------------------------------------------------

    @contextmanager
    def _evaluation_mode(self, probe: bool) -> Generator[None]:
        if not probe:
            yield
            return
        with Modes(self.model).held(training=False):
            yield

    def _buffers_for(self, at_weights: bool, probe: bool) -> Buffers | None:
        """The buffers to go back to after this evaluation; None where it is the one in which they advance.

        That is the one at the weights, else the first that is not a probe.
        """
        supersedes = at_weights and not self._advanced_at_weights
        if probe or not (self._buffers_after is None or supersedes):
            return self._buffers_after or self.buffers_before
        if self._buffers_after is not None:
            self.buffers_before.restore()
        return None

    def _settle_buffers(self, at_weights: bool, buffers: Buffers | None) -> None:
        self.last_counts = buffers is None
        if buffers is not None:
            buffers.restore()
            return
        self._buffers_after = self.buffers_before.again()
        self._advanced_at_weights = at_weights

    def _replay_random(self) -> None:
        if self._random_after is None:
            return
        if self.fresh_noise:
            torch.manual_seed(int(torch.randint(2**62, ())))
        else:
            self._random_before.restore()

    def _settle_random(self) -> None:
        if self._random_after is None:
            self._random_after = RandomState(self._devices)
            self.repeatable = not self.replicas.apart and self._random_before == self._random_after


class KnownNorm:
    """The norm of one vector, known again only while its very tensors are unchanged. Keeps none of them alive.

    A sharded tensor does not tell when it was written into, so it is never known again.
    """

    def __init__(self) -> None:
        self._marks: list[tuple[weakref.ref[Tensor], int] | None] = []
        self._norm: Tensor | None = None

    def of(self, vector: Vector) -> Tensor:
        """The norm of the vector, computed unless it is the one before."""
        if self._norm is None or not self._same(vector):
            self._norm = V.norm(vector)
            self._marks = [None if t is None else (weakref.ref(t), t._version) for t in vector]
        return self._norm

    def _same(self, vector: Vector) -> bool:
        return not any(V.is_sharded(t) for t in V.present(vector)) and all(
            t is mark if t is None or mark is None else mark[0]() is t and mark[1] == t._version
            for t, mark in zip(vector, self._marks, strict=True)
        )
