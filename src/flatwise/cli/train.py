"""`flatwise train`: one run."""

from __future__ import annotations

import hashlib
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from flatwise.cli.log import Log, mirrors
from flatwise.training.config import TrainConfig

if TYPE_CHECKING:
    from flatwise.runs import Run
    from flatwise.training.distributed import World
    from flatwise.training.interruption import Interrupted


@dataclass(frozen=True)
class Train:
    """Train one model and leave a run folder; the same command again continues where it stopped."""

    config: Annotated[TrainConfig, tyro.conf.arg(name="")] = field(default_factory=TrainConfig)

    out: Path | None = None
    """The run folder; default: runs/METHOD-DATA-MODEL-HASH, where the hash stands for all settings."""

    resume: Path | None = None
    """Continue this run folder with its own settings."""

    settings: Path | None = None
    """A JSON file with settings, named as here but with underscores; flags override it."""

    log: Log = ()
    """Show the metrics in TensorBoard too (RUN/tensorboard), or in W&B (RUN/wandb, offline without WANDB_MODE), or both."""

    parallel: Literal["ddp", "fsdp2"] | None = None
    """Under torchrun, how the processes share the network: ddp (the default), all of it on each; fsdp2, a shard on each."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute: cuda is one GPU for each process of a machine; auto takes GPUs where there are some."""

    def run(self, words: Sequence[str]) -> int:
        """Train, and say where the results lie."""
        from flatwise.processes import keep_memory
        from flatwise.training.distributed import Refused, processes

        keep_memory()
        try:
            with processes(self.parallel, self.device) as world:
                return self._train(words, world)
        except Refused:
            return REFUSED  # the first process says why

    def _train(self, words: Sequence[str], world: World) -> int:
        from flatwise.training import Interrupted, train

        config, folder = world.told(lambda: self._what_and_where(words))
        log = mirrors(self.log)
        try:
            run = train(config, folder, progress=True, mirrors=log, parallel=self.parallel, device=self.device)
        except Interrupted as stop:
            return _stopped(stop, log, world)
        return world.told(lambda: _report(run))

    def _what_and_where(self, words: Sequence[str]) -> tuple[TrainConfig, Path]:
        from flatwise.training import resolved

        settled = self._settled(words)
        config = resolved(settled.config)
        if self.resume:
            _check_unchanged(self.resume, config)
        return config, settled.out or _default_folder(config)

    def _settled(self, words: Sequence[str]) -> Train:
        """These arguments, with the settings of the run or the file as the defaults of the flags."""
        from flatwise.runs import Run

        if self.resume and (self.out or self.settings):
            raise ValueError("--resume continues a run in its folder with its settings; leave --out and --settings out")
        if self.resume:
            config = TrainConfig.from_dict(Run.open(self.resume).config, str(self.resume))
            return replace(_parsed(words, config), out=self.resume)
        return _parsed(words, TrainConfig.from_file(self.settings)) if self.settings else self


REFUSED = 2
"""Exit code of bad input."""


def _parsed(words: Sequence[str], defaults: TrainConfig) -> Train:
    return tyro.cli(Train, prog="flatwise train", args=words[1:], default=Train(config=defaults))


def _check_unchanged(folder: Path, config: TrainConfig) -> None:
    from flatwise.runs import Run

    if differences := Run.open(folder).differences(config.to_dict()):
        raise ValueError(
            f"--resume continues {folder} with its own settings ({', '.join(differences)}); leave those flags out, or "
            "start another run with --out instead"
        )


def _default_folder(config: TrainConfig) -> Path:
    settings = json.dumps(config.to_dict(), sort_keys=True).encode()
    words = [config.method.replace(":", "."), *(name.split(":")[0] for name in (config.data, config.model))]
    return Path("runs") / "-".join([*words, hashlib.sha256(settings).hexdigest()[:8]])


def _stopped(stop: Interrupted, log: list[str], world: World) -> int:
    words = ["flatwise", "train", "--resume", str(stop.run.path), *(["--log", *log] if log else [])]
    if world.is_first:
        print(f"stopped at step {stop.step}; continue with: {world.command(shlex.join(words))}", file=sys.stderr)
    return 128 + stop.signal


def _report(run: Run) -> int:
    summary = run.summary
    if run.status == "diverged":
        print(f"{summary['reason']}; what was measured until then is in {run.path}", file=sys.stderr)
        return 1
    print(f"test accuracy {100 * summary['test_accuracy']:.1f} %, training loss {summary['train_loss']:.4g}", end="")
    if "top_eigenvalue" in summary:
        print(f", top eigenvalue {summary['top_eigenvalue']:.4g}", end="")
    print(f", {summary['evaluations']:,} gradient evaluations in {summary['seconds']:.1f} s")
    print(f"run folder {run.path}; for a page about it: flatwise report {run.path}")
    return 0
