import json
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from flatwise.runs import Run, RunError
from flatwise.training import TrainConfig, train
from flatwise.training.loop import load_task
from flatwise.training.setup import build_loss, build_network, resolved, squared_error

SMALL = TrainConfig(method="sam", data="digits", subset=200, widths=(16,), steps=20, lr=0.1)


def final_weights(run):
    return torch.load(run.checkpoints()[-1], weights_only=True)["model"]


def records(run, kind):
    return [record for record in run.metrics() if record["kind"] == kind]


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a) and a.keys() == b.keys()


def transcription(config):
    """Plain torch: SGD or SAM with momentum on the same batches."""
    from flatwise.training.batches import Batches

    config = resolved(config)
    task = load_task(config)
    model, batches = build_network(config, task), Batches(task, config.batch_size, config.seed)
    base = torch.optim.SGD(model.parameters(), lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
    loss_of = build_loss(config)
    for step in range(config.steps):
        inputs, targets = batches.at(step)
        base.param_groups[0]["lr"] = config.lr * (1 + math.cos(math.pi * step / config.steps)) / 2
        base.zero_grad()
        loss_of(model(inputs), targets).backward()
        falls = {"constant": 1, "linear": 1 - step / config.steps}
        if rho := (config.rho or 0) * falls[config.rho_schedule]:
            backup = [p.detach().clone() for p in model.parameters()]
            gradient = [p.grad.clone() for p in model.parameters()]
            norm = torch.stack([g.square().sum() for g in gradient]).sum().sqrt()
            with torch.no_grad():
                for p, g in zip(model.parameters(), gradient, strict=True):
                    p.add_(rho / norm * g)
            base.zero_grad()
            loss_of(model(inputs), targets).backward()
            with torch.no_grad():
                for p, b in zip(model.parameters(), backup, strict=True):
                    p.copy_(b)
        base.step()
    return model.state_dict()


@pytest.mark.parametrize("method", ["sgd", "sam"])
@pytest.mark.parametrize("loss", ["cross-entropy", "squared-error"])
def test_the_loop_is_the_plain_loop(tmp_path, method, loss):
    config = replace(SMALL, method=method, loss=loss)
    run = train(config, tmp_path / "run")
    expected = transcription(config)
    for name, weights in final_weights(run).items():
        torch.testing.assert_close(weights, expected[name], rtol=1e-4, atol=1e-6)


def test_with_a_falling_rho_too(tmp_path):
    config = replace(SMALL, rho=0.5, rho_schedule="linear", probe_every=5)
    run = train(config, tmp_path / "run")
    expected = transcription(config)
    for name, weights in final_weights(run).items():
        torch.testing.assert_close(weights, expected[name], rtol=1e-4, atol=1e-6)
    assert [r["rho"] for r in records(run, "train")] == pytest.approx([0.5, 0.375, 0.25, 0.125])
    assert [r["displacement_norm"] for r in records(run, "probe")[:-1]] == pytest.approx(
        [0.5, 0.375, 0.25, 0.125], rel=1e-5
    )
    assert run.summary["mean_rho"] == pytest.approx(sum(0.5 * (1 - step / 20) for step in range(20)) / 20)


@pytest.mark.filterwarnings("ignore:10 steps in a row were skipped")
def test_a_skipped_step_does_not_advance_rho(tmp_path):
    """At a learning rate of 1e8 the first step is taken, and all others overflow in their second pass."""
    config = replace(SMALL, loss="squared-error", lr=1e8, schedule="constant", rho_schedule="linear", steps=50)
    run = train(replace(config, probe_every=1), tmp_path / "run")
    assert run.summary["skipped"] == 10
    taken = [r["step"] + 1 - r["skipped"] for r in records(run, "train")]
    rho = {r["step"]: r["rho"] for r in records(run, "train")}
    assert all(rho[s + 1] == pytest.approx(0.05 * (1 - taken[s] / 50)) for s in range(len(taken) - 1))
    assert rho[max(rho)] > 0.05 * (1 - max(rho) / 50)


def test_measuring_changes_nothing(tmp_path):
    runs = [train(replace(SMALL, method="eigen-sam", probe_every=k), tmp_path / str(k)) for k in (0, 1, 7)]
    weights = [final_weights(run) for run in runs]
    assert same(weights[0], weights[1])
    assert same(weights[0], weights[2])


def test_the_same_settings_give_the_same_run_and_another_seed_another(tmp_path):
    one, two = (train(SMALL, tmp_path / name) for name in "ab")
    assert same(final_weights(one), final_weights(two))
    other = train(replace(SMALL, seed=1), tmp_path / "c")
    assert not same(final_weights(one), final_weights(other))


def test_the_callers_random_state_and_threads_stay(tmp_path):
    torch.manual_seed(5)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    train(replace(SMALL, steps=2), tmp_path / "run")
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


def test_records_and_summary(tmp_path):
    run = train(replace(SMALL, probe_every=8), tmp_path / "run")
    assert run.status == "finished"
    assert [r["step"] for r in records(run, "train")] == [0, 8, 16]
    assert [r["step"] for r in records(run, "probe")] == [0, 8, 16, 20]
    assert [r["evaluations"] for r in records(run, "train")] == [2, 18, 34]
    probe = records(run, "probe")[1]
    assert probe["displacement_norm"] == pytest.approx(0.05, rel=1e-5)
    assert probe["alignment_displacement"] <= 1
    assert probe["on"] == "200 training samples, evaluation mode, float32"
    last = records(run, "probe")[-1]
    for name in ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "top_eigenvalue"):
        assert run.summary[name] == last[name]
    assert run.summary["top_eigenvalue_residual"] == last["residual"]
    assert run.summary["evaluations"] == 40
    assert run.summary["steps"] == 20
    alignments = [r["alignment_displacement"] for r in records(run, "probe")[:-1]]
    assert run.summary["mean_alignment_displacement"] == pytest.approx(sum(alignments) / 3)
    assert run.config["rho"] == 0.05
    assert "flatwise train --method sam" in run.environment["command"]


