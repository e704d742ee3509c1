"""Data-parallel replicas: of whose gradients an evaluation is the mean, and of whose directions a step is."""

from __future__ import annotations

import warnings
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, Union

import torch
from torch import Tensor, nn

from flatwise import modules
from flatwise import vectors as V
from flatwise.optim import messages
from flatwise.vectors import Vector

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

Perturb: TypeAlias = Union[Literal["global", "local"], "DeviceMesh"]


class Replicas:
    """The processes that share one training step.

    Those whose gradients the model averages itself (DistributedDataParallel, FSDP2) evaluate *together*: an evaluation is the
    mean over them. Replicas that are *apart* run a dialogue each, along their own gradients (m-sharpness), and the directions
    are averaged at the end of the step; only what is measured is averaged over them at once.

    Args:
        model: the module that is trained, or None.
        parameters: those of the optimizer.
        perturb: "global": all together; "local": the ranks of DistributedDataParallel apart; a mesh of one dimension: its
            members apart, each of which may be a group that the model averages over.

    Raises:
        ValueError: the model cannot be had so; the message says what to do.
    """

    def __init__(self, model: nn.Module | None, parameters: list[Tensor], perturb: Perturb) -> None:
        if modules.flattened(model):
            raise ValueError(messages.FLATTENED)
        self._ddps = modules.replicated(model)
        self._sharded = modules.sharded(model)
        self._parameters = parameters
        self._averages: bool | None = None
        groups = _groups(self._ddps, parameters)
        self._quiet = perturb == "local"
        if self._quiet:
            self._check_local()
        self._apart = groups if self._quiet else [] if isinstance(perturb, str) else [perturb.get_group()]
        self._together = [] if self._quiet else groups
        self._check_apart()
        self._verified = isinstance(perturb, str)  # DistributedDataParallel has made the weights equal

    @property
    def many(self) -> bool:
        """Whether there is more than this process."""
        return bool(self._together or self._apart)

    @property
    def shards(self) -> bool:
        """Whether FSDP2 shards the model."""
        return bool(self._sharded)

    @property
    def apart(self) -> bool:
        """Whether each replica has a dialogue of its own."""
        return bool(self._apart)

    def share(self, probe: bool) -> bool:
        """Whether an evaluation is the mean over several processes."""
        return bool(self._together) or (probe and self.apart)

    def warn_if_unaware(self) -> None:
        """Say what is amiss where several processes run and the model does not show how they share the step."""
        if self.many or not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return
        count = torch.distributed.get_world_size()
        if count > 1:
            warnings.warn(messages.UNAWARE.format(count=count), UserWarning, stacklevel=4)

    def check(self) -> None:
        """Refuse what would leave replicas waiting for each other, or different, before anything is evaluated.

        Raises:
            RuntimeError, ValueError: with the way out.
        """
        if any(ddp._join_config.enable for ddp in self._ddps):
            raise RuntimeError(messages.JOINED)
        if not self._verified:
            self._check_weights()
            self._verified = True

    # --- an evaluation ------------------------------------------------------------------------------------------------

    @contextmanager
    def evaluating(self, probe: bool) -> Generator[None]:
        """Around forward and backward: gradients stay the replica's own where they should, also in DistributedDataParallel.

        Around backward only, it would average all the same. Which forward averages is noted where it happens: what the model says
        afterwards is of the last forward, which may have been without gradients.
        """
        self._averages = None
        with ExitStack() as stack:
            for ddp in self._ddps:
                stack.callback(ddp.register_forward_hook(self._note).remove)
                if self._quiet and not probe:
                    stack.callback(setattr, ddp, "require_forward_param_sync", True)  # the next forward shares buffers
                    stack.enter_context(ddp.no_sync())
            yield

    def synchronised(self) -> bool:
        """Whether the last backward averaged over ranks, or need not have."""
        if self._quiet or not self._ddps:
            return True
        if self._averages is None:
            return all(ddp.require_forward_param_sync for ddp in self._ddps)
        return self._averages

    def mean(self, *numbers: Tensor | float, everywhere: bool) -> list[Tensor]:
        """The means of numbers over the replicas that are together, or over all: 0-d tensors in float64."""
        value = torch.stack([_number(n, self._device) for n in numbers])
        for group in self._groups(everywhere):
            torch.distributed.all_reduce(value, group=group)
            value /= torch.distributed.get_world_size(group)
        return list(value)

    def average_probe_(self, vector: Vector, parameters: Sequence[Tensor]) -> None:
        """Replace a measured gradient by its mean over replicas that are apart, where the model has not done so."""
        if not self._quiet:
            self.average_(vector, parameters)

    def average_(self, vector: Vector, parameters: Sequence[Tensor]) -> Tensor:
        """Replace a vector by its mean over replicas that are apart, in place. Where one of them has None, that counts as zero.

        Returns:
            Whether some replica has a tensor, for each parameter: on the device.
        """
        known = torch.tensor([t is not None for t in vector], dtype=torch.float64).to(self._device, non_blocking=True)
        vector[:] = [
            torch.zeros_like(p, requires_grad=False) if t is None and p.requires_grad else t
            for t, p in zip(vector, parameters, strict=True)
        ]
        tensors = V.locals_of(V.present(vector))
        for group in self._apart:
            V.scale_(list(tensors), 1 / torch.distributed.get_world_size(group))
            for work in [torch.distributed.all_reduce(t, group=group, async_op=True) for t in [*tensors, known]]:
                work.wait()
        return known > 0

    def reshard(self) -> None:
        """Drop the gathered copies of FSDP2's shards, which do not know that the shards have moved."""
        for module in self._sharded:
            module.reshard()

    # --- inside -------------------------------------------------------------------------------------------------------

    @property
    def _device(self) -> torch.device:
        return V.locals_of(self._parameters[:1])[0].device

    def _groups(self, everywhere: bool) -> list[Any]:
        return [*self._together, *self._apart] if everywhere else self._together

    def _note(self, module: nn.parallel.DistributedDataParallel, *_: Any) -> None:
        if torch.is_grad_enabled():
            self._averages = bool(module.require_backward_grad_sync)

    def _check_local(self) -> None:
        if not self._ddps:
            raise ValueError(messages.LOCAL_NEEDS_DDP)
        if any(ddp.static_graph for ddp in self._ddps):
            raise ValueError(messages.LOCAL_STATIC_GRAPH)

    def _check_apart(self) -> None:
        ranks = [set(torch.distributed.get_process_group_ranks(g)) for g in self._apart]
        averaged = [set(torch.distributed.get_process_group_ranks(g)) for g in self._together]
        if any(len(own & others) > 1 for own in ranks for others in averaged):
            raise ValueError(messages.AVERAGED_ALREADY)

    def _check_weights(self) -> None:
        """Replicas that nobody has made equal yet would train apart for ever."""
        sums = torch.stack([t.detach().double().sum() for t in V.locals_of(self._parameters)])
        lowest, highest = sums.clone(), sums.clone()
        for group in self._apart:
            torch.distributed.all_reduce(lowest, torch.distributed.ReduceOp.MIN, group=group)
            torch.distributed.all_reduce(highest, torch.distributed.ReduceOp.MAX, group=group)
        if not torch.equal(lowest, highest):
            raise ValueError(messages.UNEQUAL_REPLICAS)


def _groups(ddps: Sequence[nn.parallel.DistributedDataParallel], parameters: Sequence[Tensor]) -> list[Any]:
    """Those over which the model averages. Along other dimensions of a mesh the numbers are the same, and so is the mean."""
    if ddps:
        return [ddps[0].process_group]
    meshes: list[Any] = [getattr(p, "device_mesh") for p in parameters if V.is_sharded(p)]  # noqa: B009
    mesh = max(meshes, key=lambda mesh: mesh.ndim, default=None)
    return [] if mesh is None else [mesh.get_group(i) for i in range(mesh.ndim)]


def _number(value: Tensor | float, device: torch.device) -> Tensor:
    """Filled on the device: a copy from the host would wait for it."""
    if isinstance(value, Tensor):
        return value.to(device, torch.float64)
    return torch.full((), float(value), dtype=torch.float64, device=device)
