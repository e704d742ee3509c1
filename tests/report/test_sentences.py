import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flatwise.report import table
from flatwise.report.edges import EdgeRatio, EdgeResult
from flatwise.report.sentences import summary
from flatwise.report.study import Arm, Study, Trial


def arm(name: str, accuracies: list[float | None], label: str = "") -> Arm:
    """An arm whose runs end at these accuracies, and at a top eigenvalue of ten times as much; None is a diverged run."""
    trials = [trial(seed, accuracy) for seed, accuracy in enumerate(accuracies)]
    return Arm(name, label or name.upper(), "method", trials)


def trial(seed: int, accuracy: float | None) -> Trial:
    if accuracy is None:
        return Trial(seed, "diverged", summary={"test_accuracy": 0.1, "top_eigenvalue": 1e9})
    return Trial(seed, "finished", summary={"test_accuracy": accuracy, "top_eigenvalue": 10 * accuracy})


def said(*arms: Arm, pairs: list[tuple[str, str]]) -> list[str]:
    return summary(Study("", "comparison", "", arms, pairs))


def accuracies(one: Arm) -> list[float]:
    return [trial.summary["test_accuracy"] for trial in one.trials]


SGD = arm("sgd", [0.939, 0.941, 0.930, 0.945, 0.938])
SAM = arm("sam", [0.953, 0.957, 0.944, 0.962, 0.952])
EIGEN = arm("eigen-sam", [0.955, 0.954, 0.946, 0.957, 0.951], "Eigen-SAM")


def test_a_clear_and_an_unclear_difference() -> None:
    accuracy, eigenvalue = said(SGD, SAM, EIGEN, pairs=[("eigen-sam", "sam"), ("sam", "sgd")])
    assert accuracy == (
        "Over 5 seeds, test accuracy is higher with SAM than with SGD by 1.5 points (95 % interval 1.3 to 1.7); "
        "no difference is shown between Eigen-SAM and SAM (−0.1 points, interval −0.5 to 0.3)."
    )
    assert eigenvalue == (
        "Over 5 seeds, the top Hessian eigenvalue is higher with SAM than with SGD (9.54 against 9.39; 95 % interval of the "
        "difference 0.132 to 0.168); no difference is shown between Eigen-SAM and SAM (−0.010, interval −0.048 to 0.028)."
    )


def test_a_difference_that_its_own_interval_alone_shows_says_so() -> None:
    barely = arm(
        "barely", [a + gain for a, gain in zip(accuracies(SGD), [0.002, 0.011, 0.004, 0.003, 0.006])], "Barely"
    )
    alone, _ = said(SGD, barely, pairs=[("barely", "sgd")])
    among, _ = said(SGD, EIGEN, SAM, barely, pairs=[("barely", "sgd"), ("eigen-sam", "sam"), ("eigen-sam", "barely")])
    assert "corrected" not in alone
    assert "is higher with Barely than with SGD by 0.5 points" in alone
    assert "not when corrected for all differences, p 0." in among


def test_a_loss_is_said_with_positive_points() -> None:
    accuracy, _ = said(SGD, SAM, pairs=[("sgd", "sam")])
    assert (
        accuracy
        == "Over 5 seeds, test accuracy is lower with SGD than with SAM by 1.5 points (95 % interval 1.3 to 1.7)."
    )


def test_no_clear_difference_at_all() -> None:
    accuracy, _ = said(SAM, EIGEN, pairs=[("eigen-sam", "sam"), ("sam", "eigen-sam")])
    assert accuracy == (
        "Over 5 seeds, no difference in test accuracy is shown between Eigen-SAM and SAM (−0.1 points, 95 % interval "
        "−0.5 to 0.3) or between SAM and Eigen-SAM (0.1 points, interval −0.3 to 0.5)."
    )


def test_seeds_that_agree_by_chance_show_nothing() -> None:
    """Accuracies are shares of a test set: two seeds may differ by one sample each."""
    accuracy, _ = said(arm("sgd", [0.5, 0.6]), arm("sam", [0.5 + 1 / 797, 0.6 + 1 / 797]), pairs=[("sam", "sgd")])
    assert (
        accuracy
        == "Over 2 seeds, no difference in test accuracy is shown between SAM and SGD (0.1 points in every seed)."
    )


def test_one_seed_claims_nothing() -> None:
    accuracy, eigenvalue = said(arm("sgd", [0.939]), arm("sam", [0.954]), pairs=[("sam", "sgd")])
    assert (
        accuracy == "Test accuracy is 95.4 % with SAM, 93.9 % with SGD: one seed each, so no difference can be shown."
    )
    assert "higher" not in eigenvalue
    assert "interval" not in eigenvalue


