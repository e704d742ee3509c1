"""The training loop: one run, from its settings to its folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from flatwise import vectors as V
from flatwise.optim.passes import Pass
from flatwise.runs import Run, environment
from flatwise.tasks import Task, load_data
from flatwise.training.batches import Batches
from flatwise.training.claim import claimed
from flatwise.training.config import TrainConfig
from flatwise.training.interruption import Interrupted, Interruption
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
) -> Run:
    """Train one model and leave a run folder; continue where an earlier process with the same settings stopped.

    A finished run is returned as it is. An interrupted one continues bitwise like one that was never interrupted.

    Args:
        config: the settings.
        out: the run folder.
        progress: called after each step with the number of steps taken and their total; or True for a line with the
            time left, in the terminal or a notebook.
        mirrors: "tensorboard" (into OUT/tensorboard) and "wandb" (into OUT/wandb), or objects of your own like
            `flatwise.training.Mirror`; each is told what is written to the metrics. They change nothing about the run.

    Returns:
        The run, finished or, where the loss became NaN or infinite, diverged.

    Raises:
        ValueError: for settings that do not fit (RunError: when the folder holds another run).
        Interrupted: after Ctrl-C, once a checkpoint is written.
    """
    config, following = resolved(config), Mirrors(mirrors)
    with surroundings(config), _shown(progress) as show:
        return _train(config, Path(out), show, following)


def _train(config: TrainConfig, out: Path, progress: Progress, mirrors: Mirrors) -> Run:
    # Data, initial weights and the order of everything hang on the seed alone.
    task, validation = load_split(config)
    model = build_network(config, task)
    batches = Batches(task, config.batch_size, config.seed)
    schedule = Schedule(config, batches.per_epoch, affordable(config))
    probe = Probe(config, task, model, build_loss(config), full_batch=batches.is_full, validation=validation)
    # What is measured must not change what is trained, so a method that looks at the Hessian has all samples to itself.
    whole = objective_of(model, build_loss(config), (task.train_inputs, task.train_targets))
    method = build_method(config, schedule.total, whole)
    optimizer = build_optimizer(config, model, method, schedule.rho_factor)
    stepping = Stepping(config, model, optimizer)

    # The folder is the run: what is in it already is continued, not repeated.
    run = Run.create(out, config.to_dict(), environment(config.command(out)))
    if run.status != "unfinished":
        mirrors.catch_up(run)
        return run
    session = Session(run, model, optimizer, probe, Tally(), mirrors, schedule.keeps)

    with claimed(run), mirrors, Interruption() as interruption:
        step = session.resume()
        if step == 0 and schedule.keeps(0):
            session.save(0)
        while not schedule.over(step, session.spent):
            # Measure at the weights that the step starts from.
            lr = schedule.lr(step, session.spent)
            rho = schedule.rho(session.taken(step), lr)
            measurement = probe.measure(lr, rho, step) if schedule.probes(step) else None
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
            if schedule.saves(step) or schedule.over(step, session.spent) or interruption.received:
                session.save(step)
            if interruption.received:
                raise Interrupted(run, step, interruption.received)
            progress(*schedule.position(step, session.spent))

        lr = schedule.lr(step, session.spent)
        rho = schedule.rho(session.taken(step), lr)
        return session.finished(step, step / batches.per_epoch, probe.measure(lr, rho, step, last=True))


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
    )
    if config.channels_last and task.train_inputs.ndim != 4:
        raise ValueError(f"channels_last has no effect on {config.data}, whose samples are no images; leave it out")
    return task


def _channels_last(inputs: Tensor) -> Tensor:
    return inputs.contiguous(memory_format=torch.channels_last)


@contextmanager
def surroundings(config: TrainConfig) -> Generator[None]:
    """Threads and torch's random state are the run's own meanwhile, and the caller's again afterwards."""
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        torch.set_num_threads(config.threads)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def _shown(progress: Progress | bool | None) -> AbstractContextManager[Progress]:
    if progress is True:
        return step_progress()
    return nullcontext(progress or (lambda _step, _total: None))
