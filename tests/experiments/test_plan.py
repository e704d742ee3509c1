import json

import pytest
import torch

from flatwise.experiments.forecast import expected, print_forecast
from flatwise.experiments.plan import Plan
from flatwise.runs import Run
from flatwise.training import Settings

SMALL = Settings(subset=100, widths=(8,), epochs=2, batch_size=20, probe_every=0)
METHODS = ("sgd", "sam", "nso", "ae-sam", "eigen-sam")


def plan(**entries):
    values = {"methods": METHODS, "settings": SMALL, "seeds": 2, "command": "flatwise compare"}
    return Plan(**{**values, **entries})


def configs(section):
    return {arm.name: arm.config for arm in section.arms}


def test_as_given_nothing_is_changed(tmp_path):
    ((folder, section),) = plan().sections(tmp_path).items()
    assert folder == tmp_path
    assert section.heading == ""
    assert all(config.epochs == 2 and config.steps is None for config in configs(section).values())


def test_at_equal_evaluations_every_method_gets_the_steps_that_the_budget_pays_for(tmp_path):
    (section,) = plan(equal=("evaluations",)).sections(tmp_path).values()
    assert section.heading == "At equal gradient evaluations, 20 each"  # 10 steps of SAM
    found = configs(section)
    assert {name: found[name].steps for name in ("sgd", "sam", "nso")} == {"sgd": 20, "sam": 10, "nso": 10}
    assert (found["ae-sam"].steps, found["ae-sam"].evaluations) == (None, 20)
    assert found["eigen-sam"].steps == 9


def test_a_budget_and_a_number_of_steps_are_exchanged_at_what_sam_takes(tmp_path):
    entries = {"settings": Settings(evaluations=60), "equal": ("evaluations", "steps")}
    steps, evaluations = plan(**entries).sections(tmp_path).values()
    assert {config.steps for config in configs(steps).values()} == {30}
    assert configs(evaluations)["sgd"].steps == 60


def test_runs_that_are_the_same_in_both_sections_are_made_once(tmp_path):
    sections = plan(equal=("steps", "evaluations")).sections(tmp_path)
    steps, evaluations = sections.values()
    assert list(sections) == [tmp_path, tmp_path / "evaluations"]
    assert steps.sections == ["evaluations"]
    homes = {arm.name: arm.home for arm in evaluations.arms}
    # the control runs at the norm that was measured in its own section
    assert homes == {"sgd": "", "sam": "..", "nso": "..", "ae-sam": "", "eigen-sam": "", "sam-equal-norm": ""}
    places = {job.folder for job in evaluations.jobs(tmp_path / "evaluations")}
    assert tmp_path / "runs/sam/seed-0" in places


@pytest.mark.parametrize(
    ("entries", "sentence"),
    [
        ({"seeds": 0}, "seeds must be at least 1"),
        ({"tune_seeds": 0}, "tune_seeds must be at least 1"),
        ({"equal": ("steps", "steps")}, "equal takes steps, evaluations, or both"),
        ({"settings": Settings(evaluations=60)}, "evaluations 60 has no effect at equal steps"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(entries, sentence):
    with pytest.raises(ValueError, match=sentence):
        plan(**entries)


def test_a_tuned_comparison_from_beginning_to_end(tmp_path):
    tuned = plan(
        methods=("sgd", "sam", "late-sam"), equal=("steps", "evaluations"), tune=("rho=x1,x100",), tune_seeds=1, seeds=1
    )
    assert tuned.carry_out(tmp_path, workers=1) == {}
    written = json.loads((tmp_path / "comparison.json").read_text())
    assert written["sections"] == ["evaluations"]
    assert [arm["name"] for arm in written["tuning"]["arms"]] == ["sam", "late-sam"]
    trials = [Run.open(path.parent) for path in tmp_path.glob("**/tuning/runs/*/*/config.json")]
    assert len(trials) == 6  # those of SAM are the same in both sections
    assert {(run.config["seed"], run.config["validation"]) for run in trials} == {(1000, 0.1)}
    chosen = {arm["name"]: arm["chosen"] for arm in written["tuning"]["arms"]}
    judged = Run.open(tmp_path / "runs/sam/seed-0")
    assert f"rho={judged.config['rho']}" == chosen["sam"]
    assert judged.config["validation"] == 0
    assert {"trace", "trace_error", "top_eigenvalue"} <= judged.summary.keys()
    second = json.loads((tmp_path / "evaluations/comparison.json").read_text())
    assert {arm["name"]: arm["runs"] for arm in second["arms"]}["sam"] == ["../runs/sam/seed-0"]
    spent = {run.config["method"]: run.summary["evaluations"] for run in runs_of(tmp_path / "evaluations", second)}
    assert spent == {"sgd": 20, "sam": 20, "late-sam": 20}

    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.glob("**/done.json")}
    assert tuned.carry_out(tmp_path, workers=1) == {}
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps


def runs_of(folder, comparison):
    return [Run.open(folder / path) for arm in comparison["arms"] for path in arm["runs"]]


def test_a_dry_run_counts_runs_steps_and_evaluations_and_writes_nothing(tmp_path, capsys):
    from rich.console import Console

    torch.manual_seed(1)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    entries = {"equal": ("steps", "evaluations"), "tune": ("rho=x1,x2",), "methods": ("sgd", "sam", "ae-sam")}
    found = expected(plan(**entries), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    counted = [(one.label, one.runs, one.steps, one.evaluations) for one in found if one.label != "AE-SAM"]
    assert counted == [("SAM", 4, 10, 20), ("SGD", 2, 10, 10), ("SAM", 2, 10, 20), ("SGD", 2, 20, 20)]
    adaptive = [one for one in found if one.label == "AE-SAM"]
    assert [one.runs for one in adaptive] == [4, 4, 2, 2]
    assert all(one.evaluations == 20 and 10 <= one.steps <= 20 for one in adaptive if "evaluations" in one.section)
    assert all(one.seconds > 0 for one in found)
    print_forecast(found, 2, Console(width=100))
    printed = capsys.readouterr().out
    assert "At equal gradient evaluations, 20 each" in printed
    assert "in sum: 22 runs" in printed.replace("\n", " ")
