import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flatwise.cli.main import main
from flatwise.experiments.arms import arms_of
from flatwise.experiments.sweep import Sweep
from flatwise.experiments.swept import joined, read_file, read_words
from flatwise.report import mean_interval, write_results
from flatwise.runs import Run
from flatwise.training import Settings, TrainConfig, train

SMALL = ["--subset", "100", "--widths", "8", "--steps", "6", "--probe-every", "3", "--workers", "1"]
TINY = Settings(subset=100, widths=(8,), steps=6, probe_every=3)


def flatwise(*words):
    """Run a command in this process, and return its exit code."""
    with pytest.raises(SystemExit) as end:
        main(words)
    return end.value.code


def arms(*words, method="sam", settings=TINY, folder="no/such/folder"):
    return Sweep(method, settings, [read_words(words)], 1, "flatwise sweep").comparison(Path(folder)).arms


def test_a_sweep_leaves_runs_named_by_their_settings_numbers_and_a_report(capsys, tmp_path):
    assert flatwise("sweep", *SMALL, "--set", "lr=0.01,0.1", "--seeds", "2", "--out", str(tmp_path)) == 0
    printed = capsys.readouterr().out
    assert "lr 0.01" in printed
    assert "Of 2 combinations, the highest mean test accuracy is" in printed.replace("\n", " ")
    assert "<html" in (tmp_path / "report.html").read_text()

    runs = {(lr, seed): Run.open(tmp_path / f"runs/lr={lr}/seed-{seed}") for lr in (0.01, 0.1) for seed in (0, 1)}
    assert all((run.config["lr"], run.config["seed"]) == key for key, run in runs.items())

    rows = list(csv.DictReader((tmp_path / "results.csv").read_text().splitlines()))
    assert [(float(row["lr"]), int(row["seed"])) for row in rows] == sorted(runs)
    for row in rows:
        summary = runs[float(row["lr"]), int(row["seed"])].summary
        assert float(row["test_accuracy"]) == summary["test_accuracy"]
        assert float(row["top_eigenvalue"]) == summary["top_eigenvalue"]

    results = json.loads((tmp_path / "results.json").read_text())
    assert results["swept"] == ["lr"]
    for entry in results["combinations"]:
        tops = [runs[entry["values"]["lr"], seed].summary["top_eigenvalue"] for seed in (0, 1)]
        interval = mean_interval(tops)
        assert entry["means"]["top_eigenvalue"] == {
            "mean": interval.mean,
            "low": interval.low,
            "high": interval.high,
            "seeds": 2,
        }

    # More values, another setting and more seeds: what is there stays, under its name.
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/*/done.json")}
    more = ["--set", "lr=0.01,0.1,0.2", "rho=0.05,0.2", "--seeds", "3", "--out", str(tmp_path)]
    assert flatwise("sweep", *SMALL, *more, "--dry-run") == 0
    assert "4 of 18 runs are done" in capsys.readouterr().out
    grid = {tuple(arm.values.values()): arm.name for arm in arms("lr=0.01,0.1,0.2", "rho=0.05,0.2", folder=tmp_path)}
    assert grid[0.01, 0.05] == "lr=0.01"  # 0.05 is SAM's own rho
    assert grid[0.1, 0.2] == "lr=0.1,rho=0.2"
    assert flatwise("sweep", *SMALL, "--set", "lr=0.01,0.2", "--seeds", "2", "--out", str(tmp_path)) == 0
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert flatwise("sweep", *SMALL, "--weight-decay", "0", "--set", "lr=0.01", "--out", str(tmp_path)) == 2
    assert "holds another run (weight_decay was 0.0005, is 0.0)" in capsys.readouterr().err


def test_all_combinations_are_tried_and_settings_that_a_method_lacks_make_no_further_ones():
    found = arms("method=sgd,sam", "rho=0.05,0.2", "lr=0.1,0.2")
    assert [arm.label for arm in found] == [
        "SGD, lr 0.1",
        "SAM, rho 0.05, lr 0.1",
        "SGD, lr 0.2",
        "SAM, rho 0.05, lr 0.2",
        "SAM, rho 0.2, lr 0.1",
        "SAM, rho 0.2, lr 0.2",
    ]
    assert found[0].name == "method=sgd,lr=0.1"
    assert found[0].config == TrainConfig.from_dict(TINY.to_dict() | {"method": "sgd", "lr": 0.1})
    assert len({arm.name for arm in found}) == len(found)


def test_widths_models_and_hyperparameters_of_methods_can_be_swept():
    assert [arm.config.widths for arm in arms("widths=16,8x8", settings=Settings())] == [(16,), (8, 8)]
    assert [arm.name for arm in arms("widths=16,8x8", settings=Settings())] == ["widths=16", "widths=8x8"]
    tilted = arms("tsam.tilt=1,5", "method=tsam,sgd")
    assert [(arm.config.method, arm.config.hyper) for arm in tilted] == [
        ("tsam", ("tilt=1",)),
        ("sgd", ()),
        ("tsam", ("tilt=5",)),
    ]
    assert [arm.config.batch_size for arm in arms("batch-size=16,32", settings=Settings())] == [16, 32]
    own = arms("data=mine:one,mine:two", settings=Settings())
    assert [arm.name for arm in own] == ["data=mine-one", "data=mine-two"]


def test_names_that_are_the_same_or_too_long_for_a_folder_differ_all_the_same():
    same = arms("data=folder:a/b,folder:a-b", settings=Settings())
    assert len({arm.name for arm in same}) == 2
    (long,) = arms(f"data=folder:{'a/' * 200}")
    assert len(long.name) < 140


def test_a_file_holds_a_grid_or_several_and_single_values(tmp_path):
    file = tmp_path / "grid.json"
    file.write_text('[{"optimizer": "adamw"}, {"lr": [0.1, 0.1, 0.2], "momentum": 0.5, "widths": [[4], [8, 8]]}]')
    one, two = joined(read_file(file), read_words(["label_noise=0,0.2"]))
    assert one == {"optimizer": ("adamw",), "label_noise": (0, 0.2)}
    assert two["lr"] == (0.1, 0.2)
    assert two["widths"] == ((4,), (8, 8))
    assert len(Sweep("sam", Settings(), [one, two], 1, "").comparison(tmp_path).arms) == 2 + 2 * 2 * 2
    file.write_text('{"widths": [8, 8], "lr": 0.1}')
    assert read_file(file) == [{"widths": ((8, 8),), "lr": (0.1,)}]
    file.write_text('{"widths": [[8, 8], 16]}')
    assert read_file(file) == [{"widths": ((8, 8), (16,))}]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--set", "lrr=0.1"], "there is no setting 'lrr' to sweep with sam; did you mean 'lr'"),
        (["--set", "tilt=1"], "there is no setting 'tilt' to sweep with sam; tsam has it"),
        (["--set", "widths=64x,128"], "widths takes whole numbers joined by x, such as widths=64x64,128, not '64x'"),
        (["--set", "batch-siz=32"], "did you mean 'batch_size'"),
        (["--set", "tsam.tilt=1"], "tsam.tilt is of 'tsam', which is not tried"),
        (["--set", "lr"], "set takes words such as lr=0.01,0.1"),
        (["--set", "lr=0.1", "lr=0.2"], "set names lr twice"),
        (["--set", "lr=fast"], "lr=fast is no possible combination: lr must be a finite number"),
        (["--set", "optimizer=adamw", "momentum=0.9"], "momentum 0.9 has no effect with optimizer adamw"),
        (["--set", "rho=0.1", "--method", "sgd"], "rho has no effect with sgd"),
        (["--set", "lr=0.1", "--lr", "0.2"], "lr 0.2 has no effect where lr is swept"),
        (["--set", "model=mpl"], "did you mean 'mlp'"),
        (["--set", "method=sma"], "did you mean 'sam'"),
        (["--set", "seed=1,2"], "say how many with --seeds"),
        (["--set", "lr=0.1", "--seeds", "0"], "seeds must be at least 1"),
        (["--set", "lr=0.1", "--workers", "0"], "workers must be at least 1"),
        ([], "nothing is swept"),
        (["--grid", "no-such.json"], "no-such.json: No such file"),
    ],
)
def test_an_error_is_one_sentence_and_changes_nothing(capsys, monkeypatch, tmp_path, words, sentence):
    monkeypatch.chdir(tmp_path)
    assert flatwise("sweep", *words) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert len(error.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["{", "3", "[]", "[3]", "{}", '{"lr": []}'])
def test_a_file_that_holds_no_grid_is_refused(tmp_path, text):
    file = tmp_path / "grid.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"grid\.json|no values to try"):
        read_file(file)


def test_a_run_that_is_missing_has_empty_numbers_and_the_others_theirs(tmp_path):
    sweep = Sweep("sam", TINY, [read_words(["lr=0.1,0.2"])], 1, "flatwise sweep")
    comparison = sweep.comparison(tmp_path)
    comparison.write(tmp_path)
    train(comparison.arms[0].config, tmp_path / comparison.arms[0].folder(0))
    write_results(tmp_path)
    done, missing = csv.DictReader((tmp_path / "results.csv").read_text().splitlines())
    assert (done["status"], missing["status"]) == ("finished", "missing")
    assert done["test_loss"]
    assert not missing["test_loss"]
    assert json.loads((tmp_path / "results.json").read_text())["combinations"][1]["means"] == {}


def test_a_sweep_of_methods_has_the_settings_that_a_comparison_has():
    found = {arm.config.method: arm.config for arm in arms("method=sgd,eigen-sam", settings=Settings(rho=0.1))}
    compared = {arm.config.method: arm.config for arm in arms_of(["sgd", "eigen-sam"], Settings(rho=0.1))}
    assert found == {method: compared[method] for method in found}


def test_help_needs_nothing_heavy():
    code = "import sys\nfrom flatwise.cli.main import main\ntry:\n    main(['sweep', '--help'])\nexcept SystemExit:\n    pass\n"
    code += "assert not {'torch', 'sklearn', 'plotly', 'numpy', 'ray'} & sys.modules.keys()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    for option in ("--set", "--grid", "--seeds", "--engine", "--dry-run"):
        assert option in done.stdout
