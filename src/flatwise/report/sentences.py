"""The summary: sentences that claim no more than the intervals over seeds allow."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from flatwise.report.costs import cost_sentences
from flatwise.report.crowds import crowd_sentences
from flatwise.report.differences import Difference, differences
from flatwise.report.edges import EdgeRatio, EdgeResult, edge_results, is_gd_edge
from flatwise.report.quantities import COMPARED, TEST_ACCURACY, TOP_EIGENVALUE, TRACE, Quantity, p_value, ratios
from flatwise.report.study import Arm, Study
from flatwise.report.sweep_sentences import sweep_sentences
from flatwise.statistics import Interval, mean_interval

NAMES = {
    TEST_ACCURACY.key: "test accuracy",
    TOP_EIGENVALUE.key: "the top Hessian eigenvalue",
    TRACE.key: "the trace of the Hessian",
}
INTERVAL = "interval"


def summary(study: Study) -> list[str]:
    """A sentence on each of test accuracy, top eigenvalue and edge, as far as they were measured, and one on unequal costs.

    A study with sections has those of each of them, after its heading. A crowd of arms has one for each reference. There is none
    on the trace beside one on the top eigenvalue: it goes with it, and is in the table.
    """
    found = [sentence for part in study.parts if part.kind != "edge" for sentence in _under_heading(part)]
    found += cost_sentences(study) if found else []
    found += [sentence for part in (study, study.edge) if part for sentence in _edge(part)]
    return found or [f"No run has finished, so there is nothing to compare{_yet(study)}."]


def _yet(study: Study) -> str:
    """Whether something is still to come."""
    open_ones = ("unfinished", "missing")
    return " yet" if any(trial.status in open_ones for part in study.parts for trial in part.trials) else ""


def _under_heading(study: Study) -> list[str]:
    found = _comparison(study)
    return [f"{study.heading}: {found[0][:1].lower()}{found[0][1:]}", *found[1:]] if study.heading and found else found


def _comparison(study: Study) -> list[str]:
    if study.kind == "sweep":
        return sweep_sentences(study)
    if study.is_crowded:
        return [text for q in COMPARED[:2] for text in crowd_sentences(differences(study, q), NAMES[q.key])]
    sentences = [_sentence(_of_interest(study, q)) if study.pairs else _levels(study.arms, q) for q in COMPARED]
    return [sentence for sentence in sentences if sentence][:2]


def _of_interest(study: Study, quantity: Quantity) -> list[Difference]:
    """Without controls beside anything but what they control: the table has those."""
    return [d for d in differences(study, quantity) if d.first.role != "control"]


# --- levels and differences -------------------------------------------------------------------------------------------


def _levels(arms: Sequence[Arm], quantity: Quantity) -> str:
    """What each arm reached, where nothing is compared."""
    clauses = [_level(arm, quantity) for arm in arms if mean_interval(arm.by_seed(quantity.key).values()).n]
    return _capital(f"{NAMES[quantity.key]} is {'; '.join(clauses)}.") if clauses else ""


def _level(arm: Arm, quantity: Quantity) -> str:
    interval = mean_interval(arm.by_seed(quantity.key).values())
    value = f"{_value(interval.mean, quantity)} with {arm.label}"
    if interval.low is None:
        return f"{value} (one seed, so no interval)"
    return f"{value} (95 % {_interval(interval, quantity)} over {interval.n} seeds)"


def _sentence(found: Sequence[Difference]) -> str:
    """All pairs in one quantity: first what is shown, then what is not."""
    paired = [d for d in found if d.verdict != "one seed"]
    if not paired:
        return _one_seed(found)
    name = NAMES[paired[0].quantity.key]
    shown = [d for d in paired if d.verdict != "unclear"]
    subjects = [f"{name} is", *["it is"] * len(shown)]
    clauses = [f"{subject} {_shown(d)}" for subject, d in zip(subjects, shown)]
    clauses += _nothing_shown([d for d in found if d not in shown], "" if shown else f" in {name}")
    text = "; ".join(clauses).replace(INTERVAL, f"95 % {INTERVAL}", 1)
    return f"Over {_seeds(paired)}, {text}."


def _one_seed(found: Sequence[Difference]) -> str:
    if not found:
        return ""
    quantity = found[0].quantity
    values = {d.first.label: d.means[0] for d in found} | {d.second.label: d.means[1] for d in found}
    levels = ", ".join(f"{_value(value, quantity)} with {label}" for label, value in values.items())
    return _capital(f"{NAMES[quantity.key]} is {levels}: one seed each, so no difference can be shown.")


def _shown(d: Difference) -> str:
    return f"{d.verdict} with {d.first.label} than with {d.second.label} {_amount(d)}"


def _nothing_shown(found: Sequence[Difference], where: str) -> list[str]:
    """One clause for all pairs between which no difference is shown."""
    pairs = [f"between {d.first.label} and {d.second.label} ({_evidence(d)}{_fewer(d)})" for d in found]
    return [f"no difference{where} is shown {_listed(pairs)}"] if pairs else []


def _evidence(d: Difference) -> str:
    """The difference, and its interval or why there is none."""
    size = f"{d.quantity.text(d.interval)} {d.quantity.difference_unit}".strip()
    if d.verdict == "one seed":
        return "one seed"
    return f"{size} in every seed" if d.interval.degenerate else f"{size}, {_interval(d.interval, d.quantity)}"


def _listed(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} or {items[-1]}"


def _amount(d: Difference) -> str:
    """How much: a number of points, or else both means and the interval of their difference."""
    if d.quantity.difference_unit:
        size = d.interval if d.interval.mean > 0 else d.interval.negated()
        return f"by {d.quantity.text(size)} {d.quantity.difference_unit} ({_interval(size, d.quantity)}{_alone(d)}{_fewer(d)})"
    means = " against ".join(_value(mean, d.quantity) for mean in d.means)
    return f"({means}; {_interval(d.interval, d.quantity, ' of the difference')}{_alone(d)}{_fewer(d)})"


def _interval(interval: Interval, quantity: Quantity, of: str = "") -> str:
    return f"{INTERVAL}{of} {quantity.range(interval) or 'within rounding'}"


def _alone(d: Difference) -> str:
    """Said next to an interval whose difference is shown only as long as it is not one of several."""
    return f"; not when corrected for all differences, p {p_value(d.p)}" if d.p > 1 - d.interval.level else ""


def _fewer(d: Difference) -> str:
    """Said next to a number that leaves seeds out."""
    missing = d.interval.excluded
    return f"; {d.interval.n} of {d.interval.n + missing} seeds, the others did not finish in both" if missing else ""


def _seeds(found: Sequence[Difference]) -> str:
    counts = sorted({d.interval.n for d in found})
    return f"{counts[0]} seeds" if len(counts) == 1 else f"{counts[0]} to {counts[-1]} seeds"


# --- the edge ---------------------------------------------------------------------------------------------------------

PLACES = {
    "at": "within 10 % of {edge}",
    "below": "more than 10 % below {edge}",
    "above": "more than 10 % above {edge}",
    "unclear": "not within 10 % of {edge}",
}


def _edge(study: Study) -> list[str]:
    results = [result for result in edge_results(study) if result.measured]
    if not results:
        return []
    subjects = ["the top Hessian eigenvalue is", *["it is"] * len(results)]
    clauses = [f"with {r.arm.label} {subject} {_edge_clause(r)}" for r, subject in zip(results, subjects)]
    return [f"In full-batch training, by medians over the second half of each run, {'; '.join(clauses)}."]


def _edge_clause(result: EdgeResult) -> str:
    place = PLACES[result.place].format(edge=_edge_label(result))
    own = f"{place} {_where(result)} (ratio {_spread(result, lambda r: r.to_edge)}{_left_out(result)})"
    return own if is_gd_edge(result.edge_name) else f"{own}, at {_spread(result, lambda r: r.to_gd_edge)} of 2/lr"


def _where(result: EdgeResult) -> str:
    n = len(result.measured)
    return (
        "in one seed" if n == 1 else f"in every one of {n} seeds" if result.place == "unclear" else f"in all {n} seeds"
    )


def _left_out(result: EdgeResult) -> str:
    """Said next to a ratio that leaves seeds out."""
    missing = len(result.ratios) - len(result.measured)
    return f"; {len(result.measured)} of {len(result.ratios)} seeds" if missing else ""


def _edge_label(result: EdgeResult) -> str:
    return "its edge 2/lr" if is_gd_edge(result.edge_name) else f"the {result.edge_name}"


def _spread(result: EdgeResult, get: Callable[[EdgeRatio], float]) -> str:
    """The smallest and the largest value over seeds."""
    ends = ratios(*(end(map(get, result.measured)) for end in (min, max)))
    return " to ".join(dict.fromkeys(ends))


def _value(value: float, quantity: Quantity) -> str:
    text = quantity.text(Interval(value, None, None, 1))
    return f"{text} {quantity.unit}".strip()


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]
