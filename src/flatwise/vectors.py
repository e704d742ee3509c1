"""Vectors in parameter space, and their algebra.

A `Vector` is a list of tensors, or None, in parameter order: the one currency for weights, gradients, displacements,
eigenvectors and Hessian-vector products. None stands for a parameter that takes no part; it counts as zero and stays None.
This module is the only place that knows about sharded tensors (DTensor): dots and norms are global over all shards.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

Vector: TypeAlias = list[Tensor | None]
Scalar: TypeAlias = float | Tensor

_PLAIN = (Tensor, torch.nn.Parameter)
_HALF = (torch.float16, torch.bfloat16)

LARGE, PIECE = 2**20, 2**14
"""Numbers in a tensor from which on sums over it are taken piece by piece on CPUs, and in a piece."""


def present(vector: Iterable[Tensor | None]) -> list[Tensor]:
    """The tensors of a vector, without its Nones."""
    return [t for t in vector if t is not None]


def pairs(a: Sequence[Tensor | None], b: Sequence[Tensor | None]) -> tuple[list[Tensor], list[Tensor]]:
    """The tensors of `a` and `b` at the places where both have one."""
    both = [(s, t) for s, t in zip(a, b, strict=True) if s is not None and t is not None]
    return [s for s, _ in both], [t for _, t in both]


def each(function: Callable[[list[Tensor]], Sequence[Tensor]], vector: Sequence[Tensor | None]) -> Vector:
    """`function` applied to the tensors of a vector; None stays None."""
    results = iter(function(present(vector)))
    return [None if t is None else next(results) for t in vector]


def clone(vector: Sequence[Tensor | None]) -> Vector:
    """A copy with storage of its own, without autograd history."""
    return [None if t is None else t.detach().clone() for t in vector]


def owned(vector: Sequence[Tensor | None]) -> Vector:
    """The vector, with a copy in place of every tensor that something else may overwrite: a bucket, or a CUDA graph's output."""
    alone = _holders(torch.empty(1))
    return [t if t is None or not _is_reused(t, alone) else t.detach().clone() for t in vector]


def zeros_like(vector: Sequence[Tensor | None]) -> Vector:
    """Zeros of the same shapes, dtypes, devices and shards."""
    return [None if t is None else torch.zeros_like(t, requires_grad=False) for t in vector]


def restrict(vector: Sequence[Tensor | None], places: Sequence[bool]) -> Vector:
    """The vector with None wherever `places` is False."""
    return [t if keep else None for t, keep in zip(vector, places, strict=True)]


# --- linear algebra ---------------------------------------------------------------------------------------------------


def scale(vector: Sequence[Tensor | None], factor: Scalar) -> Vector:
    """`factor * vector`; a tensor factor is 0-d and costs no host synchronisation."""
    return each(lambda ts: _multiplied(ts, factor), vector)


def scale_(vector: Sequence[Tensor | None], factor: Scalar) -> None:
    """`vector *= factor`, in place."""
    tensors = locals_of(present(vector))
    if _are_alike(tensors):
        torch._foreach_mul_(tensors, _like(factor, tensors[0]))
    else:
        for t in tensors:
            t.copy_(_product(t, factor))


def add(a: Sequence[Tensor | None], b: Sequence[Tensor | None], factor: Scalar = 1.0) -> Vector:
    """`a + factor * b`; where one of them is None, the other counts alone."""
    tilted = scale(b, factor)
    return [t if s is None else s if t is None else s + t for s, t in zip(a, tilted, strict=True)]


def add_(a: Sequence[Tensor | None], b: Sequence[Tensor | None], factor: Scalar = 1.0) -> None:
    """`a += factor * b`, in place, without a scaled copy of `b`; where either is None nothing happens."""
    into, what = pairs(a, b)
    into, what = locals_of(into), locals_of(what)
    if not _are_alike(into):
        for t, s in zip(into, what):
            t.add_(_product(s, factor))
    elif isinstance(factor, Tensor):
        torch._foreach_addcmul_(into, what, [_like(factor, into[0])] * len(into))
    else:
        torch._foreach_add_(into, what, alpha=factor)


