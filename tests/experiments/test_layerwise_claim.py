"""The claim about layerwise Jacobians: its flow and its looks, against brute force."""

import math

import pytest
import torch

from flatwise import vectors as V
from flatwise.experiments.claims.layerwise import Flow, aligned, measure, power_law
from flatwise.experiments.claims.listed import CLAIMS

PRESET = CLAIMS["layerwise-jacobian-alignment"].preset("smoke") | {"widths": [4, 4], "tol": 1e-3}


def dense(flow):
    """Hessian and Gauss-Newton matrix, in the order of the parameters, by autograd's own means."""
    parameters = flow.objective.parameters()
    shapes, sizes = [p.shape for p in parameters], [p.numel() for p in parameters]
    inputs, targets = flow.objective.data[0]
    names = [name for name, _ in flow.model.named_parameters()]

    def outputs(flat):
        pieces = [t.view(s) for t, s in zip(flat.split(sizes), shapes, strict=True)]
        return torch.func.functional_call(flow.model, dict(zip(names, pieces, strict=True)), (inputs,))

    def loss(flat):
        return (outputs(flat) - torch.nn.functional.one_hot(targets, 10)).square().sum(1).mean() / 2

    flat = torch.cat([p.detach().flatten() for p in parameters])
    jacobian = torch.autograd.functional.jacobian(outputs, flat).flatten(0, 1)
    return torch.autograd.functional.hessian(loss, flat), jacobian.T @ jacobian / len(targets), sizes


def top(matrix):
    return float(torch.linalg.eigvalsh(matrix.double())[-1])


def test_a_look_sees_the_dense_eigenvalues():
    flow = Flow(PRESET, 12, seed=100)
    seen, (whole, part, sizes) = flow.look(), dense(flow)
    assert seen["hessian"] == pytest.approx(top(whole), rel=1e-2)
    assert seen["gauss_newton"] == pytest.approx(top(part), rel=1e-2)
    layers = torch.tensor([sum(sizes[i : i + 2]) for i in range(0, len(sizes), 2)]).cumsum(0).tolist()
    blocks = [top(part[a:b, a:b]) for a, b in zip([0, *layers], layers, strict=False)]
    assert seen["blocks"] == pytest.approx(blocks, rel=1e-2)


def test_the_alignment_is_that_of_dense_jacobians():
    flow = Flow(PRESET | {"jacobians": 12, "widths": [16, 16]}, 12, seed=100)
    first, second, cosines = flow.model[1], flow.model[3], []
    for x in flow.objective.data[0][0].flatten(1):
        active = (first(x) > 0).float()
        out = torch.linalg.svd(first.weight).U[:, 0]
        into = torch.linalg.svd(second.weight * active).Vh[0]
        cosines.append(float((out @ into).detach().abs()))
        assert active.sum() > 0
    assert flow.look()["alignments"][0] == pytest.approx(sum(cosines) / 12, abs=1e-2)


def test_a_step_is_a_share_of_the_inverse_sharpness_down_the_gradient():
    flow = Flow(PRESET, 12, seed=100)
    sharpness, before = top(dense(flow)[0]), V.clone(flow.objective.weights)
    _, slope = flow.objective.value_and_gradient()
    flow.step(1)
    assert flow.time == pytest.approx(0.5 / sharpness, rel=1e-2)
    moved = V.add(flow.objective.weights, before, -1.0)
    assert float(V.norm(V.add(moved, slope, flow.time))) == pytest.approx(0.0, abs=1e-6)


def test_a_training_ends_at_the_loss_or_at_the_last_step(tmp_path):
    told = []
    found = measure(PRESET, {"samples": 10}, 100, tmp_path, lambda done, total: told.append((done, total)))
    assert len(found["looks"]) == 3
    assert told[-1] == (4, 4)
    assert len(measure(PRESET | {"loss": 9.0}, {"samples": 10}, 100, tmp_path, lambda *_: None)["looks"]) == 2


def test_the_power_law_is_read_off():
    cells = [{"looks": [{"alignments": [0.3 * n**-0.5, 0.1 * n**-0.5]}]} for n in (10, 40, 160)]
    assert aligned(cells[0]["looks"][0]) == pytest.approx(0.2 / math.sqrt(10))
    assert power_law(cells, [10, 40, 160]) == pytest.approx((-0.5, 1.0))


def test_what_holds_at_the_end_is_told_for_the_way_there_too():
    looks = [
        {
            "gauss_newton": g,
            "hessian": 10.0,
            "blocks": [b, 1.0, 2.0],
            "alignments": [0.1 + g / 100],
            "time": t,
            "loss": 1.0,
        }
        | {"chance": [0.1]}
        for t, (g, b) in enumerate([(1.0, 1.0), (8.0, 4.0), (9.0, 8.0)])
    ]
    preset = PRESET | {"cells": [{"samples": 10}, {"samples": 20}]}
    found = {
        c.name: c.values[0]
        for c in CLAIMS["layerwise-jacobian-alignment"].judge(preset, [[{"looks": looks}] * 2]).criteria
    }
    assert found["Gauss-Newton to Hessian"] == pytest.approx(0.9)
    assert found["Gauss-Newton to Hessian, least"] == pytest.approx(0.8)  # the initial weights do not count
    assert (found["first layer to the others"], found["first layer to the others, least"]) == (2.0, 1.0)
