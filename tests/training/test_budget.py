"""Budgets of evaluations, parts of a batch, selected samples: what a step is made of, and how many there are."""

from dataclasses import replace

import pytest
import torch

from flatwise import methods
from flatwise.training import TrainConfig, resolved, train
from flatwise.training.batches import Batches, part_of
from flatwise.training.interruption import Interrupted
from flatwise.training.loop import load_task
from flatwise.training.setup import build_loss, build_network, squared_error, squared_errors

SMALL = TrainConfig(subset=100, widths=(8,), batch_size=50, probe_every=0, curvature=False)
SPECTRAL = ("dom-sgd", "bulk-sgd")


def weights(run):
    return torch.load(run.checkpoints()[-1], weights_only=True)["model"]


@pytest.mark.parametrize("method", [name for name in methods.names() if name not in SPECTRAL])
def test_every_method_spends_its_budget(tmp_path, method):
    config = resolved(replace(SMALL, method=method, evaluations=60, every=5 if method == "eigen-sam" else None))
    run = train(config, tmp_path / "run")
    assert run.status == "finished"
    # a method may end with part of a step unpaid for, and one that counts on its mean begins with its dear steps
    assert 60 - 7 <= run.summary["evaluations"] <= 60 + 12


def test_a_budget_is_the_same_run_as_the_steps_that_it_pays_for(tmp_path):
    one = train(replace(SMALL, method="sam", evaluations=41), tmp_path / "budget")
    other = train(replace(SMALL, method="sam", steps=20), tmp_path / "steps")
    assert one.summary["steps"] == 20
    assert all(torch.equal(a, b) for a, b in zip(weights(one).values(), weights(other).values(), strict=True))


def test_an_adaptive_method_resumes_with_what_it_has_spent(tmp_path):
    config = replace(SMALL, method="ae-sam", evaluations=60, checkpoint_every=7)
    whole = train(config, tmp_path / "whole")
    assert 60 <= whole.summary["evaluations"] <= 61
    steps = whole.summary["steps"]
    assert 30 < steps < 60

    def stop(done, _total):
        if done > 30:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "broken", progress=stop)
    again = train(config, tmp_path / "broken")
    assert again.summary["steps"] == steps
    assert all(torch.equal(a, b) for a, b in zip(weights(whole).values(), weights(again).values(), strict=True))


def test_an_interrupted_budget_is_an_interruption_like_any_other(tmp_path):
    assert issubclass(Interrupted, KeyboardInterrupt)
    with pytest.raises(ValueError, match="rho_schedule linear needs the number of steps"):
        train(replace(SMALL, method="ae-sam", evaluations=60, rho_schedule="linear"), tmp_path / "run")


def test_parts_are_m_sharpness(tmp_path):
    """Two parts: the mean of SAM's gradients on the two halves of a batch, each displaced along its own."""
    config = resolved(replace(SMALL, method="sam", rho=0.5, parts=2, steps=3, schedule="constant", lr=0.1))
    run = train(config, tmp_path / "run")
    assert run.summary["evaluations"] == 6  # an evaluation on half of the batch is half of one

    task, loss_of = load_task(config), build_loss(config)
    model, batches = build_network(config, task), Batches(task, 50, 0)
    base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    for step in range(3):
        directions = []
        for part in range(2):
            x, y = part_of(*batches.at(step), 2, part)
            before = [p.detach().clone() for p in model.parameters()]
            gradient = torch.autograd.grad(loss_of(model(x), y), list(model.parameters()))
            norm = torch.cat([g.flatten() for g in gradient]).norm()
            with torch.no_grad():
                for p, g in zip(model.parameters(), gradient, strict=True):
                    p.add_(0.5 * g / norm)
            directions.append(torch.autograd.grad(loss_of(model(x), y), list(model.parameters())))
            with torch.no_grad():
                for p, b in zip(model.parameters(), before, strict=True):
                    p.copy_(b)
        for p, a, b in zip(model.parameters(), *directions, strict=True):
            p.grad = (a + b) / 2
        base.step()
    for name, expected in model.state_dict().items():
        torch.testing.assert_close(weights(run)[name], expected, rtol=1e-4, atol=1e-6)


def test_a_batch_that_is_smaller_than_its_parts_has_fewer_of_them(tmp_path):
    config = replace(SMALL, method="sam", subset=33, batch_size=16, parts=4, epochs=2)
    assert train(config, tmp_path / "run").status == "finished"


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"method": "sgd", "parts": 2}, "parts 2 has no effect with method sgd"),
        ({"method": "ae-sam", "parts": 2}, "parts 2 has no effect with method ae-sam"),
        ({"method": "sam", "parts": 8, "batch_size": 4}, "a batch of 4 samples cannot be split into parts 8"),
    ],
)
def test_parts_that_have_no_effect_are_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        resolved(TrainConfig(**settings))


def test_a_method_that_goes_on_with_part_of_the_samples_sees_their_losses(tmp_path):
    config = replace(SMALL, method="esam", steps=5)
    whole, half = (train(replace(config, hyper=(f"gamma={g}",)), tmp_path / str(g)) for g in (1.0, 0.5))
    assert not torch.equal(weights(whole)["1.weight"], weights(half)["1.weight"])


def test_the_loss_is_the_mean_over_samples():
    outputs, targets = torch.randn(7, 4), torch.randint(4, (7,))
    config = TrainConfig(loss="squared-error")
    assert build_loss(config)(outputs, targets) == squared_error(outputs, targets)
    torch.testing.assert_close(squared_errors(outputs, targets).mean(), squared_error(outputs, targets))
    one_hot = torch.eye(4)[targets]
    torch.testing.assert_close(squared_error(outputs, targets), ((outputs - one_hot) ** 2).mean())


def test_the_trace_is_measured_at_the_end_with_its_standard_error(tmp_path):
    config = replace(SMALL, method="sgd", steps=40, probe_every=20, curvature=True, trace_samples=400)
    run = train(config, tmp_path / "run")
    exact = exact_trace(config, run)
    found, error = run.summary["trace"], run.summary["trace_error"]
    assert abs(found - exact) < 4 * error < 0.5 * abs(exact)
    probes = [record for record in run.metrics() if record["kind"] == "probe"]
    assert ["trace" in probe for probe in probes] == [False, False, True]
    plain = train(replace(config, trace_samples=0), tmp_path / "plain").summary
    assert "trace" not in plain
    assert "top_eigenvalue" in plain
    assert "top_eigenvalue" not in train(replace(config, curvature=False), tmp_path / "none").summary


def exact_trace(config, run):
    """The trace of the Hessian of the mean loss, in float64, by differentiating twice."""
    task = load_task(config)
    model = build_network(config, task).double()
    model.load_state_dict(weights(run))
    parameters = list(model.parameters())
    loss = build_loss(config)(model(task.train_inputs.double()), task.train_targets)
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters, create_graph=True)])
    rows = (torch.autograd.grad(g, parameters, retain_graph=True) for g in gradient)
    return sum(float(torch.cat([r.flatten() for r in row])[i]) for i, row in enumerate(rows))
