"""The edge of stability followed: what is recorded against brute force, interruptions, and what the numbers decide."""

import math

import pytest
import torch
from torch.autograd.functional import hessian
from torch.func import functional_call

from flatwise.experiments.claims import edge_following
from flatwise.experiments.claims.edge_following import follow
from flatwise.experiments.claims.sam_edge import judge, judge_alignment, late
from flatwise.runs import RunError
from flatwise.tasks import build_model, load_data
from flatwise.theory import gd_edge, sam_edge

PRESET = {
    "data": "digits",
    "data_options": {"subset": 60},
    "model": "mlp",
    "model_options": {"widths": [5], "init": "glorot"},
    "loss": "squared-error",
    "batch_size": 0,
    "steps": 9,
    "measured": 3,
    "eigenvalues": 2,
    "tol": 1e-4,
}


def silent(done, total):
    pass


def test_what_is_recorded_is_what_brute_force_finds(tmp_path):
    found = follow(PRESET, {"lr": 0.1, "rho": 0.2}, 1, tmp_path, silent)
    task = load_data("digits", seed=1, subset=60)
    model = build_model("mlp", task, 1, widths=(5,), init="glorot")
    hot = torch.nn.functional.one_hot(task.train_targets, 10)
    names, shapes = zip(*((name, p.shape) for name, p in model.named_parameters()))

    def loss(flat):
        parts = torch.split(flat, [shape.numel() for shape in shapes])
        weights = {name: part.view(shape) for name, part, shape in zip(names, parts, shapes)}
        return (functional_call(model, weights, (task.train_inputs,)) - hot).square().mean()

    at = torch.cat([p.detach().flatten() for p in model.parameters()])
    values, vectors = torch.linalg.eigh(hessian(loss, at))
    gradient = torch.func.grad(loss)(at)
    perturbed = torch.func.grad(loss)(at + 0.2 * gradient / gradient.norm())
    assert found["step"] == [0, 3, 6]
    assert found["eigenvalues"][0] == pytest.approx(values.flip(0)[:2].tolist(), rel=1e-4)
    assert found["gradient_norm"][0] == pytest.approx(float(gradient.norm()), rel=1e-4)
    for name, vector in (("gradient", gradient), ("perturbed_gradient", perturbed)):
        cosine = abs(float(vector @ vectors[:, -1] / vector.norm()))
        assert found[f"alignment_{name}"][0] == pytest.approx(cosine, rel=1e-3)
    assert found["edge"][0] == pytest.approx(sam_edge(0.1, 0.2, float(gradient.norm())), rel=1e-4)
    assert found["gd_edge"] == [gd_edge(0.1)] * 3


@pytest.mark.parametrize("batch_size", [0, 16])
def test_an_interrupted_training_goes_on_as_if_nothing_had_been(tmp_path, batch_size):
    preset, cell = PRESET | {"batch_size": batch_size}, {"lr": 0.1, "rho": 0.2}

    def stop(done, total):
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        follow(preset, cell, 0, tmp_path / "stopped", stop)
    steps = []
    again = follow(preset, cell, 0, tmp_path / "stopped", lambda done, total: steps.append(done))
    assert steps[0] == 4  # from the checkpoint at step 3
    assert again == follow(preset, cell, 0, tmp_path / "whole", silent)


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    follow(PRESET, {"lr": 0.1, "rho": 0.2}, 0, tmp_path, silent)
    with pytest.raises(RunError, match="other settings"):
        follow(PRESET, {"lr": 0.2, "rho": 0.2}, 0, tmp_path, silent)


def test_without_rho_it_is_gradient_descent_and_its_edge(tmp_path):
    found = follow(PRESET, {"lr": 0.1, "rho": 0.0}, 0, tmp_path, silent)
    assert found["edge"] == found["gd_edge"] == [pytest.approx(20.0)] * 3
    assert found["alignment_gradient"] == found["alignment_perturbed_gradient"]


def test_a_training_that_diverges_ends_and_gives_no_number(tmp_path):
    found = follow(PRESET | {"steps": 200}, {"lr": 1e4, "rho": 0.0}, 0, tmp_path, silent)
    assert math.isnan(late(PRESET | {"steps": 200}, found, lambda run, at: 1.0))


def test_losses_of_tokens_are_means_over_all_of_them():
    logits, targets = torch.randn(2, 3, 4), torch.randint(4, (2, 3))
    loss = edge_following.LOSSES["cross-entropy"](logits, targets)
    by_hand = -torch.stack([logits[i, j].log_softmax(0)[targets[i, j]] for i in range(2) for j in range(3)]).mean()
    assert float(loss) == pytest.approx(float(by_hand))


def series(ratio, fall=0.5, gain=0.1):
    """A training of 8 steps whose top eigenvalue is `ratio` times the edge, which falls from 2 by the factor `fall`."""
    edge = [2 * fall ** (i / 7) for i in range(8)]
    return {
        "step": list(range(8)),
        "edge": edge,
        "gd_edge": [20.0] * 8,
        "eigenvalues": [[ratio * e, 0.95 * e, 0.5 * e] for e in edge],
        "alignment_gradient": [0.2] * 8,
        "alignment_perturbed_gradient": [0.2 + gain] * 8,
    }


JUDGED = {"batch_size": 0, "steps": 8, "measured": 1, "eigenvalues": 3, "cells": [{"lr": 0.1, "rho": 0.1}]}


def test_the_numbers_of_the_claim():
    outcome = judge(JUDGED, [[series(1.02)], [series(0.98)]])
    at_edge, far, fall, bunched = outcome.criteria
    assert at_edge.values == pytest.approx([1.02, 0.98])
    assert (at_edge.least, at_edge.most) == (0.9, 1.1)
    assert max(far.values) < far.most
    assert fall.values[0] == pytest.approx(-4 / 7)  # the middles of two quarters are four seventh of the whole apart
    assert bunched.values == [2, 2]
    assert not bunched.decisive


@pytest.mark.parametrize("measured", [2, 0])
def test_a_training_that_ends_early_gives_no_number_to_any_criterion(measured):
    whole = series(1.0)
    early = {name: values[:measured] for name, values in whole.items()} if measured else {}
    for verdict in (judge(JUDGED, [[whole], [early]]), judge_alignment(JUDGED, [[whole], [early]])):
        for criterion in verdict.criteria:
            assert math.isfinite(criterion.values[0])
            assert math.isnan(criterion.values[1])


def test_over_mini_batches_the_bounds_are_wider():
    outcome = judge(JUDGED | {"batch_size": 16}, [[series(1.0)]])
    assert (outcome.criteria[0].least, outcome.criteria[0].most) == (0.8, 1.2)


def test_the_gain_in_alignment_is_judged_where_there_is_a_displacement():
    preset = JUDGED | {"cells": [{"lr": 0.1, "rho": 0.0}, {"lr": 0.1, "rho": 0.1}]}
    outcome = judge_alignment(preset, [[series(1.0, gain=0.0), series(1.0, gain=0.1)]])
    assert [c.values for c in outcome.criteria] == [[pytest.approx(0.1)]]