def test_the_mean_displacement_norm_is_over_all_steps(tmp_path):
    run = train(replace(SMALL, method="eigen-sam", rho=0.1, alpha=1.0, every=5, probe_every=0), tmp_path / "run")
    assert 0.1 < run.summary["mean_displacement_norm"] <= 0.1 * math.sqrt(2)
    assert records(run, "probe")[0]["alignment_tracked"] <= 1


def test_a_finished_run_is_returned_as_it_is(tmp_path):
    run = train(SMALL, tmp_path / "run")
    before = (run.path / "metrics.jsonl").read_bytes(), (run.path / "done.json").read_bytes()
    again = train(SMALL, tmp_path / "run")
    assert ((again.path / "metrics.jsonl").read_bytes(), (again.path / "done.json").read_bytes()) == before


def test_a_folder_with_another_run_is_left_alone(tmp_path):
    run = train(replace(SMALL, steps=2), tmp_path / "run")
    before = (run.path / "metrics.jsonl").read_bytes()
    with pytest.raises(RunError, match=r"steps was 2, is 20"):
        train(SMALL, tmp_path / "run")
    assert (run.path / "metrics.jsonl").read_bytes() == before


@pytest.mark.filterwarnings("error")
def test_a_loss_that_becomes_nan_ends_the_run_at_that_step(tmp_path):
    run = train(
        replace(SMALL, method="sgd", loss="squared-error", lr=1e4, schedule="constant", steps=50), tmp_path / "run"
    )
    assert run.status == "diverged"
    step = run.summary["steps"]
    assert 0 < step < 49
    assert run.summary["reason"] in (f"the training loss became {x} at step {step}" for x in ("nan", "inf"))
    assert records(run, "probe")
    assert Run.open(run.path).status == "diverged"


def test_a_run_whose_steps_are_all_skipped_is_ended(tmp_path):
    config = replace(SMALL, loss="squared-error", lr=1e8, schedule="constant", steps=50)
    with pytest.warns(UserWarning, match="10 steps in a row were skipped"):
        run = train(config, tmp_path / "run")
    assert run.status == "diverged"
    assert "10 steps in a row could not be taken" in run.summary["reason"]
    assert run.summary["skipped"] == 10


def test_full_batch_and_chunks_agree(tmp_path, monkeypatch):
    config = replace(SMALL, method="sam", batch_size=0, momentum=0.0, steps=5)
    whole = train(config, tmp_path / "whole")
    monkeypatch.setattr("flatwise.training.batches.CHUNK", 64)
    parts = train(config, tmp_path / "parts")
    for name, weights in final_weights(whole).items():
        torch.testing.assert_close(weights, final_weights(parts)[name], rtol=1e-4, atol=1e-6)


def test_adamw_and_bfloat16_and_channels_last_train(tmp_path):
    config = replace(SMALL, optimizer="adamw", lr=None, precision="bfloat16", model="cnn6", widths=None, steps=3)
    run = train(replace(config, channels_last=True, probe_every=0, probe_samples=50), tmp_path / "run")
    assert run.status == "finished"
    assert records(run, "probe")[0]["on"].startswith("50 training samples")
    assert run.summary["train_loss"] < 3


def test_how_much_is_measured_changes_nothing_for_a_method_that_looks_at_the_hessian(tmp_path):
    bulk = TrainConfig(method="bulk-sgd", subset=100, widths=(8,), steps=3, hyper=("k=2",), curvature=False)
    ends = [train(replace(bulk, probe_samples=n), tmp_path / f"{n}").summary["test_loss"] for n in (None, 20)]
    assert ends[0] == ends[1]


def test_probe_samples_cannot_exceed_the_data(tmp_path):
    with pytest.raises(ValueError, match="only 200 training samples"):
        train(replace(SMALL, probe_samples=300), tmp_path / "run")


def test_squared_error_is_the_mean_over_all_entries():
    outputs, targets = torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 0.5]]), torch.tensor([1, 2])
    assert squared_error(outputs, targets).item() == pytest.approx((1 + 1 + 0 + 0 + 0 + 0.25) / 6)


def test_glorot_weights_have_glorots_variance_and_no_bias():
    config = TrainConfig(init="glorot", widths=(400, 400))
    layers = [m for m in build_network(config, load_task(config)).modules() if isinstance(m, nn.Linear)]
    assert layers[1].weight.std().item() == pytest.approx(math.sqrt(2 / 800), rel=0.02)
    assert all(not layer.bias.any() for layer in layers)


def test_progress_is_told_after_every_step(tmp_path):
    told = []
    train(replace(SMALL, steps=3), tmp_path / "run", progress=lambda step, total: told.append((step, total)))
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_the_configuration_on_disk_is_complete(tmp_path):
    run = train(replace(SMALL, steps=1), tmp_path / "run")
    written = json.loads((run.path / "config.json").read_text())
    assert TrainConfig.from_dict(written) == resolved(replace(SMALL, steps=1))
