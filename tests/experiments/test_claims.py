"""Claims: their parts kept one by one, more seeds added, verdicts written down and shown."""

import json
import math
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from flatwise import report
from flatwise.cli.main import main
from flatwise.experiments.claims.carrying import Trial, reproduce
from flatwise.experiments.claims.claim import Claim, Criterion, Line, Outcome, Panel
from flatwise.experiments.claims.durations import SECONDS
from flatwise.experiments.claims.listed import CLAIMS, claim_by_name
from flatwise.experiments.claims.trainings import panel, train_arms
from flatwise.experiments.claims.units import units_of
from flatwise.runs import Run, RunError, write_json
from flatwise.training import resolved


def measure(preset, cell, seed, folder, progress):
    """The error of the rectangle rule for the sine, from a random-looking shift."""
    del folder
    errors = []
    for i, n in enumerate(preset["sizes"]):
        shift = math.sin(seed + cell["k"]) / 4 + 0.5
        area = sum(math.sin((j + shift) * math.pi / n) for j in range(n)) * math.pi / n
        errors.append(abs(area - 2))
        progress(i + 1, len(preset["sizes"]))
    return {"errors": errors}


def judge(preset, seeds):
    fall = [cells[0]["errors"][-1] / cells[0]["errors"][0] for cells in seeds]
    line = Line("error", preset["sizes"], seeds[0][0]["errors"])
    return Outcome(
        [Criterion("fall", "From the first size to the last.", fall, None, 0.2)], [Panel("e", "n", "e", [line])]
    )


CLAIM = Claim(
    name="rectangles",
    statement="More rectangles are better.",
    source="a test",
    protocol="As it stands.",
    scales={"small": {"sizes": [4, 8, 16]}},
    seeds={"small": 3},
    measure=measure,
    judge=judge,
    cells=lambda preset: [{"k": 0}, {"k": 1}],
)


def made(trial):
    """The parts of a trial measured here, as its processes would."""
    for unit in trial.units():
        if not unit.done():
            settings = unit.settings()
            found = CLAIM.measure(settings["preset"], settings["cell"], unit.seed, unit.place, lambda done, total: None)
            unit.place.parent.mkdir(parents=True, exist_ok=True)
            about = {"environment": {"python": "3.12", "command": "", "started": str(unit.seed)}, "measured": found}
            write_json(unit.place, {"settings": json.loads(json.dumps(settings))} | about)
    return trial.conclude("flatwise reproduce rectangles")


def test_what_the_seeds_say_is_written_down(tmp_path):
    found = json.loads(made(Trial(CLAIM, "small", 3, tmp_path)).read_text())
    assert found["seeds"] == [0, 1, 2]
    assert len(found["criteria"][0]["values"]) == 3
    assert found["preset"] == {"sizes": [4, 8, 16]}


def test_a_later_call_adds_seeds(tmp_path):
    first = made(Trial(CLAIM, "small", 2, tmp_path))
    known = (first.parent / "seed-0" / "cell-0.json").stat().st_mtime_ns
    more = Trial(CLAIM, "small", 4, tmp_path)
    assert sum(not unit.done() for unit in more.units()) == 4
    assert json.loads(made(more).read_text())["seeds"] == [0, 1, 2, 3]
    assert (first.parent / "seed-0" / "cell-0.json").stat().st_mtime_ns == known


def test_a_seed_with_a_part_missing_does_not_count(tmp_path):
    trial = Trial(CLAIM, "small", 3, tmp_path)
    made(trial)
    (trial.folder / "seed-1" / "cell-1.json").unlink()
    assert json.loads(trial.conclude("").read_text())["seeds"] == [0, 2]


def test_without_a_complete_seed_it_is_written_down_that_there_is_none(tmp_path):
    file = Trial(CLAIM, "small", 3, tmp_path).conclude("", {"cell 0": "no memory"})
    found = json.loads(file.read_text())
    assert (found["seeds"], found["asked"], found["criteria"]) == ([], 3, [])
    assert report.tell(file).verdict == "failed to run"


def test_seeds_that_are_missing_leave_a_claim_incomplete(tmp_path):
    made(Trial(CLAIM, "small", 2, tmp_path))
    told = report.tell(Trial(CLAIM, "small", 3, tmp_path).conclude(""))
    assert (told.verdict, told.seeds, len(told.criteria)) == ("incomplete", "2 of 3", 1)


def test_a_seed_that_was_asked_for_once_is_not_left_out_later(tmp_path):
    """Else whoever asks for fewer seeds would be told a verdict of those that did not fail."""
    trial = Trial(CLAIM, "small", 4, tmp_path)
    made(trial)
    (trial.folder / "seed-2" / "cell-0.json").unlink()
    trial.conclude("", {"cell 0, seed 2": "no memory"})
    told = report.tell(Trial(CLAIM, "small", 2, tmp_path).conclude(""))
    assert (told.verdict, told.seeds) == ("incomplete", "3 of 4")


