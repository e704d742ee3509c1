"""TensorBoard and Weights & Biases beside the run folder: really written, and read back."""

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace

import pytest
import torch
from training.mirrored import offline_folders, offline_run, scalars, texts

from flatwise.runs import Run
from flatwise.training import TrainConfig, train

CONFIG = TrainConfig(
    method="eigen-sam", every=4, subset=100, widths=(8,), steps=12, probe_every=3, checkpoint_every=5, lr=0.1
)
BOTH = ("tensorboard", "wandb")


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("WANDB_PROJECT", raising=False)


class Killed(Exception):
    pass


def killed_at(step):
    def progress(done, total):
        if done == step:
            raise Killed

    return progress


def numbers(record):
    kind = record["kind"]
    return {f"{kind}/{k}": v for k, v in record.items() if k != "step" and isinstance(v, int | float)}


def assert_in_tensorboard(run):
    """Every number of the metrics, at its step, once, and nothing else."""
    expected = {}
    for record in [*run.metrics(), {"kind": "final", "step": run.summary["steps"], **run.summary}]:
        for name, value in numbers(record).items():
            expected.setdefault(name, []).append((record["step"], pytest.approx(value, rel=1e-6)))
    expected["final/steps"] = [(run.summary["steps"], run.summary["steps"])]
    assert scalars(run.path / "tensorboard") == expected


def assert_in_wandb(run):
    """Every record of the metrics as a row, the settings and the final numbers, in the newest offline folder."""
    found = offline_run(offline_folders(run.path / "wandb")[-1])
    rows = [{k: v for k, v in row.items() if not k.startswith("_")} for row in found["rows"]]
    assert rows == [{"step": record["step"], **numbers(record)} for record in run.metrics()]
    assert {k: v for k, v in found["config"].items() if k != "_wandb"} == run.config
    final = {f"final/{k}": v for k, v in run.summary.items()}
    assert final.items() <= found["summary"].items()
    assert found["summary"]["status"] == run.status
    assert found["project"] == "flatwise"


def weights(run):
    return torch.load(run.checkpoints()[-1], weights_only=True)


def but_for_seconds(records):
    return [{k: v for k, v in record.items() if k != "seconds"} for record in records]


def test_a_run_is_bitwise_the_same_with_mirrors_and_they_show_all_of_it_quietly(tmp_path, capfd):
    plain = train(CONFIG, tmp_path / "plain")
    capfd.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = train(CONFIG, tmp_path / "run", mirrors=BOTH)
    assert capfd.readouterr() == ("", "")

    assert (run.path / "config.json").read_bytes() == (plain.path / "config.json").read_bytes()
    assert but_for_seconds(run.metrics()) == but_for_seconds(plain.metrics())
    assert but_for_seconds([run.summary]) == but_for_seconds([plain.summary])
    assert torch.equal(weights(run)["random"][0][0], weights(plain)["random"][0][0])
    for name, value in weights(plain)["model"].items():
        assert torch.equal(weights(run)["model"][name], value)

    assert_in_tensorboard(run)
    shown, metadata = texts(run.path / "tensorboard")
    assert "| method | eigen-sam |" in shown["settings/text_summary"]
    assert any(data.plugin_data.plugin_name == "hparams" for data in metadata.values())
    assert_in_wandb(run)


@pytest.mark.parametrize("step", [4, 8])  # before the first checkpoint, and after it
def test_a_resumed_run_is_continued_in_both(tmp_path, step):
    out = tmp_path / "run"
    with pytest.raises(Killed):
        train(CONFIG, out, progress=killed_at(step), mirrors=BOTH)
    assert scalars(out / "tensorboard")["probe/train_loss"][-1][0] == step // 3 * 3
    time.sleep(1.1)  # TensorBoard orders its files by whole seconds
    run = train(CONFIG, out, mirrors=BOTH)
    assert_in_tensorboard(run)
    assert "| method | eigen-sam |" in texts(out / "tensorboard")[0]["settings/text_summary"]
    assert_in_wandb(run)
    sessions = [offline_run(folder) for folder in offline_folders(out / "wandb")]
    assert len(sessions) == 2
    assert sessions[0]["id"] == sessions[1]["id"]
    assert [session["exit"] for session in sessions] == [1, 0]


def test_a_mirror_that_comes_later_is_told_what_it_missed(tmp_path):
    out = tmp_path / "run"
    with pytest.raises(Killed):
        train(CONFIG, out, progress=killed_at(8))
    assert_in_tensorboard(train(CONFIG, out, mirrors=["tensorboard"]))

    assert_in_wandb(train(CONFIG, out, mirrors=BOTH))  # finished already
    files = sorted(path for path in out.rglob("*") if path.is_file())
    train(CONFIG, out, mirrors=BOTH)
    assert sorted(path for path in out.rglob("*") if path.is_file()) == files