def add_where_(condition: Tensor, a: Sequence[Tensor | None], b: Sequence[Tensor | None], factor: Scalar) -> None:
    """`a += factor * b` where the condition, a 0-d tensor, holds; else `a` stays, also where `b` or the factor is not finite.

    On the CPU the answer is known. On a device the host does not wait for it, and a share of `b` at a time is copied.
    """
    if condition.device.type != "cpu":
        _add_where_unread_(condition, a, b, factor)
    elif condition:
        add_(a, b, factor)


def accumulate_(a: Vector, b: Sequence[Tensor | None], factor: Scalar = 1.0) -> None:
    """`a += factor * b`, in place where `a` has a tensor; where it has none, `factor * b` takes the place."""
    absent = [s is None for s in a]
    add_(a, b, factor)
    if any(absent):
        a[:] = [s if t is None else t for s, t in zip(a, scale(restrict(b, absent), factor), strict=True)]


def elementwise(function: Callable[..., Tensor], *vectors: Sequence[Tensor | None]) -> Vector:
    """`function` of the entries at the same place, as with `torch.mul`; None where any of the vectors has None."""
    return [_elementwise(function, ts) if all(t is not None for t in ts) else None for ts in zip(*vectors, strict=True)]


def copy_(into: Sequence[Tensor | None], source: Sequence[Tensor | None]) -> None:
    """`into[:] = source`, in place, wherever `source` has a tensor."""
    targets, sources = pairs(into, source)
    if targets:
        torch._foreach_copy_(locals_of(targets), locals_of(sources))


def dot(a: Sequence[Tensor | None], b: Sequence[Tensor | None]) -> Tensor:
    """The inner product, a 0-d tensor, accumulated in at least float32 and summed over all shards."""
    left, right = pairs(a, b)
    return _sum([_flat_dot(s, t) for s, t in zip(locals_of(left), locals_of(right))], left, a)


def norm(vector: Sequence[Tensor | None]) -> Tensor:
    """The Euclidean norm, a 0-d tensor, accumulated in at least float32 and global over all shards."""
    tensors = present(vector)
    if not tensors or any(is_sharded(t) for t in tensors):
        return dot(vector, vector).sqrt()
    tensors = [piece for t in tensors for piece in _pieces(t)]
    widest = _widest(tensors)
    narrow = any(t.dtype != widest for t in tensors)
    return torch.linalg.vector_norm(_stack(torch._foreach_norm(tensors, 2, dtype=widest if narrow else None)))


def unit(vector: Sequence[Tensor | None]) -> Vector:
    """The vector divided by its norm; a zero vector stays zero. Whole numbers, of quantised weights, do not count."""
    return scale(vector, reciprocal(norm([t for t in vector if t is not None and t.is_floating_point()])))


def project_out(vector: Sequence[Tensor | None], direction: Sequence[Tensor | None]) -> Vector:
    """The part of `vector` orthogonal to the unit vector `direction`."""
    return add(vector, direction, -dot(vector, direction))


def cosine(a: Sequence[Tensor | None], b: Sequence[Tensor | None]) -> Tensor:
    """The cosine of the angle between two vectors, 0 where one of them is zero."""
    return dot(a, b) * reciprocal(norm(a)) * reciprocal(norm(b))


def reciprocal(x: Tensor) -> Tensor:
    """`1 / x`, and 0 where that or x is not finite: a zero gradient is not a NaN."""
    inverse = 1 / x
    return torch.where(torch.isfinite(inverse), inverse, torch.zeros_like(inverse))


def size(vector: Sequence[Tensor | None]) -> int:
    """The number of coordinates, over all shards."""
    return sum(t.numel() for t in present(vector))


def random_like(vector: Sequence[Tensor | None], seed: int, *, on_device: bool = False) -> Vector:
    """A standard normal vector that depends on `seed` and each tensor's place and full shape alone, not on sharding.

    Drawn on the CPU, or where the tensors are: that is faster for noise at every step, but numbers differ between devices.
    """
    return [None if t is None else _normal_like(t, seed, i, on_device) for i, t in enumerate(vector)]


# --- what tensors are made of -----------------------------------------------------------------------------------------