def test_a_seed_that_was_begun_belongs_to_the_sample(tmp_path):
    made(Trial(CLAIM, "small", 2, tmp_path))
    (tmp_path / "rectangles" / "small" / "seed-6").mkdir()
    assert report.tell(Trial(CLAIM, "small", 2, tmp_path).conclude("")).seeds == "2 of 7"


def test_who_deletes_the_numbers_begins_anew(tmp_path):
    claim = replace(CLAIM, experiment="shared")
    made(Trial(claim, "small", 4, tmp_path))
    shutil.rmtree(tmp_path / "shared" / "small")
    file = made(Trial(claim, "small", 2, tmp_path))
    assert file.parent == tmp_path / "rectangles" / "small"
    assert report.tell(file).seeds == "2"


def test_a_claim_that_cannot_be_judged_says_why(tmp_path):
    def broken(preset, seeds):
        raise KeyError("errors")

    made(Trial(CLAIM, "small", 2, tmp_path))
    told = report.tell(Trial(replace(CLAIM, judge=broken), "small", 2, tmp_path).conclude(""))
    assert told.failures == {"judging": "KeyError('errors')"}
    assert told.verdict == "failed to run"


def test_on_what_it_was_measured_is_told_once_for_each_kind(tmp_path):
    found = json.loads(made(Trial(CLAIM, "small", 3, tmp_path)).read_text())
    assert found["environments"] == [{"python": "3.12"}]


def test_numbers_of_other_settings_are_not_taken_for_these(tmp_path):
    made(Trial(CLAIM, "small", 1, tmp_path))
    other = replace(CLAIM, scales={"small": {"sizes": [4, 8]}})
    with pytest.raises(RunError, match="other settings"):
        Trial(other, "small", 1, tmp_path).units()[0].done()


def test_all_claims_measured_with_other_settings_are_named_before_anything_changes(tmp_path):
    others = [replace(CLAIM, name=name) for name in ("one", "two")]
    files = [made(Trial(claim, "small", 2, tmp_path)) for claim in others]
    known = [file.read_text() for file in files]
    changed = [replace(claim, scales={"small": {"sizes": [4, 8]}}) for claim in others]
    with pytest.raises(RunError, match=r"one/small(.|\n)*two/small"):
        reproduce([Trial(claim, "small", 1, tmp_path) for claim in changed], 1, "")
    assert [file.read_text() for file in files] == known
    assert not (tmp_path / "log.txt").exists()


def test_the_time_is_known_from_the_beginning(tmp_path):
    unit = units_of(CLAIM, "small", 1, tmp_path)[0]
    assert 0 < unit.seconds() < 60
    assert not unit.place.exists()


def test_the_page_shows_verdict_numbers_and_protocol(tmp_path):
    file = made(Trial(CLAIM, "small", 3, tmp_path))
    index = report.build_claims(tmp_path).read_text()
    assert 'href="rectangles/small/report.html"' in index
    assert "1 confirmed" in index
    page = file.with_name("report.html").read_text()
    for text in ("rectangles: confirmed", "More rectangles are better.", "As it stands.", "at most 0.200", "sizes"):
        assert text in page
    assert 'href="../../report.html"' in page
    assert "flatwise reproduce rectangles" in page


def test_lines_say_the_verdict_and_what_decides_it(tmp_path):
    head, number = report.verdict_lines([made(Trial(CLAIM, "small", 3, tmp_path))])
    assert head == "rectangles (small, 3 seeds): confirmed"
    assert number.startswith("  fall ")


def test_trainings_are_timed_by_a_few_steps_on_one_thread(tmp_path):
    threads = torch.get_num_threads()
    unit = units_of(CLAIMS["base-optimizers"], "smoke", 1, tmp_path)[0]
    assert 0 < unit.seconds() < 60
    assert torch.get_num_threads() == threads
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("claim", [claim for claim in CLAIMS.values() if claim.trainings], ids=lambda claim: claim.name)
def test_the_trainings_that_are_timed_are_those_of_the_claim(claim, tmp_path):
    preset = claim.preset("smoke")
    cell = claim.cells(preset)[0]
    claim.measure(preset, cell, 0, tmp_path, lambda done, total: None)
    made_ = [Run.open(file.parent).config for file in tmp_path.rglob("config.json")]
    timed = [asdict(resolved(config)) for config in claim.trainings(preset, cell)]
    for free in ("rho", "alpha", "pretrained"):  # what is found out on the way costs nothing more
        for config in made_ + timed:
            config.pop(free)
    assert sorted(map(repr, map(_sorted, made_))) == sorted(map(repr, map(_sorted, timed)))


