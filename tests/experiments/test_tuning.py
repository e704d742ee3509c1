import json

import pytest

from flatwise.experiments.arms import arms_of
from flatwise.experiments.tuning import Grid, tuning_of, with_values
from flatwise.runs import Run, RunError
from flatwise.training import Settings, TrainConfig, resolved
from flatwise.training.setup import values_of


def settings_tried(methods, words, **settings):
    tuning = tuning_of(arms_of(methods, Settings(**settings)), words, 2, 0.0, "")
    return [(candidate.arm.name, candidate.setting) for candidate in tuning.candidates]


def test_multiples_are_of_each_methods_own_value():
    assert settings_tried(["sgd", "sam", "nso"], ["rho=x0.5,x1,x2"]) == [
        ("sam", "rho=0.025"),
        ("sam", "rho=0.05"),
        ("sam", "rho=0.1"),
        ("nso", "rho=0.005"),
        ("nso", "rho=0.01"),
        ("nso", "rho=0.02"),
    ]
    assert settings_tried(["sam"], ["rho=x1,x2"], rho=0.3) == [("sam", "rho=0.3"), ("sam", "rho=0.6")]
    assert settings_tried(["tsam"], ["samples=x0.1,x1,x3"]) == [("tsam", f"samples={n}") for n in (1, 3, 9)]


def test_values_go_to_the_methods_that_have_them_and_several_grids_are_combined():
    found = settings_tried(["sam", "gsam"], ["rho=0.1,0.2", "alpha=0.3,0.4"])
    assert found[:2] == [("sam", "rho=0.1"), ("sam", "rho=0.2")]
    assert found[2:] == [("gsam", f"rho={rho} alpha={alpha}") for rho in (0.1, 0.2) for alpha in (0.3, 0.4)]
    assert settings_tried(["sam", "nso"], ["nso.rho=0.1"]) == [("nso", "rho=0.1")]


@pytest.mark.parametrize("word", ["rho", "rho=", "rho=xa,xb", "=1", "rho=x1,2"])
def test_what_is_no_grid_is_refused(word):
    with pytest.raises(ValueError, match=r"takes words such as"):
        Grid.read(word)


@pytest.mark.parametrize(
    ("methods", "words", "sentence"),
    [
        (["sgd"], ["rho=0.1"], "tune: rho has no effect with sgd"),
        (["eigen-sam"], ["source=x1,x2"], "source is ritz, which has no multiples"),
    ],
)
def test_a_grid_that_reaches_nothing_is_refused(methods, words, sentence):
    with pytest.raises(ValueError, match=sentence):
        settings_tried(methods, words)


def test_trials_hold_samples_out_and_are_not_judged():
    tuning = tuning_of(arms_of(["sam", "eigen-sam"], Settings()), ["rho=x1,x2"], 3, 0.2, "")
    assert list(tuning.seeds) == [1000, 1001, 1002]
    assert {trial.config.validation for trial in tuning.trials} == {0.2}
    assert not any(trial.config.curvature for trial in tuning.trials)
    assert len({trial.name for trial in tuning.trials}) == len(tuning.trials) == 4  # and the control is not tuned
    assert {t.config.validation for t in tuning_of(arms_of(["sam"], Settings()), ["rho=x1"], 1, 0.0, "").trials} == {
        0.1
    }


def test_values_replace_what_the_settings_say():
    config = TrainConfig(method="tsam", rho=0.1, hyper=("tilt=5",))
    changed = with_values(config, {"rho": 0.2, "tilt": 7, "samples": 1})
    assert {k: values_of(changed)[k] for k in ("rho", "tilt", "samples")} == {"rho": 0.2, "tilt": 7, "samples": 1}
    assert resolved(changed).rho == 0.2


def written(folder, trial, seed, accuracy, loss, status="finished"):
    run = Run.create(folder / trial.folder(seed), {"seed": seed}, {})
    run.finish(status, {"validation_accuracy": accuracy, "validation_loss": loss})


def test_the_best_mean_on_the_validation_split_is_chosen_and_written_down(tmp_path):
    arms = arms_of(["sgd", "sam", "nso"], Settings())
    tuning = tuning_of(arms, ["rho=x1,x2"], 2, 0.0, "")
    scores = {
        "sam,rho=0.05": (0.5, 0.6),
        "sam,rho=0.1": (0.7, 0.5),
        "nso,rho=0.01": (0.5, 0.5),
        "nso,rho=0.02": (0.5, 0.5),
    }
    for trial in tuning.trials:
        for seed, accuracy in zip(tuning.seeds, scores[trial.name], strict=True):
            written(tmp_path, trial, seed, accuracy, loss=2.0 if trial.name.endswith("0.01") else 1.0)
    chosen = {arm.name: values_of(arm.config).get("rho") for arm in tuning.chosen(arms, tmp_path)}
    assert chosen == {"sgd": None, "sam": 0.1, "nso": 0.02}  # of equal accuracies the one with the lower loss
    entry = json.loads(json.dumps(tuning.entry(tmp_path)))
    assert entry["seeds"] == [1000, 1001]
    assert [arm["chosen"] for arm in entry["arms"]] == ["rho=0.1", "rho=0.02"]
    assert entry["arms"][0]["grid"][0]["accuracies"] == [0.5, 0.6]


def test_a_setting_whose_runs_diverged_is_not_chosen(tmp_path):
    arms = arms_of(["sam"], Settings())
    tuning = tuning_of(arms, ["rho=x1,x2"], 2, 0.0, "")
    for trial, status in zip(tuning.trials, ("finished", "diverged"), strict=True):
        for seed in tuning.seeds:
            written(tmp_path, trial, seed, 0.5 if status == "finished" else 0.9, 1.0, status)
    assert tuning.chosen(arms, tmp_path)[0].config.rho == 0.05
    assert tuning.entry(tmp_path)["arms"][0]["grid"][1]["accuracies"] == [None, None]


def test_where_no_setting_has_finished_none_can_be_chosen(tmp_path):
    arms = arms_of(["sam"], Settings())
    with pytest.raises(RunError, match="no setting of sam has finished"):
        tuning_of(arms, ["rho=x1,x2"], 2, 0.0, "").chosen(arms, tmp_path)