def epsilon(vector: Sequence[Tensor | None]) -> float:
    """The machine epsilon of the coarsest dtype in the vector."""
    return max((torch.finfo(t.dtype).eps for t in present(vector)), default=torch.finfo(torch.float32).eps)


def _add_where_unread_(
    condition: Tensor, a: Sequence[Tensor | None], b: Sequence[Tensor | None], factor: Scalar
) -> None:
    if isinstance(factor, Tensor):
        factor = torch.nan_to_num(factor, nan=0.0, posinf=0.0, neginf=0.0)  # zero times NaN is NaN
    into, what = map(locals_of, pairs(a, b))
    known = {device: condition.to(device) for device in {s.device for s in what}}
    for some in _shares([s.numel() for s in what]):
        add_(into[some], [torch.where(known[s.device], s, 0.0) for s in what[some]], factor)


def _shares(sizes: Sequence[int]) -> Iterator[slice]:
    """Runs of tensors, each of an eighth of all numbers or less, or of a single tensor."""
    first, total = 0, 0
    for i, size in enumerate(sizes):
        total += size
        if i > first and 8 * total > sum(sizes):
            yield slice(first, i)
            first, total = i, size
    if sizes:
        yield slice(first, len(sizes))


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _are_alike(tensors: Sequence[Tensor]) -> bool:
    """Whether one call does for all: they are on one device, and in one dtype that can hold any factor."""
    return len({(t.device, t.dtype) for t in tensors}) == 1 and tensors[0].dtype not in _HALF


def _like(factor: Scalar, t: Tensor) -> Any:
    """The factor where `t` is, in its dtype: a wider one would promote a 0-d tensor."""
    return factor.to(t.device, t.dtype) if isinstance(factor, Tensor) else factor


def _multiplied(tensors: list[Tensor], factor: Scalar) -> Sequence[Tensor]:
    local = locals_of(tensors)
    if _are_alike(local):
        products = torch._foreach_mul(local, _like(factor, local[0]))
    else:
        products = [_product(t, factor).to(t.dtype) for t in local]
    return [_split_like(product, t) for product, t in zip(products, tensors, strict=True)]


def _product(t: Tensor, factor: Scalar) -> Tensor:
    """`factor * t`, of half precision in float32, to be rounded once by the caller.

    A length divided by the norm of a tiny gradient is more than float16 can hold, and bfloat16 rounds it by up to 0.4 %.
    """
    wide = t.float() if t.dtype in _HALF else t
    return wide * _like(factor, wide)


def _flat_dot(a: Tensor, b: Tensor) -> Tensor:
    dtype = _widest((a, b))
    dots = [torch.dot(s, t) for s, t in zip(_pieces(_flat(a, dtype)), _pieces(_flat(b, dtype)), strict=True)]
    return dots[0] if len(dots) == 1 else torch.stack(dots).sum()


def _pieces(t: Tensor) -> Sequence[Tensor]:
    """The tensor, or parts of it where one sum would drift: on CPUs that of 10^8 squares in float32 is a percent too small."""
    if t.device.type != "cpu" or t.dtype == torch.float64 or t.numel() <= LARGE:
        return [t]
    return t.detach().reshape(-1).split(PIECE)


def _flat(t: Tensor, dtype: torch.dtype) -> Tensor:
    flat = (t.detach() if t.requires_grad else t).reshape(-1)
    return flat if flat.dtype == dtype else flat.to(dtype)


def _sum(values: Sequence[Tensor], owners: Sequence[Tensor], like: Sequence[Tensor | None]) -> Tensor:
    """Add up one value per tensor; where the tensors are sharded, also over their shards."""
    if not values:
        first = next(iter(present(like)), None)
        return torch.zeros((), device=None if first is None else first.device)
    if not any(is_sharded(t) for t in owners):
        return _stack(values).sum()
    return _sum_over_shards(values, owners)


