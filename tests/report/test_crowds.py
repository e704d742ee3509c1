from collections.abc import Callable
from pathlib import Path

from report.test_sentences import arm, trial

from flatwise.report import table
from flatwise.report.crowds import prominent
from flatwise.report.differences import differences
from flatwise.report.forest import forest
from flatwise.report.palette import styles
from flatwise.report.quantities import TEST_ACCURACY
from flatwise.report.sentences import summary
from flatwise.report.study import Arm, Study, read

SGD = arm("sgd", [0.900, 0.910, 0.905, 0.902, 0.908])
SAM = arm("sam", [0.950, 0.961, 0.955, 0.951, 0.958])


def shifted(name: str, by: float, spread: float = 0.0005) -> Arm:
    """An arm that lies a little more or less than `by` above SGD in every seed."""
    noise = (0, 1, -1, 1, -1)
    accuracies = [SGD.trials[i].summary["test_accuracy"] + by + spread * noise[i] for i in range(5)]
    return Arm(name, name.upper(), "method", [trial(seed, accuracy) for seed, accuracy in enumerate(accuracies)])


CROWD = [
    SGD,
    SAM,
    *(shifted(f"m{i}", 0.001 * i, 0.02) for i in range(8)),
    shifted("best", 0.08),
    shifted("worst", -0.1),
]
PAIRS = [(one.name, "sgd") for one in CROWD[1:]] + [(one.name, "sam") for one in CROWD[2:]]


def test_a_crowd_is_said_against_each_reference_and_corrected_for_all_differences() -> None:
    found = summary(Study("", "comparison", "", CROWD, PAIRS))
    assert found[0] == (
        "Over 5 seeds, test accuracy against SGD, corrected for 21 differences (Holm), is higher with BEST (+8.0), SAM (+5.0); "
        "is lower with WORST (−10.0); no difference is shown for the other 8."
    )
    assert found[1].startswith(
        "Over 5 seeds, test accuracy against SAM, corrected for 21 differences (Holm), is higher with"
    )
    assert len(found) == 4  # two quantities, two references


def test_what_the_correction_does_not_leave_is_counted() -> None:
    """A difference of 1.5 noise levels over five seeds: its own interval leaves out zero, a corrected one would not."""
    weak = shifted("weak", 0.03, 0.02)
    (accuracy, *_) = summary(Study("", "comparison", "", [*CROWD, weak], [*PAIRS, ("weak", "sgd")]))
    assert "WEAK" not in accuracy
    assert accuracy.endswith("no difference is shown for the other 9 (1 of 9 by its own interval alone).")


def test_a_crowd_without_any_difference() -> None:
    (accuracy, *_) = summary(
        Study("", "comparison", "", CROWD[:1] + CROWD[2:10], [(f"m{i}", "sgd") for i in range(8)] * 2)
    )
    assert accuracy.endswith("(Holm), no difference is shown for any of 16.")


def test_figures_begin_with_the_references_and_the_most_accurate() -> None:
    assert prominent(Study("", "comparison", "", CROWD, PAIRS))[:3] == ["sgd", "sam", "best"]
    assert len(prominent(Study("", "comparison", "", CROWD, PAIRS))) == 8
    assert prominent(Study("", "comparison", "", CROWD[:4], PAIRS[:2])) == [one.name for one in CROWD[:4]]


def test_the_tables_of_a_crowd_are_by_reference_and_sorted(comparison: Callable[..., Path]) -> None:
    names = ["sgd", "sam", "eigen-sam", "sam-equal-norm", "reverse-sam"]
    pairs = [(a, b) for b in ("sgd", "sam") for a in names if a != b] + [("eigen-sam", "sam-equal-norm")]
    found = table(comparison(names, pairs=pairs)).differences
    assert [heading for heading, _ in found] == [
        f"{quantity} against {reference}"
        for quantity in ("Test accuracy", "Top eigenvalue")
        for reference in ("SGD", "SAM", "SAM at equal norm")
    ]
    means = [row.difference.interval.mean for row in found[0][1]]
    assert means == sorted(means, reverse=True)
    assert all(row.p for row in found[0][1])


def test_a_study_of_one_folder_has_no_crowd(demo: Path) -> None:
    assert not read(demo).is_crowded


def test_a_few_differences_far_out_do_not_flatten_the_others() -> None:
    study = Study("", "comparison", "", CROWD, PAIRS[: len(CROWD) - 1])
    far = Study("", "comparison", "", [*CROWD, shifted("far", -0.9)], [*study.pairs, ("far", "sgd")])
    plain, squeezed = (forest(differences(one, TEST_ACCURACY)) for one in (study, far))
    assert [mark.mean for mark in squeezed[:-1]] == [mark.mean for mark in plain]
    assert squeezed[-1].mean == 1.0


def test_colors_of_many_arms_go_round() -> None:
    colors = [style.color for style in styles(Study("", "comparison", "", CROWD, PAIRS)).values()]
    assert len(set(colors[:8])) == 8
    assert len(set(colors[8:])) > 1
