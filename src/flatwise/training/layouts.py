"""How the network of a run lies on its processes, and what is gathered from it and given back: for checkpoints, whole tensors."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from flatwise import vectors as V
from flatwise.training.batch_norm import share_statistics
from flatwise.training.batches import Batches
from flatwise.training.config import TrainConfig
from flatwise.training.distributed import Parallel, World
from flatwise.training.setup import build_method

_SAMPLES = "it goes on with samples chosen from the whole batch, and each process sees only its share; with gamma=1 it takes all"
_REFUSED: dict[Parallel, dict[str, str]] = {
    "ddp": {"samples": _SAMPLES},
    "fsdp2": {"samples": _SAMPLES, "subspace": "the Hessian's eigenvectors are of whole weights; take ddp"},
}
"""What methods need that processes cannot share, and why."""

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def check(config: TrainConfig, batches: Batches, world: World) -> None:
    """What several processes cannot share is refused before anything is computed.

    Raises:
        ValueError: with the reason.
    """
    if world.size == 1:
        return
    fewest = batches.smallest_piece(config.parts)
    if fewest < world.size:
        raise ValueError(
            f"{world.size} processes share every batch, and one of them would have no sample of the smallest, which has "
            f"{fewest}: choose another batch size, a subset, or fewer processes"
        )
    needs = build_method(config).needs
    for need, reason in _REFUSED[world.parallel or "ddp"].items():
        if need in needs:
            raise ValueError(f"method {config.method} cannot be had with parallel {world.parallel}: {reason}")
    if config.channels_last and world.parallel == "fsdp2":
        raise ValueError(
            "channels_last cannot be had with parallel fsdp2, which shards contiguous weights only; leave it out"
        )


def laid_out(model: nn.Module, world: World, *, compiled: bool = False) -> nn.Module:
    """The module that is called in training: the model, compiled or shared by several processes.

    Its parameters and buffers are the model's own, or with FSDP2 the model's from now on are shards.

    Args:
        model: on the device.
        world: the processes.
        compiled: by `torch.compile`, a graph for every shape of the input, so that a resumed run computes the same.
    """
    if world.size > 1:
        share_statistics(model)
    if world.parallel == "fsdp2":
        _shard(model, world)
    runs = cast(nn.Module, torch.compile(model, dynamic=False)) if compiled else model
    return DistributedDataParallel(runs) if world.parallel == "ddp" else runs


def _shard(model: nn.Module, world: World) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(world.device.type, (world.size,))
    for block in _blocks(model):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def _blocks(model: nn.Module) -> Iterator[nn.Module]:
    """What is gathered one after the other: the children of the model, and of its containers, that have weights."""
    for child in model.children():
        if isinstance(child, CONTAINERS):
            yield from _blocks(child)
        elif any(True for _ in child.parameters()):
            yield child


def whole(tree: Any, *, keep: bool = True) -> Any:
    """The tree of tensors with whole tensors in place of shards, which all processes gather together.

    `keep=False` gives None in their place: this process only takes part.
    """
    if isinstance(tree, dict):
        return _like(cast("dict[Any, Any]", tree), {name: whole(value, keep=keep) for name, value in tree.items()})
    if isinstance(tree, list):
        return [whole(value, keep=keep) for value in cast("list[Any]", tree)]
    if not (isinstance(tree, Tensor) and V.is_sharded(tree)):
        return tree
    gathered = cast(Any, tree.detach()).full_tensor()
    return gathered if keep else None


def spread(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, which every process has, as a shard where `like` is one."""
    if not V.is_sharded(like):
        return value
    from torch.distributed.tensor import distribute_tensor

    there: Any = like
    return distribute_tensor(value.to(like.device), there.device_mesh, there.placements, src_data_rank=None)


def spread_weights(saved: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """A state dict of whole tensors, as the model holds them."""
    own: dict[str, Tensor] = model.state_dict()
    return _like(saved, {name: spread(value, own[name]) for name, value in saved.items() if name in own})


def spread_state(saved: Mapping[str, Any], parameters: list[nn.Parameter]) -> dict[str, Any]:
    """An optimizer's state dict of whole tensors, as it is for these parameters: what has the shape of one is split like it."""
    entries = {i: _spread_entry(entry, parameters[i]) for i, entry in saved["state"].items()}
    return {**saved, "state": entries}


def _spread_entry(entry: Mapping[str, Any], p: Tensor) -> dict[str, Any]:
    return {
        name: spread(value, p) if isinstance(value, Tensor) and value.shape == p.shape else value
        for name, value in entry.items()
    }


def _like(known: dict[Any, Any], values: dict[Any, Any]) -> dict[Any, Any]:
    """A copy with other values, and all else that a state dict carries: the versions of its modules."""
    other = copy.copy(known)
    other.update(values)
    return other


def moved(tree: Any, device: torch.device) -> Any:
    """The tree of tensors on a device; lists, tuples and mappings are gone through, everything else stays."""
    if isinstance(tree, Tensor):
        return tree.to(device)
    if isinstance(tree, Mapping):
        return {name: moved(value, device) for name, value in cast("Mapping[Any, Any]", tree).items()}
    if type(tree) in (list, tuple):
        return type(tree)(moved(value, device) for value in tree)
    return tree
