"""Mirrors of a run in TensorBoard and Weights & Biases. The run folder stays the truth: a mirror is told what was written there.

They see numbers and never the training, so a run is the same, bitwise, with and without them.
"""

from __future__ import annotations

import hashlib
import os
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from flatwise.runs import Run, encode
from flatwise.training.config import nearest

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter
    from wandb import Run as WandbRun

Record = Mapping[str, Any]


class Mirror(Protocol):
    """What can follow a run: one of those below, or one of your own. What it raises ends its following, not the training."""

    def knows(self, run: Run) -> bool:
        """Whether it has followed the run before; a finished run is not told to those that know it."""
        ...

    def open(self, run: Run, step: int) -> int:
        """Begin, before the step `step` is taken. Returns the step from which on it wants the records that are there."""
        ...

    def record(self, record: Record) -> None:
        """Take in a record of the metrics, with `kind` ("train" or "probe"), `step`, and what was measured."""
        ...

    def close(self, run: Run) -> None:
        """End. The run says whether it is done, and has its final numbers then."""
        ...


class TensorBoard:
    """Into RUN/tensorboard: `tensorboard --logdir RUN`, or the folder of a comparison.

    A resumed run goes on in the same folder, where its steps after the checkpoint take the place of those that were lost.

    Raises:
        ValueError: the package is not installed.
    """

    folder = "tensorboard"

    def __init__(self) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except Exception as error:
            raise _missing("tensorboard", error) from error
        self._make = SummaryWriter
        self._writer: SummaryWriter

    def knows(self, run: Run) -> bool:
        """Whether the folder is there."""
        return (run.path / self.folder).exists()

    def open(self, run: Run, step: int) -> int:
        """Make the folder, or go on in it."""
        known = self.knows(run)
        _wait_for_the_next_second(run.path / self.folder)
        self._writer = self._make(run.path / self.folder, purge_step=step if known else None)
        if not known or step == 0:
            rows = (f"| {name} | {value} |" for name, value in run.config.items())
            self._writer.add_text("settings", "\n".join(["| setting | value |", "|---|---|", *rows]))
        return step if known else 0

    def record(self, record: Record) -> None:
        """Write the numbers of a record as scalars, such as probe/top_eigenvalue."""
        for name, value in _numbers(record).items():
            self._writer.add_scalar(name, value, record["step"])
        self._writer.flush()  # a kill then costs nothing that the run folder still has

    def close(self, run: Run) -> None:
        """Write settings and final numbers for the table of hyper-parameters, when the run is done."""
        if run.status != "unfinished":
            settings = {name: _plain(value) for name, value in run.config.items()}
            final = _numbers({"kind": "final", **run.summary})
            _wait_for_the_next_second(run.path / self.folder)
            self._writer.add_hparams(settings, final, run_name=".", global_step=run.summary["steps"])
        self._writer.close()


def _wait_for_the_next_second(folder: Path) -> None:
    """TensorBoard reads the files of a folder in the order of the whole seconds in their names."""
    newest = max((int(file.name.split(".")[3]) for file in folder.glob("events.out.tfevents.*")), default=0)
    while int(time.time()) == newest:
        time.sleep(0.02)


class Wandb:
    """Into RUN/wandb, offline unless the environment variable WANDB_MODE says otherwise.

    The project is $WANDB_PROJECT, else "flatwise". A resumed run keeps its id. Offline it gets a folder of its own with all
    records from the first on, since of several folders with one id `wandb sync` keeps the last one's.

    Raises:
        ValueError: the package is not installed.
    """

    folder = "wandb"

    def __init__(self) -> None:
        try:
            from wandb import Settings, init
        except Exception as error:
            raise _missing("wandb", error) from error
        self._init = init
        # Not a word on the terminal, and nothing of it taken: standard output may be somebody's channel.
        self._settings = Settings(silent=True, console="off")
        self._run: WandbRun

    def knows(self, run: Run) -> bool:
        """Whether the folder is there."""
        return (run.path / self.folder).exists()

    def open(self, run: Run, step: int) -> int:
        """Begin a run of W&B beside any that the caller may have, or take up ours."""
        offline = os.environ.get("WANDB_MODE", "offline") == "offline"
        self._run = self._init(
            dir=str(run.path),
            id=_identity(run),
            name=str(run.path),
            project=None if "WANDB_PROJECT" in os.environ else "flatwise",
            mode="offline" if offline else None,
            config=run.config,
            resume=None if offline else "allow",
            reinit="create_new",
            settings=self._settings,
        )
        self._run.define_metric("*", step_metric="step")
        return step if self._run.resumed else 0

    def record(self, record: Record) -> None:
        """Log the numbers of a record, such as probe/top_eigenvalue, over `step`."""
        self._run.log({"step": record["step"], **_numbers(record)})

    def close(self, run: Run) -> None:
        """Add the final numbers, and say how the run ended."""
        if run.status != "unfinished":
            self._run.summary.update({"status": run.status, **_numbers({"kind": "final", **run.summary})})
        self._run.finish(exit_code=0 if run.status == "finished" else 1)


