"""Means over batches, and over the processes that share them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from flatwise import vectors as V
from flatwise.modules import data_parallel, sharded

Group: TypeAlias = Any
"""A `torch.distributed.ProcessGroup`."""


class Part(NamedTuple):
    """A batch of this process, what it counts in the mean, and a factor of its loss."""

    batch: Any
    weight: float
    share: float = 1.0


class Mean:
    """A weighted mean of lists of tensors, kept in at least float32 as it runs.

    Args:
        like: what the values are like: their shapes, dtypes and devices.
    """

    def __init__(self, like: Sequence[Tensor]) -> None:
        self.total = 0.0
        self._like = like
        self._mean: list[Tensor] = []

    def add(self, values: Sequence[Tensor], weight: float) -> None:
        """Take up values of this weight, > 0. In place; the first values are copied, as they may be aliased."""
        self.total += weight
        fresh = not self._mean
        wide = [v.detach().to(torch.promote_types(v.dtype, torch.float32), copy=fresh) for v in values]
        if fresh:
            self._mean = wide
        else:
            torch._foreach_lerp_(V.locals_of(self._mean), V.locals_of(wide), weight / self.total)

    def over(self, groups: Sequence[Group]) -> list[Tensor]:
        """The mean over all processes of the groups, by one reduction for each group."""
        if groups:
            self._reduce(groups)
        if not self.total:
            raise ValueError("the data holds no samples; it must give at least one batch at every pass over it")
        return self._mean

    def _reduce(self, groups: Sequence[Group]) -> None:
        if not self._mean:
            self._mean = [torch.zeros_like(t, dtype=torch.promote_types(t.dtype, torch.float32)) for t in self._like]
        mean = V.locals_of(self._mean)
        flat = _flattened(mean, self.total, self._like)
        for group in groups:
            torch.distributed.all_reduce(flat, group=group)
        *parts, total = flat.split([*(t.numel() for t in mean), 1])
        self.total = float(total)
        if self.total:
            torch._foreach_copy_(mean, [(part / total).view_as(t) for part, t in zip(parts, mean, strict=True)])


def _flattened(mean: Sequence[Tensor], total: float, like: Sequence[Tensor]) -> Tensor:
    """Sums in place of means, and their weight, in one tensor of a dtype on which all processes agree."""
    dtype, device = torch.float32, mean[0].device
    for t in like:
        dtype = torch.promote_types(dtype, t.dtype)
    flat = torch.cat([t.reshape(-1).to(device, dtype) for t in mean] + [torch.ones(1, device=device, dtype=dtype)])
    return flat * total


# --- the processes ----------------------------------------------------------------------------------------------------


def groups_of(model: nn.Module, group: Group | Literal["auto"] | None) -> list[Group]:
    """The process groups over which the data is shared: given, or those of DistributedDataParallel or of the mesh of FSDP2.

    Along the dimensions of a mesh over which the data is not split every process counts alike, so the mean is the same.
    """
    if isinstance(group, str) and group != "auto":
        raise ValueError(f'group must be a process group, "auto" or None, got {group!r}')
    if group is None and sharded(model):
        raise ValueError("group=None: no process can evaluate a sharded model alone; leave group='auto'")
    found = _groups_found(model) if isinstance(group, str) else [group]
    return [g for g in found if g is not None and torch.distributed.get_world_size(g) > 1]


def _groups_found(model: nn.Module) -> list[Group]:
    ddp = data_parallel(model)
    if ddp is not None:
        return [ddp.process_group]
    if not sharded(model):
        _warn_if_alone(model)
        return []
    mesh: Any = next(getattr(p, "device_mesh") for p in model.parameters() if V.is_sharded(p))  # noqa: B009
    return [mesh.get_group(i) for i in range(mesh.ndim)]


def _warn_if_alone(model: nn.Module) -> None:
    """Where there are other processes, unless the parameters are spread over them (tensor parallelism) and see the same data."""
    several = torch.distributed.is_available() and torch.distributed.is_initialized()
    if several and torch.distributed.get_world_size() > 1 and not any(V.is_sharded(p) for p in model.parameters()):
        warnings.warn(
            f"torch.distributed runs {torch.distributed.get_world_size()} processes, but the model is neither a "
            "DistributedDataParallel nor sharded, so each process measures its own data alone: pass "
            "group=torch.distributed.group.WORLD for the mean over all of them, or group=None for this process alone",
            UserWarning,
            stacklevel=5,
        )


def in_step(parts: Iterable[Part], groups: Sequence[Group], device: torch.device) -> Iterator[Part]:
    """The parts of this process, as many as any process has, for models whose processes must call each other in step.

    Each counts with the weight of all processes together, and its loss gets the factor which makes the mean over processes
    the mean over samples. A process with fewer parts repeats its last one with weight 0.
    """
    own, last = iter(parts), None
    processes = size_of(groups)
    while True:
        part = next(own, None)
        last = last if part is None else part
        weight = 0.0 if part is None else part.weight
        going, without, total = _sums([part is not None, last is None, weight], groups, device)
        if not going:
            return
        if last is None or without:
            raise ValueError("one of the processes has no samples at all; give every process at least one batch")
        yield Part(last.batch, total, weight * processes / total)


def size_of(groups: Sequence[Group]) -> int:
    """The number of processes."""
    return math.prod(torch.distributed.get_world_size(group) for group in groups)


def mean_over(groups: Sequence[Group], value: Tensor) -> Tensor:
    """The plain mean of a number over the processes."""
    value = value.detach().clone()
    for group in groups:
        torch.distributed.all_reduce(value, group=group)
        value = value / torch.distributed.get_world_size(group)
    return value


def all_agree(groups: Sequence[Group], yes: bool, device: torch.device) -> bool:
    """Whether all processes say yes."""
    return not _sums([not yes], groups, device)[0]


def _sums(numbers: Sequence[float], groups: Sequence[Group], device: torch.device) -> list[float]:
    total = torch.tensor(numbers, dtype=torch.float32, device=device)
    for group in groups:
        torch.distributed.all_reduce(total, group=group)
    return total.tolist()
