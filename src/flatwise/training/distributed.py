"""The processes that share one run, as torchrun starts them, and what they tell each other; one alone is such a world, too."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, TypeAlias, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

Parallel: TypeAlias = Literal["ddp", "fsdp2"]
Device: TypeAlias = Literal["auto", "cpu", "cuda"]
Found = TypeVar("Found")

CPU = torch.device("cpu")
PATIENCE = timedelta(days=1)
"""How long processes wait for each other, as the first one measures alone. One that has ended is noticed at once."""


class Refused(ValueError):
    """On all processes but the first: something was refused, which the first one says."""


@dataclass(frozen=True)
class World:
    """This process among those that share a run.

    Attributes:
        rank: 0 to size - 1; the first one measures, writes the run folder and speaks.
        size: how many there are.
        parallel: how they share the network: "ddp", each holds all of it; "fsdp2", each holds a shard. None for one process.
        device: where this one computes.
        here: the rank among the processes of this machine.
        control: the process group in which they agree, where the default one cannot.
    """

    rank: int = 0
    size: int = 1
    parallel: Parallel | None = None
    device: torch.device = CPU
    here: int = 0
    control: Any = None

    @property
    def is_first(self) -> bool:
        """Whether this process measures, writes and speaks."""
        return self.rank == 0

    def command(self, alone: str) -> str:
        """The command line of a run of one process, with what makes it one of these."""
        if self.size == 1:
            return alone
        here = int(os.environ.get("LOCAL_WORLD_SIZE", self.size))
        machines = f"--nnodes {self.size // here} " if here < self.size else ""
        return f"torchrun {machines}--nproc-per-node {here} -m {alone} --parallel {self.parallel}"

    def seed(self, seed: int) -> int:
        """The seed of what this process alone draws; the first one's is that of the run. Both are from 0 to below 2**32."""
        return (seed + self.rank * 1_000_003) % 2**32  # torch's generator on the CPU takes no more bits

    def share(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """This process's samples of tensors [B, ...] that all of them have: consecutive ones, as many as others or one fewer."""
        return tensors if self.size == 1 else tuple(t.tensor_split(self.size)[self.rank] for t in tensors)

    def highest(self, number: int) -> int:
        """The largest of the numbers that the processes give."""
        if self.size == 1:
            return number
        found = torch.tensor(number)
        dist.all_reduce(found, dist.ReduceOp.MAX, group=self.control)
        return int(found)

    def gathered(self, value: Found) -> list[Found]:
        """What every process gives, by rank, on all of them."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value, group=self.control)
        return found

    def told(self, find: Callable[[], Found]) -> Found:
        """What the first process finds, on all of them; the others do not look."""
        found: list[Any] = [None]
        with self.together():
            if self.is_first:
                found[0] = find()
        if self.size > 1:
            dist.broadcast_object_list(found, src=0, group=self.control)
        return found[0]

    def in_turn(self, find: Callable[[], Found]) -> Found:
        """What each process finds for itself: on every machine one before the others, which then meet what it has downloaded."""
        found: list[Found] = []
        for is_my_turn in (self.here == 0, self.here > 0):
            with self.together():
                found += [find()] if is_my_turn else []
        return found[0]

    @contextmanager
    def together(self) -> Generator[None]:
        """A body that all processes run, and that fails on all of them if it fails on one.

        Raises:
            ValueError, TypeError, OSError: on the first process: its own, or with the sentence of another one.
            Refused: on the others.
        """
        try:
            yield
        except (ValueError, TypeError, OSError) as error:
            self._agree(error)
        else:
            self._agree(None)

    def _agree(self, error: Exception | None) -> None:
        sentences = self.gathered(None if error is None else str(error) or type(error).__name__)
        failed = [f"process {rank}: {sentence}" for rank, sentence in enumerate(sentences) if sentence is not None]
        if failed and not self.is_first:
            raise Refused(failed[0]) from error
        if error is not None:
            raise error
        if failed:
            raise ValueError(failed[0])


@contextmanager
def processes(parallel: Parallel | None = None, device: Device = "auto") -> Generator[World]:
    """The world of this process: all that torchrun has started, or it alone.

    A process group that is there already is used, with its own patience: it has to outlast a measurement.

    Args:
        parallel: "ddp", which is the default, or "fsdp2", where there are several processes.
        device: "cpu"; "cuda", one GPU for each process of a machine; "auto": that, where torch sees GPUs.

    Raises:
        ValueError: `parallel` for a single process, or a device that is not there.
    """
    if _size() == 1:
        if parallel is not None:
            raise ValueError(
                f"parallel {parallel} has no effect on one process: leave it out, or start several with "
                "torchrun --nproc-per-node N -m flatwise train ..."
            )
        yield World(device=_device(device, 0))
        return
    here = int(os.environ.get("LOCAL_RANK", dist.get_rank() if dist.is_initialized() else 0))
    with _joined(_device(device, here)) as (place, control):
        yield World(dist.get_rank(), dist.get_world_size(), parallel or "ddp", place, here, control)


@contextmanager
def _joined(place: torch.device) -> Generator[tuple[torch.device, Any]]:
    """The process group, and the one in which the processes agree: the same, where it can speak of tensors on the CPU."""
    known = dist.is_initialized()
    if place.type == "cuda":
        torch.cuda.set_device(place)
    if not known:
        dist.init_process_group("cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo", timeout=PATIENCE)
    control = None if "cpu:" in dist.get_backend_config() else dist.new_group(backend="gloo", timeout=PATIENCE)
    try:
        yield place, control
    finally:
        if not known or control is not None:
            dist.destroy_process_group(control if known else None)


def _size() -> int:
    if dist.is_available() and dist.is_initialized():
        return dist.get_world_size()
    return int(os.environ.get("WORLD_SIZE", 1)) if "RANK" in os.environ else 1


def _device(wanted: Device, here: int) -> torch.device:
    """The device of a process that is the `here`-th of its machine."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted == "cpu" or (wanted == "auto" and not count):
        return torch.device("cpu")
    if here >= count:
        raise ValueError(
            f"device {wanted} takes one GPU for each process of a machine, and torch sees {count} here; start as many "
            "processes, or choose --device cpu"
        )
    return torch.device("cuda", here)
