"""The training loop: one run, from its settings to its folder."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flatwise import vectors as V
from flatwise.optim.passes import Pass
from flatwise.runs import Run, environment
from flatwise.tasks import Task, load_data
from flatwise.training.batches import Batches
from flatwise.training.claim import claimed
from flatwise.training.config import TrainConfig
from flatwise.training.distributed import Device, Parallel, World, processes
from flatwise.training.interruption import Interrupted, Interruption
from flatwise.training.layouts import check, laid_out, moved
from flatwise.training.mirrors import Mirror, Mirrors
from flatwise.training.probes import Measurement, Probe, objective_of
from flatwise.training.progress import step_progress
from flatwise.training.schedule import Schedule
from flatwise.training.session import Session
from flatwise.training.setup import (
    affordable,
    build_loss,
    build_method,
    build_network,
    build_optimizer,
    resolved,
)
from flatwise.training.stepping import Stepping
from flatwise.training.tally import Tally
from flatwise.training.validation import Batch, held_out
from flatwise.vectors import Vector

Progress = Callable[[int, int], None]


def train(
    config: TrainConfig,
    out: str | Path,
    *,
    progress: Progress | bool | None = None,
    mirrors: Iterable[str | Mirror] = (),
    parallel: Parallel | None = None,
    device: Device = "auto",
) -> Run:
    """Train one model and leave a run folder; continue where an earlier process with the same settings stopped.

    A finished run is returned as it is. An interrupted one continues bitwise like one that was never interrupted.

    Where torchrun has started several processes, or `torch.distributed` is initialised, all of them call this with the same
    arguments and share every batch: the run is that of one process to rounding. The first one measures and writes the folder.

    Args:
        config: the settings.
        out: the run folder.
        progress: called after each step with the number of steps taken and their total; or True for a line with the
            time left, in the terminal or a notebook.
        mirrors: "tensorboard" (into OUT/tensorboard) and "wandb" (into OUT/wandb), or objects of your own like
            `flatwise.training.Mirror`; each is told what is written to the metrics. They change nothing about the run.
        parallel: how several processes share the network: "ddp" (the default), all of it on each; "fsdp2", a shard on each.
        device: "cpu"; "cuda", one GPU for each process of a machine; "auto": that, where torch sees GPUs.

    Returns:
        The run, finished or, where the loss became NaN or infinite, diverged.

    Raises:
        ValueError: for settings that do not fit (RunError: when the folder holds another run); on processes but the first a
            `flatwise.training.distributed.Refused`.
        Interrupted: after Ctrl-C, once a checkpoint is written.
    """
    with processes(parallel, device) as world:
        with world.together():
            config, following = resolved(config), Mirrors(mirrors if world.is_first else ())
        with surroundings(config, world), _shown(progress if world.is_first else None) as show:
            return _train(config, Path(out), show, following, world)


def _train(config: TrainConfig, out: Path, progress: Progress, mirrors: Mirrors, world: World) -> Run:
    # Data, initial weights and the order of everything hang on the seed alone.
    task, validation = world.in_turn(lambda: load_split(config))
    model = world.in_turn(lambda: build_network(config, task)).to(world.device)
    task, validation = _on_device(task, world), moved(validation, world.device)
    batches = Batches(task, config.batch_size, config.seed)
    schedule = Schedule(config, batches.per_epoch, affordable(config))
    copied = copy.deepcopy(model) if world.parallel == "fsdp2" and world.is_first else None
    probe = Probe(config, task, copied or model, build_loss(config), full_batch=batches.is_full, validation=validation)
    # What is measured must not change what is trained, so a method that looks at the Hessian has all samples to itself.
    whole = objective_of(model, build_loss(config), (task.train_inputs, task.train_targets))
    method = build_method(config, schedule.total, whole)
    with world.together():
        check(config, batches, world)
    runs = laid_out(model, world, compiled=config.compile)
    optimizer = build_optimizer(config, runs, method, schedule.rho_factor)
    stepping = Stepping(config, runs, optimizer, world)

    # The folder is the run: what is in it already is continued, not repeated.
    run = world.told(lambda: Run.create(out, config.to_dict(), _environment(config, out, world)))
    if world.told(lambda: run.status) != "unfinished":
        mirrors.catch_up(run)
        return run
    session = Session(run, model, optimizer, probe, Tally(), mirrors, schedule.keeps, world, copied)

    with _held(run, world), mirrors, Interruption() as interruption:
        step = session.resume()
        if step == 0 and schedule.keeps(0):
            session.save(0)
        while not schedule.over(step, session.spent):
            # Measure at the weights that the step starts from.
            lr = schedule.lr(step, session.spent)
            rho = schedule.rho(session.taken(step), lr)
            measurement = session.measure(lr, rho, step) if schedule.probes(step) else None
            before = V.clone(session.weights()) if measurement else []

            # One step: the method asks for the loss here and there, then the base optimizer moves.
            started = time.perf_counter()
            stepping.take(*batches.at(step), lr, partial(_look, session, measurement, before))
            session.count(time.perf_counter() - started, rho, config.parts or 1)

            # Write down what was measured.
            if measurement:
                measurement.align("tracked", session.tracked_eigenvector())
                session.record(step, step / batches.per_epoch, lr, rho, measurement)

            # A loss that is no number ends the run; what it was until then stays.
            if reason := session.failure(step):
                return session.diverged(step, reason)

            # From here the run can be continued, whatever happens to this process.
            step += 1
            received = world.highest(interruption.received or 0)
            if schedule.saves(step) or schedule.over(step, session.spent) or received:
                session.save(step)
            if received:
                raise Interrupted(run, step, received)
            progress(*schedule.position(step, session.spent))

        lr = schedule.lr(step, session.spent)
        rho = schedule.rho(session.taken(step), lr)
        return session.finished(step, step / batches.per_epoch, session.measure(lr, rho, step, last=True))


def _look(session: Session, measurement: Measurement | None, before: Vector, p: Pass) -> None:
    """Take down where a pass has displaced the weights to, at the steps that are measured."""
    if measurement and not p.at_weights and not p.is_probe:
        measurement.align("displacement", session.displacement(before))


def load_split(config: TrainConfig) -> tuple[Task, Batch | None]:
    """The data that a run trains on and is tested on, and the samples that it holds out for validation, if any."""
    task, validation = held_out(_load(config), config.validation, config.seed)
    if not config.channels_last:
        return task, validation
    task = replace(task, train_inputs=_channels_last(task.train_inputs), test_inputs=_channels_last(task.test_inputs))
    return task, validation and (_channels_last(validation[0]), validation[1])


def load_task(config: TrainConfig) -> Task:
    """The data that a run trains on and is tested on."""
    return load_split(config)[0]


def _load(config: TrainConfig) -> Task:
    task = load_data(
        config.data,
        root=config.data_root,
        seed=config.seed,
        subset=config.subset,
        label_noise=config.label_noise,
        augment=config.augment,
        preprocess=config.preprocess,
    )
    if config.channels_last and task.train_inputs.ndim != 4:
        raise ValueError(f"channels_last has no effect on {config.data}, whose samples are no images; leave it out")
    return task


def _channels_last(inputs: Tensor) -> Tensor:
    return inputs.contiguous(memory_format=torch.channels_last)


def _environment(config: TrainConfig, out: Path, world: World) -> dict[str, Any]:
    where = {"device": world.device.type, "processes": world.size}
    return environment(world.command(config.command(out))) | where


@contextmanager
def _held(run: Run, world: World) -> Generator[None]:
    """The folder is this run's alone."""
    with ExitStack() as stack:
        with world.together():
            if world.is_first:
                stack.enter_context(claimed(run))
        yield


def _on_device(task: Task, world: World) -> Task:
    names = ("train_inputs", "train_targets", "test_inputs", "test_targets")
    return replace(task, **{name: getattr(task, name).to(world.device) for name in names})


@contextmanager
def surroundings(config: TrainConfig, world: World | None = None) -> Generator[None]:
    """Threads and torch's random state are the run's own meanwhile, and the caller's again afterwards.

    What a process draws while training, such as dropout masks, is its own; the first one draws what it would alone.
    """
    threads, world = torch.get_num_threads(), world or World()
    with torch.random.fork_rng(devices=[world.device] if world.device.type == "cuda" else []):
        torch.manual_seed(world.seed(config.seed))
        torch.set_num_threads(config.threads)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def _shown(progress: Progress | bool | None) -> AbstractContextManager[Progress]:
    if progress is True:
        return step_progress()
    return nullcontext(progress or (lambda _step, _total: None))
