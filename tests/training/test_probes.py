from dataclasses import replace

import pytest
import torch

from flatwise import theory
from flatwise import vectors as V
from flatwise.training import TrainConfig, resolved, train
from flatwise.training.loop import load_task
from flatwise.training.probes import Probe
from flatwise.training.setup import build_loss, build_network

FULL = TrainConfig(
    data="digits-full",
    subset=100,
    widths=(8,),
    init="glorot",
    loss="squared-error",
    batch_size=0,
    steps=12,
    lr=0.5,
    momentum=0.0,
    weight_decay=0.0,
    schedule="constant",
    probe_every=4,
)


def probes(config, folder):
    return [r for r in train(config, folder).metrics() if r["kind"] == "probe"]


def test_the_measured_numbers_are_those_of_the_dense_hessian():
    config = resolved(replace(FULL, eigen_tol=1e-4))
    task = load_task(config)
    model, loss_of = build_network(config, task), build_loss(config)
    values = Probe(config, task, model, loss_of, full_batch=True).measure(0.5, config.rho).values

    names = [name for name, _ in model.named_parameters()]
    flat = torch.cat([p.detach().flatten() for p in model.parameters()])

    def loss_at(point):
        parts = point.split([p.numel() for p in model.parameters()])
        weights = {n: t.view_as(p) for n, t, p in zip(names, parts, model.parameters(), strict=True)}
        return loss_of(torch.func.functional_call(model, weights, task.train_inputs), task.train_targets)

    eigenvalues, vectors = torch.linalg.eigh(torch.autograd.functional.hessian(loss_at, flat))
    gradient = torch.autograd.functional.jacobian(loss_at, flat)
    assert values["top_eigenvalue"] == pytest.approx(eigenvalues[-1].item(), rel=1e-3)
    assert values["gradient_norm"] == pytest.approx(gradient.norm().item(), rel=1e-4)
    aligned = (gradient @ vectors[:, -1]).abs() / gradient.norm()
    assert values["alignment_gradient"] == pytest.approx(aligned.item(), rel=1e-2, abs=1e-3)
    assert values["train_loss"] == pytest.approx(loss_at(flat).item(), rel=1e-5)


def test_the_displacement_of_sam_on_the_full_batch_is_aligned_like_the_gradient(tmp_path):
    for record in probes(replace(FULL, method="sam"), tmp_path / "run")[:-1]:
        assert record["alignment_displacement"] == pytest.approx(record["alignment_gradient"], abs=1e-3)


@pytest.mark.parametrize(
    ("method", "settings", "edge"),
    [
        ("sgd", {}, lambda r: 2 / 0.5),
        ("sgd", {"momentum": 0.5}, lambda r: theory.heavy_ball_edge(0.5, 0.5)),
        ("sam", {"rho": 0.1}, lambda r: theory.sam_edge(0.5, 0.1, r["gradient_norm"])),
    ],
)
def test_the_edge_is_that_of_the_theory_at_the_measured_gradient(tmp_path, method, settings, edge):
    for record in probes(replace(FULL, method=method, **settings), tmp_path / "run"):
        assert record["edge"] == pytest.approx(float(edge(record)))
        assert record["gd_edge"] == 4.0
        assert record["edge_name"]


@pytest.mark.parametrize(
    "settings",
    [
        {"batch_size": 50},
        {"weight_decay": 1e-4},
        {"method": "eigen-sam"},
        {"method": "sam", "momentum": 0.5},
        {"method": "reverse-sam"},
        {"optimizer": "adamw", "momentum": None},
        {"probe_samples": 50},
        {"precision": "bfloat16"},
        {"model": "cnn6", "widths": None, "init": "default"},
    ],
)
def test_no_edge_is_drawn_where_none_is_derived(tmp_path, settings):
    for record in probes(replace(FULL, steps=2, **settings), tmp_path / "run"):
        assert not {"edge", "gd_edge", "edge_name"} & record.keys()


def test_with_a_cosine_schedule_the_edge_is_that_of_the_current_learning_rate(tmp_path):
    records = probes(replace(FULL, method="sgd", schedule="cosine"), tmp_path / "run")
    assert [r.get("edge") for r in records[:3]] == pytest.approx([4.0, 2 / (0.25 * 1.5), 2 / (0.25 * 0.5)])
    assert "edge" not in records[-1]


def test_with_a_falling_rho_the_edge_is_that_of_the_current_rho(tmp_path):
    """Down to gradient descent's, where rho has come to 0."""
    records = probes(replace(FULL, method="sam", rho=0.3, rho_schedule="linear"), tmp_path / "run")
    for record, rho in zip(records, [0.3, 0.2, 0.1, 0.0], strict=True):
        assert record["edge"] == pytest.approx(float(theory.sam_edge(0.5, rho, record["gradient_norm"])))
    assert records[-1]["edge"] == records[-1]["gd_edge"]


def test_a_probe_leaves_the_model_as_it_was():
    config = resolved(TrainConfig(method="sgd", model="cnn6", subset=64))
    task = load_task(config)
    model = build_network(config, task)
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    probe = Probe(config, task, model, build_loss(config), full_batch=False)
    measurement = probe.measure(0.1, None)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(p.grad is None for p in model.parameters())
    assert all(m.training for m in model.modules())
    assert V.norm(measurement.eigenvector).item() == pytest.approx(1, rel=1e-4)
