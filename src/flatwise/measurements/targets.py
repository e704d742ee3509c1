"""What stands on the command line, as networks to measure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

from flatwise.measurements.checkpoints import Checkpoint, checkpoints_of, forget_data
from flatwise.measurements.functions import Own, objectives
from flatwise.measurements.plan import Plan
from flatwise.measurements.subject import Source, Subject
from flatwise.measurements.units import Unit
from flatwise.runs import Run, RunError, read_mapping


@dataclass(frozen=True)
class Request:
    """What is to be measured.

    Attributes:
        targets: run folders, folders of comparisons, and functions as `module:function`.
        plan: how.
        checkpoints: which ones of runs; for functions, what goes to their argument `checkpoint`, one after the other.
        data_root: where downloaded data lies.
        out: the folder for the numbers of functions.
    """

    targets: Sequence[str]
    plan: Plan
    checkpoints: Sequence[str] = ()
    data_root: str | None = None
    out: Path = Path("measurements")

    def units(self) -> list[Unit]:
        """All networks; what cannot be right is found here, before anything is measured.

        Raises:
            ValueError: a target that is neither (RunError: that is no run), a setting that does not fit.
            TypeError: a function that returns something else.
        """
        runs = [folder for target in self.targets if not _is_function(target) for folder in _runs(Path(target))]
        units = [unit for folder in dict.fromkeys(runs) for unit in self._of_run(folder)]
        units += [unit for target in self.targets if _is_function(target) for unit in self._of_function(target)]
        return units

    def _of_run(self, folder: Path) -> list[Unit]:
        plan = self.plan.on_data()
        home = folder / "measurements" / plan.settled().key()
        found = checkpoints_of(folder, self.checkpoints or ["all"], self.data_root)
        return [Unit(source, plan, home / f"step-{source.step:08d}.json") for source in found]

    def _of_function(self, name: str) -> list[Unit]:
        return [unit for given in self.checkpoints or [None] for unit in self._of_call(name, given)]

    def _of_call(self, name: str, checkpoint: str | None) -> list[Unit]:
        own = Own(name, None, checkpoint, self.data_root)
        home = self.out / self.plan.settled().key(own.to_dict())
        names: list[str | None] = []
        for entry, objective in objectives(own, self.plan):
            examine(replace(own, entry=entry), Subject(objective), self.plan)
            names.append(entry)
        files = _file_names([entry or name for entry in names])
        sources = [replace(own, entry=entry) for entry in names]
        return [Unit(source, self.plan, home / f"{file}.json") for source, file in zip(sources, files, strict=True)]


def examine(source: Source, subject: Subject, plan: Plan) -> None:
    """Make sure, on a few samples, that a subject can be measured as planned.

    Raises:
        ValueError: its loss cannot be evaluated, it has fewer parameters than eigenvalues are wanted, or `max_memory` is too
            small for one sample.
    """
    try:
        subject.objective.preflight()
    except Exception as error:
        raise ValueError(
            f"the loss of {source.label} fails on its first batch ({type(error).__name__}: {error}){_hint(error)}"
        ) from error
    size = sum(p.numel() for p in subject.objective.parameters())
    for name in ("top", "lowest"):
        if (getattr(plan.settled(), name) or 0) > size:
            raise ValueError(f"{name} is {getattr(plan, name)}, but {source.label} has only {size:,} parameters")
    if (limit := plan.memory()) is not None:
        subject.objective.uncut().forecast().micro_batch(limit)


def _hint(error: Exception) -> str:
    return "; a loss_fn is called with the model and a batch" if isinstance(error, (TypeError, AttributeError)) else ""


def examine_runs(units: Iterable[Unit]) -> None:
    """`examine` one checkpoint for each kind of run among them: a comparison's runs differ in method and seed alone."""
    seen: set[str] = set()
    for unit in units:
        if isinstance(unit.source, Checkpoint):
            config = Run.open(unit.source.run).config
            kind = str([config.get(name) for name in ("data", "data_root", "subset", "model", "widths", "loss")])
            if kind not in seen:
                examine(unit.source, unit.source.build(unit.plan), unit.plan)
            seen.add(kind)
    forget_data()


def _is_function(target: str) -> bool:
    return ":" in target and not Path(target).exists()


def _runs(folder: Path) -> list[Path]:
    """The run in a folder, or the runs of the comparison there that have begun."""
    if not (folder / "comparison.json").is_file():
        if not folder.is_dir():
            raise RunError(f"there is no run folder {folder}{_nearest(folder)}")
        return [_run(folder)]
    arms = read_mapping(folder / "comparison.json").get("arms") or []
    runs = [folder / str(path) for arm in arms for path in arm.get("runs") or []]
    begun = [run for run in runs if (run / "config.json").is_file()]
    if not begun:
        raise RunError(f"no run of the comparison {folder} has begun")
    return begun


def _run(folder: Path) -> Path:
    inside = sorted(path.parent.name for path in folder.glob("*/config.json"))
    if inside and not (folder / "config.json").exists():
        raise RunError(f"the folder {folder} is no run, but holds some: {', '.join(inside[:5])}")
    return Run.open(folder).path


def _nearest(folder: Path) -> str:
    beside = [path.name for path in folder.parent.iterdir() if path.is_dir()] if folder.parent.is_dir() else []
    close = get_close_matches(folder.name, beside, n=1)
    return f"; did you mean {folder.with_name(close[0])}?" if close else "; a function is given as module:function"


def _file_names(names: Sequence[str]) -> list[str]:
    """A file name for each, of letters and digits that every system takes, in the order given."""
    plain = ["".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "-" for c in name) for name in names]
    return [f"{i:02d}-{name.strip('-.') or 'network'}" for i, name in enumerate(plain)]
