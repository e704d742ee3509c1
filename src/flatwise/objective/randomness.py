"""Random numbers while an objective is evaluated: the same at every evaluation, and afterwards as if there had been none."""

from __future__ import annotations

import random
import sys
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from typing import Any

import torch


def set_seed(seed: int, places: Iterable[torch.device]) -> None:
    """Seed the CPU and the given devices alone; `torch.manual_seed` would reach devices whose state nobody has saved."""
    torch.set_rng_state(torch.Generator().manual_seed(seed).get_state())
    for device in places:
        if device.type != "cpu":
            state = torch.Generator(device).manual_seed(seed).get_state()
            torch.get_device_module(device).set_rng_state(state, device)


@contextmanager
def python_seeded(seed: int) -> Generator[None]:
    """Python's and NumPy's global generators seeded, for augmentations that draw from them; given back afterwards."""
    numpy: Any = sys.modules.get("numpy")  # whoever draws from it has imported it
    state, numpy_state = random.getstate(), numpy and numpy.random.get_state()
    random.seed(seed)
    if numpy is not None:
        numpy.random.seed(seed % 2**32)
    try:
        yield
    finally:
        random.setstate(state)
        if numpy is not None and numpy_state is not None:
            numpy.random.set_state(numpy_state)