def _sum_over_shards(values: Sequence[Tensor], owners: Sequence[Tensor]) -> Tensor:
    """One reduction for all tensors that are split in the same way, not one for each tensor."""
    import torch.distributed as dist

    alike: dict[tuple[Any, ...], list[Tensor]] = {}
    for value, owner in zip(values, owners, strict=True):
        alike.setdefault(_splitting_groups(owner), []).append(value)
    sums: list[Tensor] = []
    for groups, members in alike.items():
        total = _stack(members).sum()
        for group in groups:
            dist.all_reduce(total, group=group)
        sums.append(total)
    return _stack(sums).sum()


def _splitting_groups(t: Tensor) -> tuple[Any, ...]:
    """The process groups over which a tensor is split; replicated mesh dimensions hold the same values and do not count."""
    if not is_sharded(t):
        return ()
    sharded = cast("DTensor", t)
    if any(p.is_partial() for p in sharded.placements):
        raise ValueError("a vector holds a DTensor with a partial placement; redistribute it before taking norms")
    # Every placement that is no replication splits: FSDP2 over tensor parallelism has one of its own, which is no `Shard`.
    return tuple(sharded.device_mesh.get_group(i) for i, p in enumerate(sharded.placements) if not p.is_replicate())


def _stack(scalars: Sequence[Tensor]) -> Tensor:
    device, dtype = scalars[0].device, _widest(scalars)
    return torch.stack([s if s.device == device and s.dtype == dtype else s.to(device, dtype) for s in scalars])


def _widest(tensors: Sequence[Tensor]) -> torch.dtype:
    dtype = torch.float32
    for other in {t.dtype for t in tensors}:
        dtype = torch.promote_types(dtype, other)
    return dtype


def is_sharded(t: Tensor) -> bool:
    """Whether `t` is a DTensor, asked without importing the distributed package."""
    return type(t) not in _PLAIN and hasattr(t, "device_mesh")


def _is_reused(t: Tensor, alone: int) -> bool:
    """Whether others hold its storage, or CUDA graphs are replayed here: then its memory goes back to their pool."""
    if type(t) not in _PLAIN or t.layout != torch.strided:
        return False
    return _holders(t) > alone or (t.is_cuda and "torch._inductor.cudagraph_trees" in sys.modules)


def _holders(t: Tensor) -> int:
    return torch._C._storage_Use_Count(t.untyped_storage()._cdata)


def locals_of(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The part of each tensor that this process holds, sharing its storage: elementwise work needs no communication."""
    return [cast("DTensor", t).to_local() if is_sharded(t) else t for t in tensors]


def laid_out_like(vector: Sequence[Tensor | None], like: Sequence[Tensor]) -> Vector:
    """The vector split over processes as `like` is. Tensor parallelism leaves gradients as sums that are still to be added up."""
    return [t if t is None else _redistributed(t, p) for t, p in zip(vector, like, strict=True)]


def _redistributed(t: Tensor, like: Tensor) -> Tensor:
    if not (is_sharded(t) and is_sharded(like)):
        return t
    wanted = cast("DTensor", like)
    return cast("DTensor", t).redistribute(wanted.device_mesh, wanted.placements)


def _split_like(local: Tensor, like: Tensor) -> Tensor:
    """What `locals_of` took apart: a tensor split over processes as `like` is, of which `local` is this process's part."""
    if not is_sharded(like):
        return local
    from torch.distributed.tensor import DTensor

    mesh, placements = cast("DTensor", like).device_mesh, cast("DTensor", like).placements
    return DTensor.from_local(local, mesh, placements, run_check=False, shape=like.shape, stride=like.stride())


def _elementwise(function: Callable[..., Tensor], tensors: Sequence[Any]) -> Tensor:
    return _split_like(function(*locals_of(tensors)), tensors[0])


def _normal_like(t: Tensor, seed: int, place: int, on_device: bool) -> Tensor:
    device = t.device if on_device else torch.device("cpu")
    generator = torch.Generator(device).manual_seed((seed * 1_000_003 + place) % 2**63)
    dtype = _accumulator(t.dtype)
    full = torch.randn(t.shape, generator=generator, dtype=dtype, device=device).to(t.device, t.dtype)
    if not is_sharded(t):
        return full
    from torch.distributed.tensor import distribute_tensor

    sharded = cast("DTensor", t)
    return distribute_tensor(full, sharded.device_mesh, sharded.placements, src_data_rank=None)
