"""A fixed random subset of the samples of some data, gathered into few batches."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from flatwise.objective.batches import chosen_rows, samples


def drawn(data: Iterable[Any], count: int, seed: int) -> tuple[list[Any], int]:
    """`count` random samples in the order of the data, in batches as large as those of the data, and how many there were.

    One pass: every sample draws a number, and those with the smallest are kept. Batches whose tensors do not fit together, such
    as sequences padded to other lengths, stay apart.

    Raises:
        ValueError: there are fewer samples.
    """
    generator = torch.Generator().manual_seed(seed)
    kept: list[tuple[Tensor, Any]] = []
    limit, total, largest = torch.inf, 0, 0
    for batch in data:
        total, largest = total + samples(batch), max(largest, samples(batch))
        kept.append(_below(limit, torch.rand(samples(batch), generator=generator, dtype=torch.float64), batch))
        limit = _smallest([numbers for numbers, _ in kept], count)
    if total < count:
        raise ValueError(f"a subset of {count} samples was asked for, but there are only {total}")
    parts = [_below(limit, numbers, rows)[1] for numbers, rows in kept if bool((numbers <= limit).any())]
    return list(_joined(parts, largest)), total


def _below(limit: float, numbers: Tensor, batch: Any) -> tuple[Tensor, Any]:
    """Those of the samples whose numbers are not above the limit, in storage of their own."""
    places = (numbers <= limit).nonzero().flatten()
    return numbers[places], chosen_rows(batch, places)


def _smallest(numbers: Sequence[Tensor], count: int) -> float:
    """The largest of the `count` smallest."""
    every = torch.cat(list(numbers))
    return float(every.kthvalue(count).values) if len(every) >= count else torch.inf


def _joined(parts: Iterable[Any], size: int) -> Iterator[Any]:
    """The parts, several of them put together up to a size."""
    group: list[Any] = []
    for part in parts:
        if group and sum(map(samples, group)) + samples(part) > size:
            yield from _together(group)
            group = []
        group.append(part)
    yield from _together(group)


def _together(group: list[Any]) -> list[Any]:
    try:
        return [_concatenated(group, [samples(part) for part in group])]
    except RuntimeError:  # shapes that do not fit
        return group


def _concatenated(parts: Sequence[Any], counts: Sequence[int]) -> Any:
    """What has as many entries as its part has samples is put together; of the rest, which all share, the first counts."""
    first = parts[0]
    if isinstance(first, Tensor):
        alone = not all(t.ndim and len(t) == n for t, n in zip(parts, counts, strict=True))
        return first if alone else torch.cat(cast("list[Tensor]", parts))
    if isinstance(first, Mapping):
        whole: Any = copy.copy(cast(Any, first))
        for key in first:
            whole[key] = _concatenated([part[key] for part in parts], counts)
        return whole
    if not isinstance(first, (tuple, list)):
        return first
    if _are_lists_of_samples(parts, counts):
        return type(first)(entry for part in parts for entry in part)
    columns = [_concatenated(column, counts) for column in zip(*parts, strict=True)]
    return type(first)(*columns) if hasattr(first, "_fields") else type(first)(columns)


def _are_lists_of_samples(parts: Sequence[Any], counts: Sequence[int]) -> bool:
    """Whether they hold an entry for each sample, such as texts, and no tensors."""
    alike = all(len(part) == n for part, n in zip(parts, counts, strict=True))
    return alike and not any(isinstance(entry, (Tensor, Mapping, tuple, list)) for part in parts for entry in part)
