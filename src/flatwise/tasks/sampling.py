"""What is drawn at random about the data: splits, subsets, label noise. Each has a generator of its own.

The global random state is neither read nor changed, and one setting does not change what another draws.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from zlib import crc32

import torch
from torch import Tensor


def generator(seed: int, purpose: str) -> torch.Generator:
    """A generator that depends on the seed and on what it is for, and on nothing else."""
    return torch.Generator().manual_seed((seed * 1_000_003 + crc32(purpose.encode())) % 2**63)


def permutation(size: int, seed: int, purpose: str) -> Tensor:
    """A random order of `size` things, [size] int64."""
    return torch.randperm(size, generator=generator(seed, purpose))


def subset(size: int, wanted: int | None, seed: int) -> Tensor:
    """Indices of `wanted` of `size` samples, drawn without replacement; all of them in order for None.

    With the same seed a smaller subset is contained in a larger one. Classes are drawn as they come, not balanced.

    Raises:
        ValueError: `wanted` is not between 1 and `size`.
    """
    if wanted is None:
        return torch.arange(size)
    if not 1 <= wanted <= size:
        raise ValueError(f"subset must be between 1 and the {size} training samples there are, not {wanted}")
    return permutation(size, seed, "subset")[:wanted]


def noisy_labels(targets: Tensor, fraction: float, num_classes: int, seed: int) -> Tensor:
    """The targets, [N] or [N, T], with a fraction of them (rounded) replaced by a class drawn uniformly among all classes.

    The true class can be drawn too: of 10 classes, a fraction of 0.2 makes about 18 % of the labels wrong. With the same seed
    the labels replaced by a smaller fraction are among those replaced by a larger one.
    """
    count = round(fraction * targets.numel())
    places = permutation(targets.numel(), seed, "label noise, places")[:count]
    drawn = torch.randint(num_classes, (targets.numel(),), generator=generator(seed, "label noise, classes"))
    return targets.flatten().index_copy(0, places, drawn[:count]).view_as(targets)


@contextmanager
def globally_seeded(seed: int) -> Generator[None]:
    """Seed torch's global CPU generator for the body, which knows no other; afterwards it is as before."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
