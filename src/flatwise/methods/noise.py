"""Random displacements, the same on every replica and after every resume."""

from __future__ import annotations

from collections.abc import Iterator

from flatwise import vectors as V
from flatwise.methods.dialogue import State
from flatwise.vectors import Vector

_SAMPLES = 4096


def gaussian(state: State, seed: int, count: int) -> Iterator[Vector]:
    """Independent standard normal vectors on what is displaced, `count` of them, by the seed and the step.

    Drawn on the device of the weights, so numbers differ between devices; torch's global random state stays as it is.
    """
    for sample in range(count):
        place = ((seed * 2**31 + state.step) * _SAMPLES + sample) % 2**42
        yield V.random_like(state.on_perturbed(state.weights), place, on_device=True)