MIRRORS: dict[str, Callable[[], Mirror]] = {"tensorboard": TensorBoard, "wandb": Wandb}
"""Those that have a name."""


class Mirrors:
    """Some mirrors as one. A context: they are closed at its end, however it comes about.

    Args:
        mirrors: "tensorboard", "wandb", or mirrors of your own.

    Raises:
        ValueError: an unknown name (the nearest is named), one that comes twice, or a package that is not installed.
    """

    def __init__(self, mirrors: Iterable[str | Mirror] = ()) -> None:
        wanted = list(mirrors)
        if twice := [name for name in MIRRORS if wanted.count(name) > 1]:
            raise ValueError(f"the mirror {twice[0]} is named twice; name it once")
        self._mirrors = [_by_name(mirror) if isinstance(mirror, str) else mirror for mirror in wanted]
        self._run: Run | None = None

    def follow(self, run: Run, step: int) -> None:
        """Follow a run that goes on with the step `step`; what its metrics hold already is caught up on."""
        self._run = run
        self._tell(lambda mirror: _begin(mirror, run, step))

    def catch_up(self, run: Run) -> None:
        """Tell a run that is done to those that do not know it yet."""
        self._mirrors = [mirror for mirror in self._mirrors if not mirror.knows(run)]
        with self:
            self.follow(run, 0)

    def know(self, run: Run) -> bool:
        """Whether all of them have followed the run."""
        return all(mirror.knows(run) for mirror in self._mirrors)

    def record(self, record: Record) -> None:
        """Pass on a record that was appended to the metrics."""
        self._tell(lambda mirror: mirror.record(record))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if (run := self._run) is not None:
            self._tell(lambda mirror: mirror.close(run))

    def _tell(self, action: Callable[[Mirror], object]) -> None:
        """One after the other; a mirror that fails is left out from then on."""
        for mirror in list(self._mirrors):
            try:
                action(mirror)
            except Exception as error:  # whatever it is, it is no reason to end a training
                self._mirrors.remove(mirror)
                reason = f"{type(error).__name__}: {error}"
                kept = "the training goes on without it, and the run folder keeps everything"
                warnings.warn(f"the mirror {type(mirror).__name__} failed ({reason}); {kept}", stacklevel=3)


def _begin(mirror: Mirror, run: Run, step: int) -> None:
    since = mirror.open(run, step)
    for record in run.metrics():
        if record["step"] >= since:
            mirror.record(record)


def _by_name(name: str) -> Mirror:
    if name not in MIRRORS:
        raise ValueError(f"there is no mirror {name!r}{nearest(name, MIRRORS)}")
    return MIRRORS[name]()


def _missing(package: str, error: Exception) -> ValueError:
    """Also for a package that is there but does not fit another, which can be any error (protobuf has its own)."""
    return ValueError(f'{package} cannot be imported ({error}): pip install ".[{package}]" from a clone of flatwise')


def _numbers(record: Record) -> dict[str, float]:
    """The numbers of a record under kind/name."""
    return {f"{record['kind']}/{name}": value for name, value in record.items() if _is_number(value) and name != "step"}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _plain(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | str) else str(value)


def _identity(run: Run) -> str:
    """The same whenever the run is resumed, and another for every other run."""
    return hashlib.sha256(encode([run.environment, run.config]).encode()).hexdigest()[:16]