SCRIPT = """
import sys
from flatwise.training import TrainConfig, train
train(TrainConfig.from_file(sys.argv[1]), sys.argv[2], mirrors=["tensorboard"])
"""


def test_kill_9_loses_nothing_that_the_metrics_have(tmp_path):
    config = replace(CONFIG, steps=3000, probe_every=5, checkpoint_every=20)
    settings, out = tmp_path / "settings.json", tmp_path / "run"
    settings.write_text(json.dumps(config.to_dict()))
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(settings), str(out)])
    deadline = time.monotonic() + 60
    while not list(out.glob("checkpoints/step-*.pt")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    written = [r["step"] for r in Run.open(out).metrics() if r["kind"] == "probe"]
    shown = [step for step, _ in scalars(out / "tensorboard")["probe/train_loss"]]
    assert len(written) >= 4
    assert shown in (written, written[:-1])  # killed between the two, it lacks the very last


class Own:
    """A mirror that breaks at a given moment."""

    def __init__(self, breaks):
        self.breaks, self.told = breaks, []

    def knows(self, run):
        return False

    def open(self, run, step):
        self._note("open")
        return 0

    def record(self, record):
        self._note("record")

    def close(self, run):
        self._note("close")

    def _note(self, moment):
        self.told.append(moment)
        if moment == self.breaks:
            raise OSError(f"no way to {moment}")


@pytest.mark.parametrize("moment", ["open", "record", "close"])
def test_a_mirror_that_fails_is_left_out_with_one_warning_and_the_run_goes_on(tmp_path, moment):
    broken, sound = Own(moment), Own(None)
    with pytest.warns(UserWarning, match=f"the mirror Own failed .OSError: no way to {moment}") as caught:
        run = train(CONFIG, tmp_path / "run", mirrors=[broken, sound])
    assert len(caught) == 1
    assert run.status == "finished"
    assert broken.told.count(moment) == 1
    assert broken.told[-1] == moment
    assert sound.told == ["open", *["record"] * len(run.metrics()), "close"]


def test_a_folder_that_cannot_be_written_is_a_warning_too(tmp_path):
    out = tmp_path / "run"
    with pytest.raises(Killed):
        train(CONFIG, out, progress=killed_at(8))
    (out / "tensorboard").write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match="the mirror TensorBoard failed .*the run folder keeps everything"):
        assert train(CONFIG, out, mirrors=["tensorboard"]).status == "finished"


@pytest.mark.parametrize("package", BOTH)
def test_a_missing_package_is_refused_at_once_with_the_way_to_get_it(tmp_path, monkeypatch, package):
    for name in [name for name in sys.modules if name.split(".")[0] == package or name == "torch.utils.tensorboard"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=rf'{package} cannot be imported.*pip install "\.\[{package}\]"'):
        train(CONFIG, tmp_path / "run", mirrors=[package])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("mirrors", "sentence"),
    [(["tensorbord"], "no mirror 'tensorbord'; did you mean 'tensorboard'"), (["wandb", "wandb"], "named twice")],
)
def test_bad_names_are_answered_at_once(tmp_path, mirrors, sentence):
    with pytest.raises(ValueError, match=sentence):
        train(CONFIG, tmp_path / "run", mirrors=mirrors)
    assert not (tmp_path / "run").exists()


def test_a_run_of_the_callers_own_goes_on_beside_ours(tmp_path):
    wandb = pytest.importorskip("wandb")
    with wandb.init(dir=tmp_path, mode="offline", settings=wandb.Settings(silent=True, console="off")) as mine:
        run = train(CONFIG, tmp_path / "run", mirrors=["wandb"])
        assert wandb.run is mine
        mine.log({"mine": 1})
    assert_in_wandb(run)
    assert [row["mine"] for row in offline_run(offline_folders(tmp_path / "wandb")[0])["rows"]] == [1]


def test_a_diverged_run_says_so_in_both(tmp_path):
    wild = replace(CONFIG, method="sgd", every=None, loss="squared-error", lr=1e4, schedule="constant", steps=60)
    run = train(wild, tmp_path / "run", mirrors=BOTH)
    assert run.status == "diverged"
    found = offline_run(offline_folders(run.path / "wandb")[0])
    assert (found["exit"], found["summary"]["status"]) == (1, "diverged")
    assert scalars(run.path / "tensorboard")["final/steps"] == [(run.summary["steps"], run.summary["steps"])]
    assert os.environ["WANDB_MODE"] == "offline"
