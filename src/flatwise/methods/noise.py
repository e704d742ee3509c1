"""Random displacements, the same on every replica and after every resume."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from flatwise import vectors as V
from flatwise.methods.dialogue import State
from flatwise.vectors import Vector


def gaussian(state: State, seed: int, count: int) -> Iterator[Vector]:
    """Independent standard normal vectors on what is displaced, `count` of them, by the seed and the step.

    Drawn on the device of the weights, so numbers differ between devices; torch's global random state stays as it is.
    """
    for sample in range(count):
        yield V.random_like(state.on_perturbed(state.weights), _seed(seed, state.step, sample), on_device=True)


def _seed(*numbers: int) -> int:
    """One seed of several: a hash, since torch's generator for the CPU goes by the lowest 32 bits alone."""
    return int.from_bytes(hashlib.blake2b(repr(numbers).encode(), digest_size=4).digest())
