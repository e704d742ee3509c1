"""The data an objective takes: batches that can be gone through again and again, counted by samples, cut into smaller ones."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeGuard, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, SequentialSampler

from flatwise.modules import RandomState
from flatwise.objective.randomness import python_seeded, set_seed


def samples(batch: Any) -> int:
    """The number of samples in a batch: the leading size of the first tensor in nested tuples, lists and mappings.

    Raises:
        ValueError: there is no tensor with a leading size in it.
    """
    first = next(tensors(batch), None)
    if first is None or first.ndim == 0:
        raise ValueError(f"no tensor with a leading size in a batch of type {type(batch).__name__}; pass weight=...")
    return first.shape[0]


def tensors(batch: Any) -> Iterator[Tensor]:
    """The tensors in nested tuples, lists and mappings."""
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for part in batch.values():
            yield from tensors(part)
    elif isinstance(batch, (tuple, list)):
        for part in batch:
            yield from tensors(part)


def slices(batch: Any, size: int) -> Iterator[Any]:
    """The batch in parts of at most `size` samples: what has as many entries as the batch has samples is cut, the rest shared."""
    count = samples(batch)
    for start in range(0, count, size):
        yield batch if size >= count else _part(batch, count, slice(start, start + size))


def chosen_rows(batch: Any, places: Tensor) -> Any:
    """The batch with those of its samples alone that are at some places, a tensor of integers; tensors are copied."""
    return _part(batch, samples(batch), places)


def _part(batch: Any, count: int, where: slice | Tensor) -> Any:
    if isinstance(batch, Tensor):
        return batch[where] if batch.ndim and len(batch) == count else batch
    if isinstance(batch, Mapping):
        part: Any = copy.copy(cast(Any, batch))  # its own type: a BatchEncoding, an OrderedDict
        for key, value in batch.items():
            part[key] = _part(value, count, where)
        return part
    if _is_plain(batch, count):
        return batch[where] if isinstance(where, slice) else _of_kind(batch, [batch[i] for i in where.tolist()])
    if isinstance(batch, (tuple, list)):
        parts = [_part(value, count, where) for value in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
    return batch


def _of_kind(sequence: Any, entries: list[Any]) -> Any:
    return type(sequence)(entries)


def _is_plain(batch: Any, count: int) -> TypeGuard[Sequence[Any]]:
    """Whether it is a list with an entry for each sample, such as texts, without tensors."""
    return isinstance(batch, (tuple, list)) and len(batch) == count and next(tensors(batch), None) is None


def repeatable(data: Any, seed: int) -> Iterable[Any]:
    """The data as something that gives the same batches at every pass.

    Raises:
        TypeError: it can be gone through only once, is a single batch, or is no iterable of batches.
    """
    if isinstance(data, Tensor) or not isinstance(data, Iterable):
        raise TypeError(
            f"data must be a list of batches or a DataLoader, got {type(data).__name__}; wrap a batch as [batch]"
        )
    if _is_one_batch(data):
        raise TypeError("data must be a list of batches, but this is one batch; pass [batch], such as [(x, y)]")
    if isinstance(data, Iterator):
        raise TypeError("data is a one-shot iterator, which is empty at the second pass; pass list(data) instead")
    return _frozen(data, seed) if isinstance(data, DataLoader) and _may_shuffle(data) else data


def _is_one_batch(data: Any) -> bool:
    """A mapping, or samples with as many targets of another kind. (Tensors that are alike may be batches of tokens.)"""
    if not isinstance(data, (tuple, list)):
        return isinstance(data, Mapping)
    entries = cast("list[Any]", data)
    if len(entries) != 2 or not all(isinstance(t, Tensor) and t.ndim for t in entries):
        return False
    x, y = entries
    return len(x) == len(y) and (y.ndim < x.ndim or x.is_floating_point() > y.is_floating_point())


def _may_shuffle(loader: DataLoader[Any]) -> bool:
    """Whether the order may differ from pass to pass: every sampler but those known to keep it."""
    if isinstance(loader.dataset, IterableDataset):
        return False
    batches = loader.batch_sampler
    sampler = loader.sampler if batches is None else getattr(batches, "sampler", batches)
    if isinstance(sampler, DistributedSampler):
        return sampler.shuffle
    return not isinstance(sampler, (SequentialSampler, list, tuple, range))


def _frozen(loader: DataLoader[Any], seed: int) -> list[Any]:
    warnings.warn("the DataLoader shuffles: its batches are listed once and kept in memory", UserWarning, stacklevel=4)
    random = RandomState()
    try:
        with generator_kept(loader), python_seeded(seed):
            set_seed(seed, [])
            return list(loader)
    finally:
        random.restore()


@contextmanager
def generator_kept(data: Iterable[Any]) -> Generator[None]:
    """Leave a DataLoader's own random generator as it was: going through the loader draws from it."""
    generator = getattr(data, "generator", None)
    state = generator.get_state() if isinstance(generator, torch.Generator) else None
    try:
        yield
    finally:
        if isinstance(generator, torch.Generator) and state is not None:
            generator.set_state(state)