def _sorted(values):
    return sorted(json.loads(json.dumps(values)).items())


@pytest.mark.parametrize("claim", CLAIMS.values(), ids=list(CLAIMS))
def test_every_claim_is_fully_described(claim):
    assert {"smoke", "small"} <= claim.scales.keys() == claim.seeds.keys()
    assert all(len(text) > 12 for text in (claim.statement, claim.source, claim.protocol))
    assert all(json.loads(json.dumps(preset)) == preset for preset in claim.scales.values())
    assert claim_by_name(claim.name) is claim


def flatwise(*words):
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    return end.value.code


def test_one_command_reproduces_and_the_same_again_only_reads(tmp_path, capsys):
    words = ["reproduce", "stable-sam", "--scale", "smoke", "--seeds", 1, "--workers", 1, "--out", tmp_path]
    assert flatwise(*words) == 0
    assert "stable-sam (smoke, 1 seeds): no verdict" in capsys.readouterr().out
    part = tmp_path / "stable-sam" / "smoke" / "seed-0" / "cell-0.json"
    known = part.stat().st_mtime_ns
    assert flatwise(*words) == 0
    assert part.stat().st_mtime_ns == known
    assert (tmp_path / "report.html").is_file()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--all"),
        (["third-order-sde", "--all"], "--all"),
        (["third-order"], "did you mean 'third-order-sde'"),
        (["third-order-sde", "--seeds", "0"], "seeds must be at least 1"),
        (["third-order-sde", "--workers", "0"], "workers must be at least 1"),
    ],
)
def test_bad_words_are_answered_before_anything_starts(words, said, tmp_path, capsys):
    assert flatwise("reproduce", *words, "--out", tmp_path / "out") == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_claims_with_the_same_experiment_share_its_numbers(tmp_path):
    twin = replace(CLAIM, experiment="shared"), replace(CLAIM, name="other", experiment="shared")
    first, second = (Trial(claim, "small", 2, tmp_path) for claim in twin)
    made(first)
    assert all(unit.done() for unit in second.units())
    assert second.conclude("").parent == tmp_path / "other" / "small"


def test_arms_are_trained_with_the_same_seed_and_controls_at_the_norm_of_another(tmp_path):
    arms = {"Eigen-SAM": {"method": "eigen-sam", "rho": 0.2, "alpha": 1.0, "every": 1}, "control": {"method": "sam"}}
    shared = {"data": "digits", "subset": 64, "epochs": 2, "probe_every": 1, "widths": [8]}
    preset = {"shared": shared, "arms": arms, "norm_of": {"control": "Eigen-SAM"}}
    told = []
    found = train_arms(preset, {}, 3, tmp_path, lambda done, total: told.append((done, total)))
    norms = [found[label]["summary"]["mean_displacement_norm"] for label in arms]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)
    assert norms[0] > 0.2
    assert told == sorted(told)
    assert told[-1][0] == told[-1][1]
    drawn = panel("Loss", [[found]], "train_loss", "loss")
    assert [line.label for line in drawn.lines] == list(arms)
    assert drawn.lines[0].y == found["Eigen-SAM"]["series"]["train_loss"]


@pytest.mark.parametrize("log", ["", "y"])
def test_the_band_of_a_panel_is_the_interval_of_its_mean(log):
    values = [0.5, 0.7, 1.1]
    seeds = [[{"SAM": {"steps": [0], "series": {"loss": [value]}}}] for value in values]
    (line,) = panel("Loss", seeds, "loss", "loss", log).lines
    there = np.log(values) if log else np.array(values)
    low, high = stats.t.interval(0.95, 2, there.mean(), stats.sem(there))
    expected = np.exp([there.mean(), low, high]) if log else [there.mean(), low, high]
    assert [line.y[0], line.low[0], line.high[0]] == pytest.approx(list(expected))


def test_a_step_at_which_a_seed_has_no_place_on_the_axis_is_a_gap():
    curves = [[0.5, 0.7, 1.1], [0.4, -0.1, 1.3]]
    seeds = [
        [{"SAM": {"steps": [0, 1, 2], "series": {"top": curve}}, "SGD": {"steps": [0], "series": {}}}]
        for curve in curves
    ]
    (line,) = panel("Top", seeds, "top", "top", "y").lines  # nothing was measured of SGD
    assert [math.isnan(value) for value in line.y] == [False, True, False]
    assert (
        [math.isnan(value) for value in line.low] == [math.isnan(value) for value in line.high] == [False, True, False]
    )


def test_the_estimate_knows_how_long_each_experiment_takes():
    assert SECONDS.keys() == {claim.experiment or claim.name for claim in CLAIMS.values()}
    (unit, *_) = Trial(CLAIMS["sam-gradient-alignment"], "small", 1, Path()).units()
    assert unit.weight == SECONDS["sam-edge-mlp"]