def test_a_diverged_seed_is_left_out_and_said_so() -> None:
    broken = arm("sam", [0.953, None, 0.944, 0.962, 0.952])
    accuracy, _ = said(SGD, broken, pairs=[("sam", "sgd")])
    assert accuracy.startswith("Over 4 seeds, ")
    assert "4 of 5 seeds, the others did not finish in both" in accuracy


def test_a_pair_left_with_one_seed_is_said_to_show_nothing() -> None:
    broken = arm("eigen-sam", [0.955, None, None, None, None], "Eigen-SAM")
    accuracy, _ = said(SGD, SAM, broken, pairs=[("sam", "sgd"), ("eigen-sam", "sam")])
    assert "no difference is shown between Eigen-SAM and SAM (one seed; 1 of 5 seeds, " in accuracy


def test_a_single_arm_is_only_described() -> None:
    accuracy, eigenvalue = said(SAM, pairs=[])
    assert accuracy == "Test accuracy is 95.4 % with SAM (95 % interval 94.5 to 96.2 over 5 seeds)."
    assert eigenvalue.startswith("The top Hessian eigenvalue is 9.5")


def test_nothing_finished() -> None:
    wild = arm("sam", [None])
    assert said(wild, pairs=[]) == ["No run has finished, so there is nothing to compare."]
    open_one = Arm("sgd", "SGD", "method", [Trial(0, "missing")])
    assert said(wild, open_one, pairs=[]) == ["No run has finished, so there is nothing to compare yet."]


@pytest.mark.parametrize(
    ("ratios", "place"),
    [([0.95, 1.05], "at"), ([0.5, 0.8], "below"), ([1.2, 1.3], "above"), ([0.5, 1.0], "unclear"), ([], "unclear")],
)
def test_place_against_the_edge_holds_for_every_seed(ratios: list[float], place: str) -> None:
    result = EdgeResult(SAM, "SAM edge", [EdgeRatio(Trial(0, "finished"), ratio, 0.1, 9) for ratio in ratios])
    assert result.place == place


def test_the_edge_is_said_with_its_ratios(edge: Callable[..., Path]) -> None:
    (sentence,) = table(edge()).summary
    assert "with GD the top Hessian eigenvalue is within 10 % of its edge 2/lr in all 3 seeds (ratio 0.9" in sentence
    assert "with SAM it is within 10 % of the SAM edge in all 3 seeds (ratio 1.0" in sentence
    assert (
        "with Eigen-SAM it is more than 10 % above the Eigen-SAM edge (derived) in all 3 seeds (ratio 1.1" in sentence
    )
    assert sentence.count("of 2/lr") == 2


def test_an_edge_run_that_diverged_is_not_counted(edge: Callable[..., Path]) -> None:
    folder = edge()
    done = folder / "runs/sam/seed-1/done.json"
    mark: dict[str, Any] = json.loads(done.read_text())
    done.write_text(json.dumps(mark | {"status": "diverged"}))
    (sentence,) = table(folder).summary
    clause = next(part for part in sentence.split("; with ") if part.startswith("SAM "))
    assert "within 10 % of the SAM edge in all 2 seeds" in clause
    assert "; 2 of 3 seeds), at 0." in clause


def test_a_comparison_speaks_of_its_edge_study_too(demo: Path) -> None:
    accuracy, eigenvalue, cost, edge_sentence = table(demo).summary
    assert "test accuracy is higher with SAM than with SGD" in accuracy
    assert "the top Hessian eigenvalue is lower with SAM than with SGD" in eigenvalue
    assert cost.startswith("At equal steps SAM took 2.0 times the gradient evaluations of SGD; ")
    assert "SAM edge" in edge_sentence


def costly(name: str, steps: int, evaluations: int) -> Arm:
    numbers = {"test_accuracy": 0.9, "steps": steps, "evaluations": evaluations}
    return Arm(name, name, "method", [Trial(seed, "finished", summary=numbers) for seed in (0, 1)])


def test_a_comparison_at_equal_steps_says_who_took_more_evaluations() -> None:
    *_, cost = said(costly("A", 10, 10), costly("B", 10, 20), costly("C", 10, 26), pairs=[("B", "A")])
    assert cost == (
        "At equal steps C took 2.6 times the gradient evaluations of A; "
        "flatwise compare --equal evaluations compares at equal cost."
    )


@pytest.mark.parametrize(
    "arms",
    [
        (costly("A", 20, 20), costly("B", 10, 20)),  # at equal evaluations
        (costly("A", 10, 20), costly("B", 10, 21)),  # alike
        (costly("A", 10, 20),),
    ],
)
def test_nothing_is_said_of_costs_where_they_are_alike(arms: tuple[Arm, ...]) -> None:
    assert not any("At equal steps" in sentence for sentence in said(*arms, pairs=[]))
