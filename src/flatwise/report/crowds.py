"""Sentences about many arms: against each reference, who differs even when it is corrected for the number of differences."""

from __future__ import annotations

from collections.abc import Sequence

from flatwise.report.differences import Difference
from flatwise.report.quantities import signed
from flatwise.report.study import Arm, Study

FEW = 3
"""An arm that so many others are compared with is a reference."""

SHOWN = 8
"""So many arms are drawn at first, and named at the ends of their lines."""


def by_reference(found: Sequence[Difference]) -> list[tuple[Arm, list[Difference]]]:
    """The differences by the arm that the others are compared with, most comparisons first; within, the largest first."""
    groups: dict[str, list[Difference]] = {}
    for d in found:
        groups.setdefault(d.second.name, []).append(d)
    ranked = sorted(groups.values(), key=len, reverse=True)
    return [(group[0].second, sorted(group, key=lambda d: -d.interval.mean)) for group in ranked]


def crowd_sentences(found: Sequence[Difference], name: str) -> list[str]:
    """One sentence for each reference, on a quantity of this name. Nothing where no arm has two seeds."""
    groups = [(arm, [d for d in group if d.verdict != "one seed"]) for arm, group in by_reference(found)]
    return [_sentence(arm, group, name, len(found)) for arm, group in groups if len(group) >= FEW]


def _sentence(reference: Arm, group: Sequence[Difference], name: str, number: int) -> str:
    """Who differs also when it is corrected for the number of differences; of the others, how many do by their own interval."""
    standing = [(word, [d for d in group if d.verdict == word and d.stands]) for word in ("higher", "lower")]
    clauses = [f"is {word} with {_listed(those)}" for word, those in standing if those]
    if left := [d for d in group if not d.stands]:
        whom = "the other" if clauses else "any of"
        clauses.append(f"no difference is shown for {whom} {len(left)}{_alone(left)}")
    correction = f", corrected for {number} differences (Holm),"
    return f"Over {_seeds(group)}, {name} against {reference.label}{correction} {'; '.join(clauses)}."


def _alone(left: Sequence[Difference]) -> str:
    """How many differ only where nothing is corrected."""
    number = sum(d.verdict in ("higher", "lower") for d in left)
    return f" ({number} of {len(left)} by {'its' if number == 1 else 'their'} own interval alone)" if number else ""


def _listed(found: Sequence[Difference]) -> str:
    return ", ".join(f"{d.first.label} ({signed(d.quantity.text(d.interval))})" for d in found)


def _seeds(found: Sequence[Difference]) -> str:
    counts = sorted({d.interval.n for d in found})
    return f"{counts[0]} seeds" if len(counts) == 1 else f"{counts[0]} to {counts[-1]} seeds"


def prominent(study: Study) -> list[str]:
    """The names of the arms that figures show at first: all, or of many the references and those of the highest accuracy."""
    if len(study.arms) <= SHOWN:
        return [arm.name for arm in study.arms]
    references = [
        name for name in dict.fromkeys(b for _, b in study.pairs) if sum(b == name for _, b in study.pairs) >= FEW
    ]
    ranked = sorted(study.arms, key=lambda arm: -_mean(arm))
    return [*references, *(arm.name for arm in ranked if arm.name not in references)][:SHOWN]


def _mean(arm: Arm) -> float:
    values = [value for value in arm.by_seed("test_accuracy").values() if value == value]
    return sum(values) / len(values) if values else 0.0
