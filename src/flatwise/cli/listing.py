"""`flatwise list`: what there is by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from flatwise.cli.streams import say_no_more

if TYPE_CHECKING:
    from flatwise.experiments.claims.claim import Claim

MANY = 1000
"""Steps of the run over which the cost of a step is a mean."""

CORES = 2
"""On which the small scale of a claim is made."""


@dataclass(frozen=True)
class List:
    """List the methods, claims, data sets or models that have a name."""

    what: tyro.conf.Positional[Literal["methods", "claims", "data", "models"]]
    """What to list."""

    claims: Path | None = None
    """The folder of all claims, whose last verdicts are listed with them; default: claims, where it is there."""

    def run(self, words: Sequence[str]) -> int:
        """Print the names, each with a line about it."""
        del words
        from flatwise.tasks import data_names, model_names

        if self.claims and self.what != "claims":
            raise ValueError(f"claims has no effect on {self.what}; leave it out")
        listings = {"methods": _methods, "claims": self._claims, "data": data_names, "models": model_names}
        entries = listings[self.what]()
        width = max(len(name) for name, _ in entries)
        _say("\n".join(f"{name:{width}}  {line}" for name, line in entries))
        return 0

    def _claims(self) -> list[tuple[str, str]]:
        """Each claim with the verdict of its last run, its statement, its scales and how long the small one takes."""
        from flatwise.experiments.claims.listed import CLAIMS
        from flatwise.report import last_verdicts

        if self.claims and not self.claims.is_dir():
            raise ValueError(f"there is no folder {self.claims}; `flatwise reproduce` makes it")
        found = last_verdicts(self.claims or Path("claims"))
        about = {
            name: f"{claim.statement} [{', '.join(claim.scales)}; {_duration(claim)}]" for name, claim in CLAIMS.items()
        }
        return [(name, f"{found[name]}: {line}" if name in found else line) for name, line in about.items()]


def _duration(claim: Claim) -> str:
    """Of its parts as they were timed once, and not here: the dry run does that."""
    from flatwise.experiments.claims.carrying import Trial

    units = Trial(claim, "small", claim.seeds["small"], Path("claims")).units()
    minutes = max(1, round(sum(unit.weight for unit in units) / 60 / CORES))
    return f"small: about {minutes} {'minute' if minutes == 1 else 'minutes'} on two cores"


def _say(text: str) -> None:
    """Print it, to a reader that may have read enough before the end."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        say_no_more()


def _methods() -> list[tuple[str, str]]:
    """Each method with the first line of its description, its hyper-parameters, and what a step costs."""
    from flatwise import methods

    return [(name, _described(name)) for name in methods.names()]


def _described(name: str) -> str:
    from flatwise import methods
    from flatwise.training import TrainConfig
    from flatwise.training.setup import evaluations_in, method_settings

    first = (methods.by_name(name).__doc__ or "").splitlines()[0]
    evaluations = evaluations_in(TrainConfig(method=name), MANY)
    words = [f"{key} {value}" for key, value in method_settings(name).items() if value is not None]
    words.append(f"evaluations a step: {'by the data' if evaluations is None else format(evaluations / MANY, 'g')}")
    return f"{first} [{', '.join(words)}]"
