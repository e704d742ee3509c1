"""Data-parallel replicas: means over ranks, and gradients that are not averaged yet."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from flatwise import modules
from flatwise import vectors as V
from flatwise.optim import messages
from flatwise.vectors import Vector

Perturb: TypeAlias = Literal["global", "local"]


class Replicas:
    """The processes that share one training step.

    With `perturb="global"` every evaluation is the mean over all of them. With "local" each runs the dialogue on its own data
    (m-sharpness) and the directions are averaged at the end.
    """

    def __init__(self, model: nn.Module | None, parameters: list[Tensor], perturb: Perturb) -> None:
        self.local = perturb == "local"
        self._ddp = modules.data_parallel(model)
        if self.local and self._ddp is None:
            raise ValueError(messages.LOCAL_NEEDS_DDP)
        self._sharded = modules.sharded(model)
        self._groups = _groups(self._ddp, parameters)

    @property
    def many(self) -> bool:
        """Whether there is more than this process."""
        return bool(self._groups)

    @property
    def owns_gradients(self) -> bool:
        """Whether gradients are views into DDP's buckets, which the next backward overwrites."""
        return self._ddp is not None and bool(self._ddp.gradient_as_bucket_view)

    def synchronised(self) -> bool:
        """Whether the last forward and backward averaged over ranks, or need not have."""
        return self.local or self._ddp is None or bool(self._ddp.require_forward_param_sync)

    def mean(self, value: Tensor) -> Tensor:
        """The mean of a per-rank number over all replicas."""
        for group in self._groups:
            value = value.clone() / torch.distributed.get_world_size(group)
            torch.distributed.all_reduce(value, group=group)
        return value

    def reshard(self) -> None:
        """Drop the gathered copies of FSDP2's shards, which do not know that the shards have moved."""
        for module in self._sharded:
            module.reshard()

    def average_(self, vector: Vector) -> None:
        """Replace a per-rank vector by its mean over all replicas."""
        for group in self._groups:
            V.scale_(vector, 1 / torch.distributed.get_world_size(group))
            for t in V.present(vector):
                torch.distributed.all_reduce(t, group=group)

    def unsynchronised(self) -> AbstractContextManager[None]:
        """Around forward and backward: gradients stay this rank's own. Around backward only, DDP would average all the same."""
        if self.local and self._ddp is not None:
            return self._ddp.no_sync()
        return nullcontext()


def _groups(ddp: DistributedDataParallel | None, parameters: list[Tensor]) -> list[Any]:
    if ddp is not None:
        return [ddp.process_group]
    mesh = next((getattr(p, "device_mesh") for p in parameters if hasattr(p, "device_mesh")), None)  # noqa: B009
    return [] if mesh is None else [mesh.get_group(i) for i in range(mesh.ndim)]
