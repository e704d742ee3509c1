import json
import os
import signal
import subprocess
import sys
import time

import pytest
from training.mirrored import offline_folders, scalars

from flatwise import __version__
from flatwise.cli.main import main
from flatwise.runs import Run

SMALL = ["--subset", "100", "--widths", "8", "--steps", "6", "--probe-every", "3"]
HELP_WITHOUT_TORCH = """
import sys
from flatwise.cli.main import main
for words in [], ["train"], ["compare"], ["report"], ["list"], ["demo"]:
    try:
        main([*words, "--help"])
    except SystemExit as end:
        assert end.code in (0, None), (words, end.code)
assert not {"torch", "sklearn", "plotly", "numpy", "tensorboard", "wandb", "IPython"} & sys.modules.keys()
"""


def flatwise(*words):
    """Run a command in this process, and return its exit code."""
    with pytest.raises(SystemExit) as end:
        main(words)
    return end.value.code


def test_help_needs_nothing_heavy():
    done = subprocess.run([sys.executable, "-c", HELP_WITHOUT_TORCH], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for option in (
        "--method",
        "--methods",
        "--log",
        "--rho-schedule",
        "--probe-every",
        "--resume",
        "--equal-norm",
        "--seeds",
        "--workers",
        "--hyper",
        "--parts",
        "--validation",
        "--evaluations",
        "--tune",
        "--equal",
        "--dry-run",
    ):
        assert option in done.stdout


@pytest.mark.parametrize(
    ("what", "names"),
    [
        ("methods", ["sgd", "sam", "eigen-sam", "reverse-sam", "gradient-norm"]),
        ("data", ["digits", "mnist", "fashion-mnist", "cifar10", "folder:PATH", "module:function"]),
        ("models", ["mlp", "cnn6", "resnet18", "module:function"]),
    ],
)
def test_list(capsys, what, names):
    assert flatwise("list", what) == 0
    lines = capsys.readouterr().out.splitlines()
    listed = [line.split()[0] for line in lines]
    assert set(names) <= set(listed)
    assert all(len(line.split()) > 2 for line in lines)


def test_the_version_is_said(capsys):
    assert flatwise("--version") is None
    assert capsys.readouterr().out == f"flatwise {__version__}\n"


def test_a_misspelt_command_is_answered_with_the_nearest(capsys):
    assert flatwise("trian", "--method", "sam") == 2
    assert "no command is called 'trian'; did you mean 'train'?" in capsys.readouterr().err


def test_a_reader_that_has_read_enough_is_no_error():
    words = [sys.executable, "-m", "flatwise", "list", "claims"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_a_run_whose_reader_has_gone_ends_without_a_complaint(tmp_path):
    out = tmp_path / "run"
    words = [sys.executable, "-m", "flatwise", "train", *SMALL, "--out", str(out)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert "Broken pipe" not in process.stderr.read()
    assert process.returncode == 141
    assert Run.open(out).status == "finished"


def test_a_terminal_that_knows_only_ascii_is_no_error(tmp_path):
    words = [sys.executable, "-m", "flatwise", "compare", "--methods", "sgd", "sam", "--seeds", "2", *SMALL]
    done = subprocess.run(
        [*words, "--workers", "1", "--out", str(tmp_path / "out")],
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "UnicodeEncodeError" not in done.stderr


def test_methods_are_listed_with_their_hyperparameters_and_cost(capsys):
    assert flatwise("list", "methods") == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert lines["sam"].endswith("evaluations a step: 2]")
    assert "rho 0.01, samples 1" in lines["nso"]
    assert "start 0.75" in lines["late-sam"]
    assert "evaluations a step: 1.25]" in lines["late-sam"]
    assert "by the data" in lines["ae-sam"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["train", "--method", "sma"], "did you mean 'sam'"),
        (["train", "--data", "digit"], "did you mean 'digits'"),
        (["train", "--model", "resnet-18"], "did you mean 'resnet18'"),
        (["train", "--lr", "-1"], "lr must be above 0"),
        (["train", "--rho", "nan"], "rho must be a finite number"),
        (["train", "--method", "sgd", "--rho", "0.1"], "rho 0.1 has no effect with method sgd"),
        (["train", "--method", "sgd", "--rho-schedule", "cosine"], "rho_schedule cosine has no effect with method sgd"),
        (["compare", "--methods", "sgd", "--rho-schedule", "linear"], "rho_schedule has no effect with sgd"),
        (["train", "--log", "wandb", "--log", "wandb"], "the mirror wandb is named twice"),
        (["train", "--resume", "no/such/run"], "there is no run folder no/such/run"),
        (["train", "--settings", "no/such/file.json"], "no/such/file.json: No such file"),
        (["train", "--resume", "a", "--out", "b"], "leave --out and --settings out"),
        (["compare", "--methods", "sgd", "egen-sam"], "did you mean 'eigen-sam'"),
        (["compare", "--seeds", "0"], "seeds must be at least 1"),
        (["train", "--method", "tsam", "--hyper", "tlt=1"], "did you mean 'tilt'"),
        (["train", "--hyper", "rho"], "hyper takes words such as samples=3"),
        (["train", "--rho", "0.1", "--hyper", "rho=0.2"], "rho is given twice"),
        (["train", "--method", "tsam", "--hyper", "samples=0.5"], "samples must be an integer"),
        (["train", "--parts", "2", "--method", "sgd"], "parts 2 has no effect with method sgd"),
        (["compare", "--methods", "sgd", "sam", "--parts", "2", "--hyper", "sma.rho=1"], "did you mean 'sam'"),
        (["compare", "--methods", "sgd", "sam", "--hyper", "tilt=1"], "tilt has no effect with sgd, sam"),
        (["compare", "--methods", "sgd", "tsam", "--hyper", "tsam.tlt=1"], "did you mean 'tilt'"),
        (["compare", "--methods", "sgd", "--tune", "rho=0.1"], "tune: rho has no effect with sgd"),
        (["compare", "--methods", "sgd", "sam", "--tune", "rho"], "tune takes words such as"),
        (["compare", "--evaluations", "9", "--equal", "steps"], "evaluations 9 has no effect at equal steps"),
        (["compare", "--workers", "0"], "workers must be at least 1, not 0"),
        (["compare", "--workers", "-3", "--dry-run"], "workers must be at least 1, not -3"),
        (["compare", "--methods", "--seeds", "1"], "name at least one method to compare"),
        (["demo", "--seeds", "0"], "seeds must be at least 1"),
        (["report", "no/such/folder"], "no/such/folder"),
    ],
)
def test_an_error_is_one_sentence_and_exit_code_2(capsys, monkeypatch, tmp_path, words, sentence):
    monkeypatch.chdir(tmp_path)
    assert flatwise(*words) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert "Traceback" not in error
    assert len(error.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_debug_shows_where_an_error_comes_from():
    with pytest.raises(ValueError, match="lr must be above 0"):
        main(["train", "--lr", "-1", "--debug"])


def test_an_unknown_flag_is_refused(capsys):
    assert flatwise("train", "--rhoo", "1") == 2
    assert "--rho" in capsys.readouterr().err


def test_train_report_and_resume(capsys, tmp_path):
    out = tmp_path / "run"
    assert flatwise("train", *SMALL, "--out", str(out)) == 0
    printed = capsys.readouterr().out
    assert "test accuracy" in printed
    assert str(out) in printed
    assert Run.open(out).status == "finished"

    assert flatwise("train", "--resume", str(out)) == 0
    assert flatwise("train", "--resume", str(out), "--lr", "0.3") == 2
    error = capsys.readouterr().err
    assert "with its own settings (lr was 0.05, is 0.3); leave those flags out" in error
    assert "delete" not in error

    assert flatwise("report", str(out)) == 0
    assert "<html" in (out / "report.html").read_text()
    assert flatwise("report", str(out), "--out", "elsewhere.html") == 2


@pytest.mark.parametrize("words", [["--log", "tensorboard", "wandb"], ["--log", "tensorboard", "--log", "wandb"]])
def test_train_shows_its_metrics_elsewhere_too_on_request(tmp_path, monkeypatch, capfd, words):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    out = tmp_path / "run"
    assert flatwise("train", *SMALL, *words, "--rho-schedule", "linear", "--out", str(out)) == 0
    printed, errors = capfd.readouterr()
    assert printed.splitlines()[0].startswith("test accuracy")
    assert errors == ""
    assert [step for step, _ in scalars(out / "tensorboard")["train/rho"]] == [0, 3]
    assert len(offline_folders(out / "wandb")) == 1
    assert "log" not in Run.open(out).config


def test_the_default_folder_stands_for_the_settings(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for rho in ("0.1", "0.1", "0.2"):
        assert flatwise("train", *SMALL, "--rho", rho) == 0
    folders = list((tmp_path / "runs").iterdir())
    assert len(folders) == 2
    assert all(folder.name.startswith("sam-digits-mlp-") for folder in folders)


def test_flags_override_a_settings_file(tmp_path, capsys):
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps({"method": "sgd", "subset": 100, "widths": [8], "steps": 2, "lr": 0.3}))
    out = tmp_path / "run"
    assert flatwise("train", "--settings", str(settings), "--lr", "0.05", "--out", str(out)) == 0
    config = Run.open(out).config
    assert (config["method"], config["lr"], config["steps"]) == ("sgd", 0.05, 2)
    settings.write_text(json.dumps({"mehtod": "sgd"}))
    assert flatwise("train", "--settings", str(settings)) == 2
    assert "did you mean 'method'" in capsys.readouterr().err


@pytest.mark.filterwarnings("error")
def test_a_diverged_run_says_so(tmp_path, capsys):
    wild = ["--method", "sgd", "--loss", "squared-error", "--lr", "1e4", "--schedule", "constant"]
    out = tmp_path / "run"
    assert flatwise("train", *SMALL[:4], "--steps", "60", *wild, "--out", str(out)) == 1
    assert "the training loss became" in capsys.readouterr().err
    assert Run.open(out).status == "diverged"


WILD = ["--loss", "squared-error", "--schedule", "constant", "--subset", "100", "--widths", "8", "--steps", "60"]


def test_a_comparison_whose_runs_all_diverged_has_no_result(tmp_path, capsys):
    words = ["compare", "--methods", "sgd", "--seeds", "2", *WILD, "--lr", "1e4", "--workers", "1"]
    assert flatwise(*words, "--out", str(tmp_path / "out")) == 1
    printed, error = capsys.readouterr()
    assert "flatwise: diverged: SGD, seeds 0, 1\n" in error
    assert "there is nothing to compare." in printed.replace("\n", " ")


def test_a_comparison_with_one_that_diverged_is_a_result_and_names_it(tmp_path, capsys):
    words = ["sweep", "--method", "sgd", "--set", "lr=0.01,1e4", "--seeds", "1", *WILD, "--workers", "1"]
    assert flatwise(*words, "--out", str(tmp_path / "out")) == 0
    assert "flatwise: diverged: lr 10000.0, seed 0\n" in capsys.readouterr().err


def test_compare_says_which_runs_of_an_earlier_command_are_left_out(tmp_path, capsys):
    out = tmp_path / "out"
    rest = [*SMALL, "--workers", "1", "--out", str(out)]
    assert flatwise("compare", "--methods", "sgd", "sam", "--seeds", "2", *rest) == 0
    assert "also holds" not in capsys.readouterr().err
    assert flatwise("compare", "--methods", "sam", "--seeds", "1", *rest) == 0
    error = capsys.readouterr().err
    assert f"{out} also holds SGD, seeds 0, 1; SAM, seed 1: not in this report; for one with them: flatwise" in error


def test_compare(tmp_path, capsys):
    out = tmp_path / "comparison"
    words = ["compare", "--methods", "sgd", "sam", "--seeds", "2", *SMALL, "--workers", "1", "--out", str(out)]
    assert flatwise(*words, "--log", "tensorboard") == 0
    printed = capsys.readouterr().out
    assert "SAM" in printed
    assert str(out / "report.html") in printed.replace("\n", "")
    written = json.loads((out / "comparison.json").read_text())
    assert [arm["name"] for arm in written["arms"]] == ["sgd", "sam"]
    assert written["command"].startswith("flatwise compare --methods sgd sam")
    assert len(list(out.glob("runs/*/seed-?/tensorboard"))) == 4
    assert "<html" in (out / "report.html").read_text()


def test_compare_says_what_it_would_take_and_does_nothing(tmp_path, capsys):
    out = tmp_path / "comparison"
    words = [
        "compare",
        "--methods",
        "sgd",
        "sam",
        "--seeds",
        "2",
        *SMALL,
        "--equal",
        "steps",
        "evaluations",
        "--out",
        str(out),
    ]
    assert flatwise(*words, "--tune", "rho=x1,x2", "--dry-run") == 0
    printed = capsys.readouterr().out
    assert "At equal gradient evaluations, 12 each" in printed
    assert "in sum: 10 runs" in printed
    assert "nothing was trained" in printed.replace("\n", " ")
    assert not out.exists()


def test_compare_shows_both_sections(tmp_path, capsys):
    out = tmp_path / "comparison"
    words = ["compare", "--methods", "sgd", "nso", "--seeds", "1", *SMALL, "--equal", "steps", "evaluations"]
    assert flatwise(*words, "--hyper", "nso.samples=2", "--workers", "1", "--out", str(out)) == 0
    assert "At equal steps, 6 each" in capsys.readouterr().out
    assert "At equal gradient evaluations, 12 each" in (out / "report.html").read_text()
    assert Run.open(out / "runs/nso/seed-0").config["hyper"] == ["samples=2", "clean=0.0"]
    assert Run.open(out / "evaluations/runs/nso/seed-0").summary["evaluations"] == 12


def test_all_methods_are_those_that_are_listed(capsys):
    from flatwise import methods
    from flatwise.cli.compare import Compare

    plan = Compare(methods=("all",))._plan("flatwise compare")  # pyright: ignore[reportPrivateUsage]
    assert list(plan.methods) == methods.names()


def test_the_default_folder_of_a_comparison_stands_for_how_it_compares():
    from flatwise.cli.compare import Compare

    plans = [Compare(), Compare(seeds=9), Compare(equal=("evaluations",)), Compare(tune=("rho=x1,x2",))]
    folders = [plan._default_folder() for plan in plans]  # pyright: ignore[reportPrivateUsage]
    assert folders[0] == folders[1]
    assert len(set(folders)) == 3


def test_ctrl_c_says_how_to_go_on(tmp_path):
    out = tmp_path / "run"
    words = [sys.executable, "-m", "flatwise", "train", *SMALL[:4], "--steps", "1000000", "--out", str(out)]
    process = subprocess.Popen(
        [*words, "--probe-every", "0", "--checkpoint-every", "1000000", "--log", "tensorboard"],
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    metrics = out / "metrics.jsonl"
    while not (metrics.exists() and os.path.getsize(metrics)) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"continue with: flatwise train --resume {out} --log tensorboard" in error
    assert Run.open(out).status == "unfinished"
    assert len(Run.open(out).checkpoints()) == 1
