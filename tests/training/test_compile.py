"""Training through torch.compile. Most tests take its stages up to the compiler (`aot_eager`): seconds, not minutes."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial

import pytest
import torch

from flatwise.training import TrainConfig, train

COMPILER = shutil.which(os.environ.get("CXX", "g++"))
MLP = TrainConfig(
    method="eigen-sam",
    every=2,
    subset=72,
    batch_size=32,
    widths=(16,),
    steps=6,
    probe_every=3,
    checkpoint_every=3,
    lr=0.1,
    trace_samples=0,
    compile=True,
)
CNN = replace(MLP, method="sam", every=None, model="cnn6", widths=None, subset=64)
UNLIKE = ("seconds", "products", "residual", "top_eigenvalue_residual", "alignment_tracked", "mean_alignment_tracked")


class Killed(Exception):
    pass


def kill(done, total):
    if done == 4:
        raise Killed


@pytest.fixture
def without_the_compiler(monkeypatch):
    """What torch.compile traces and differentiates, run as it is."""
    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    yield
    torch.compiler.reset()


def weights(run):
    return torch.load(run.checkpoints()[-1], weights_only=True)["model"]


def numbers(run):
    """Metrics and final numbers, but for times, how searches went, and what hangs on differences of gradients in float32."""
    records = [*run.metrics(), run.summary]
    return [{k: v for k, v in record.items() if k not in UNLIKE} for record in records]


def assert_alike(run, plain):
    """Up to what another order of sums in float32 leaves; the settings apart, the folders are of one kind."""
    ours, theirs = weights(run), weights(plain)
    assert list(ours) == list(theirs)
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-4)
    for record, other in zip(numbers(run), numbers(plain), strict=True):
        assert record == {name: close_to(value) for name, value in other.items()}


def close_to(value):
    return pytest.approx(value, rel=1e-2, abs=1e-3) if isinstance(value, float) else value


@pytest.mark.parametrize("config", [MLP, CNN], ids=["mlp", "cnn6"])
def test_a_compiled_network_trains_like_the_network(tmp_path, without_the_compiler, config):
    assert_alike(train(config, tmp_path / "compiled"), train(replace(config, compile=False), tmp_path / "plain"))


def test_a_compiled_run_resumes_bitwise(tmp_path, without_the_compiler):
    with pytest.raises(Killed):
        train(MLP, tmp_path / "killed", progress=kill)
    resumed, whole = train(MLP, tmp_path / "killed"), train(MLP, tmp_path / "whole")
    assert all(torch.equal(t, weights(whole)[name]) for name, t in weights(resumed).items())
    assert [r["test_loss"] for r in resumed.metrics() if "test_loss" in r] == [
        r["test_loss"] for r in whole.metrics() if "test_loss" in r
    ]


@pytest.mark.slow
@pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler")
@pytest.mark.parametrize("config", [MLP, CNN], ids=["mlp", "cnn6"])
def test_a_network_in_machine_code_trains_like_the_network(tmp_path, config):
    torch.compiler.reset()
    assert_alike(train(config, tmp_path / "compiled"), train(replace(config, compile=False), tmp_path / "plain"))


@pytest.mark.slow
def test_without_a_compiler_a_sentence_says_what_is_missing(tmp_path):
    words = ["train", "--compile", "--subset", "64", "--steps", "1", "--no-curvature", "--out", str(tmp_path / "run")]
    missing = {"CXX": "no-such-compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "flatwise", *words]
    done = subprocess.run(command, env=os.environ | missing, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "it needs a C++ compiler, g++ or the one that the environment variable CXX names" in done.stderr
    assert "Traceback" not in done.stderr
