"""Slices around the weights: the losses are those of the moved weights, and nothing has moved afterwards."""

import json
import math

import pytest
import torch
from curvature.networks import NETWORKS, brute_force, problem
from landscape.landscapes import (
    as_vector,
    assert_untouched,
    bowl,
    everything,
    network,
    normalised_network,
)
from test_objective import cross_entropy
from torch import nn

import flatwise as fw
from flatwise import Objective
from flatwise import vectors as V
from flatwise.landscape import line, parabola, plane, random_direction

LENGTHS = [-0.5, -0.1, 0.0, 0.2, 1.0]


def test_a_line_through_a_bowl_is_its_parabola():
    objective, matrix, center = bowl()
    direction = torch.arange(1.0, 7.0, dtype=torch.float64)
    found = line(objective, as_vector(direction), LENGTHS, name="somewhere")
    for x, loss in zip(LENGTHS, found.losses, strict=True):
        w = x * direction - center
        assert loss == pytest.approx(float(w @ matrix @ w / 2), rel=1e-12)
    assert (found.name, found.at, found.lengths) == ("somewhere", "the weights", LENGTHS)
    assert found.norm == pytest.approx(float(direction.norm()))
    curve = parabola(found)
    assert curve.value == pytest.approx(float(center @ matrix @ center / 2), rel=1e-9)
    assert curve.slope == pytest.approx(float(-direction @ matrix @ center), rel=1e-9)
    assert curve.curvature == pytest.approx(float(direction @ matrix @ direction), rel=1e-9)


def test_a_plane_through_a_bowl_is_the_bowl():
    objective, matrix, center = bowl()
    u, v = torch.randn(2, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    xs, ys = [-1.0, 0.0, 0.5], [-0.25, 2.0]
    found = plane(objective, as_vector(u), as_vector(v), xs, ys, names=("u", "v"))
    for y, row in zip(ys, found.losses, strict=True):
        for x, loss in zip(xs, row, strict=True):
            w = x * u + y * v - center
            assert loss == pytest.approx(float(w @ matrix @ w / 2), rel=1e-12)
    assert found.cosine == pytest.approx(float(nn.functional.cosine_similarity(u, v, dim=0)))
    assert found.norms == pytest.approx((float(u.norm()), float(v.norm())))
    (mark,) = found.marks
    assert (mark.label, mark.place) == ("the weights", (0.0, 0.0))
    assert mark.loss == pytest.approx(float(center @ matrix @ center / 2))


@pytest.mark.parametrize("name", ["mlp", "BatchNorm, evaluation mode", "BatchNorm, training mode", "LSTM"])
def test_the_second_difference_along_an_eigenvector_is_its_eigenvalue(name):
    model, data, mode = problem(name)
    objective = Objective(model, cross_entropy, data, mode=mode)
    values, vectors = torch.linalg.eigh(brute_force(name))
    for i in (-1, 0):
        sizes = [p.numel() for p in model.parameters()]
        pieces = vectors[:, i].split(sizes)
        direction = [v.view_as(p) for v, p in zip(pieces, model.parameters(), strict=True)]
        curve = parabola(line(objective, direction, [-0.004, -0.002, 0.0, 0.002, 0.004]))
        assert curve.curvature == pytest.approx(values[i].item(), rel=1e-4)
        slope = V.dot(objective.gradient(), direction).item()
        assert curve.slope == pytest.approx(slope, rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_loss_without_a_graph_is_the_loss(name):
    model, data, mode = problem(name)
    objective = Objective(model, cross_entropy, data, mode=mode)
    found = line(objective, objective.gradient(), [0.0])
    assert found.losses == [found.marks[0].loss] == [objective.value().item()]


def test_the_default_lengths_hold_both_ends_and_the_middle():
    found = line(bowl()[0], as_vector(torch.ones(6, dtype=torch.float64)))
    assert len(found.lengths) == 41
    assert (found.lengths[0], found.lengths[20], found.lengths[-1]) == (-1, 0, 1)


@pytest.mark.parametrize("buffers", ["kept", "recomputed"])
def test_a_slice_changes_nothing(buffers):
    objective = normalised_network(mode="eval")
    before = everything(objective.model)
    direction = random_direction(objective)
    line(objective, direction, LENGTHS, buffers=buffers)
    plane(objective, direction, random_direction(objective, 1), [0.0, 1.0], buffers=buffers)
    assert_untouched(objective.model, before)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
@pytest.mark.parametrize("at", range(1, 9))
def test_a_slice_that_is_interrupted_changes_nothing(error, at):
    objective = normalised_network(mode="eval")
    calls = []

    def interrupted(model, batch):
        calls.append(0)
        if len(calls) == at:
            raise error("stop")
        return cross_entropy(model, batch)

    broken = Objective(objective.model, interrupted, objective.data, mode="eval")
    before = everything(objective.model)
    with pytest.raises(error):
        line(broken, random_direction(objective), LENGTHS, buffers="recomputed", check=False)
    assert_untouched(objective.model, before)


def test_ctrl_c_between_two_losses_changes_nothing():
    objective = normalised_network(mode="eval")
    before = everything(objective.model)

    def stop(done, total):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        line(objective, random_direction(objective), LENGTHS, progress=stop)
    assert_untouched(objective.model, before)


def test_progress_counts_every_loss():
    told = []
    plane(
        bowl()[0],
        as_vector(torch.eye(6, dtype=torch.float64)[0]),
        as_vector(torch.eye(6, dtype=torch.float64)[5]),
        [0.0, 1.0],
        [0.0, 1.0, 2.0],
        progress=lambda done, total: told.append((done, total)),
    )
    assert told == [(i, 7) for i in range(1, 8)]


def test_a_loss_that_is_not_finite_stays_in_its_place():
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(model.weight, 0.5)
    objective = Objective(model, lambda model, batch: model.weight.log().sum(), [torch.zeros(1)])
    found = line(objective, [torch.ones(1, 1)], [-1.0, -0.5, 0.0, 0.5])
    assert math.isnan(found.losses[0])
    assert found.losses[1] == -math.inf
    assert found.losses[2:] == pytest.approx([math.log(0.5), 0.0])
    described = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert described["losses"][:2] == [None, None]
    assert described["parabola"] is None
    across = plane(
        Objective(Bent(), lambda model, batch: model(), [torch.zeros(1)]), *Bent.axes, [-1.0, 1.0], [-1.0, 1.0]
    )
    assert json.loads(json.dumps(across.to_dict(), allow_nan=False))["losses"] == [[None, None], [None, 0.0]]


class Bent(nn.Module):
    """Finite in one quarter of the plane alone."""

    axes = [torch.ones(1), None], [None, torch.ones(1)]

    def __init__(self):
        super().__init__()
        self.x, self.y = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))

    def forward(self):
        return (self.x.log() + self.y.log()).sum()


def test_what_a_slice_says_of_itself_is_plain():
    objective = network(mode="current")
    found = line(objective, objective.gradient(), step=120).to_dict()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    record = found["record"]
    assert (record["step"], record["samples"], record["mode"]) == (120, 11, "current (train)")
    assert (record["dtype"], record["checked"], record["draws"]) == ("float64", True, False)
    assert found["buffers"] == "none"
    assert set(found["parabola"]) == {"value", "slope", "curvature", "error"}


def test_the_share_of_errors_can_be_drawn_though_it_has_no_derivative():
    objective = network()
    errors = Objective(
        objective.model, lambda model, batch: (model(batch[0]).argmax(1) != batch[1]).double().mean(), objective.data
    )
    found = line(errors, objective.gradient(), [0.0, 100.0])
    wrong = sum(int((objective.model(x).argmax(1) != y).sum()) for x, y in objective.data)
    assert found.losses[0] == pytest.approx(wrong / 11)


def test_a_loss_that_differentiates_something_itself_keeps_its_graph():
    model = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    points = torch.linspace(0, 1, 5, dtype=torch.float64)[:, None]

    def residual(model, batch):
        x = batch.clone().requires_grad_()
        (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        return ((slope - x) ** 2).mean()

    objective = Objective(model, residual, [points])
    found = line(objective, objective.gradient(), [0.0])
    assert found.losses == [objective.value().item()]


def test_dropout_is_drawn_alike_at_every_length():
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Dropout(0.5), nn.Linear(6, 3)).double()
    objective = Objective(model, cross_entropy, network().data, mode="train")
    found = line(objective, objective.gradient(), [-1e-9, 0.0, 1e-9])
    assert found.losses[0] == pytest.approx(found.losses[2], rel=1e-7)
    assert found.record.draws


def test_a_loss_that_differs_from_call_to_call_is_refused():
    objective = network()
    generator = torch.Generator().manual_seed(0)
    noisy = Objective(
        objective.model,
        lambda model, batch: cross_entropy(model, batch) + torch.rand((), generator=generator),
        objective.data,
    )
    with pytest.raises(RuntimeError, match="generator of its own"):
        line(noisy, objective.gradient())
    line(noisy, objective.gradient(), [0.0], check=False)


def test_recomputed_statistics_are_those_of_the_data_at_each_length():
    objective = normalised_network(mode="eval", sizes=(8, 8))
    direction = random_direction(objective)
    found = line(objective, direction, [0.0, 0.7], buffers="recomputed")
    for x, loss in zip(found.lengths, found.losses, strict=True):
        assert loss == pytest.approx(with_statistics_of(objective, V.add(objective.weights, direction, x)), rel=1e-6)
    assert found.buffers == "recomputed"
    assert found.marks[0].loss == objective.value().item() != found.losses[0]


def with_statistics_of(objective, weights):
    """The loss at some weights, with statistics by torch's own function."""
    weights = V.clone(weights)
    model = objective.model
    before = {name: t.clone() for name, t in model.state_dict().items()}
    flags = [m.training for m in model.modules()]
    V.copy_([p.detach() for p in model.parameters()], weights)
    torch.optim.swa_utils.update_bn(objective.data, model)
    loss = objective.value().item()
    model.load_state_dict(before)
    for m, flag in zip(model.modules(), flags, strict=True):
        m.training = flag
    return loss


def test_statistics_can_come_from_other_data():
    objective = normalised_network(mode="eval")
    other = [(x + 3, y) for x, y in objective.data]
    direction = random_direction(objective)
    own, others = (
        line(objective, direction, [0.0], buffers="recomputed", statistics=data).losses for data in (None, other)
    )
    assert own != others
    assert own == line(objective, direction, [0.0], buffers="recomputed", statistics=objective.data).losses


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"buffers": "recomputed"}, "no layer of the model computes with running statistics"),
        ({"buffers": "interpolated"}, "the model has no buffers"),
        ({"buffers": "nearest"}, "buffers must be"),
        ({"statistics": [1]}, "statistics has no effect"),
        ({"lengths": []}, "at least one"),
        ({"lengths": [0.0, math.inf]}, "finite"),
        ({"lengths": [1.0, 0.0]}, "must ascend"),
        ({"direction": [torch.zeros(6, 5), None, None, None]}, "'v1' is zero"),
        ({"direction": [torch.full((6, 5), math.nan), None, None, None]}, "NaN or infinity"),
        ({"direction": [torch.ones(6, 5)]}, "1 entries"),
    ],
)
def test_a_line_that_cannot_be_is_refused(options, words):
    objective = network()
    before = everything(objective.model)
    with pytest.raises(ValueError, match=words):
        line(objective, **({"direction": objective.gradient(), "name": "v1"} | options))
    assert_untouched(objective.model, before)


def test_training_mode_has_no_use_for_recomputed_statistics():
    objective = normalised_network(mode="train")
    with pytest.raises(ValueError, match="no layer of the model computes with running statistics in this mode"):
        line(objective, objective.gradient(), buffers="recomputed")
    assert line(objective, objective.gradient(), [0.0]).buffers == "kept"


def test_parallel_directions_span_no_plane():
    objective = network()
    gradient = objective.gradient()
    with pytest.raises(ValueError, match="parallel"):
        plane(objective, gradient, V.scale(gradient, -2.0))


def test_the_weights_themselves_can_be_the_direction():
    objective, matrix, center = bowl()
    with torch.no_grad():
        for p in objective.model.parameters():
            p.fill_(1.0)
    found = line(objective, objective.weights, [-1.0, 1.0])
    ends = [float((s - center) @ matrix @ (s - center) / 2) for s in (torch.zeros(6).double(), torch.full((6,), 2.0))]
    assert found.losses == pytest.approx(ends, rel=1e-12)


def test_cut_batches_give_the_same_losses():
    objective = network(sizes=(9, 5))
    cut = Objective(objective.model, cross_entropy, objective.data, mode="eval", micro_batch=2)
    direction = random_direction(objective)
    assert line(cut, direction, LENGTHS).losses == pytest.approx(line(objective, direction, LENGTHS).losses, rel=1e-12)


def test_an_eigenvector_of_the_hessian_goes_in_as_it_comes():
    objective = network()
    pairs = fw.curvature.top_eigenpairs(fw.curvature.hessian(objective), tol=1e-6)
    found = fw.landscape.line(objective, pairs.vectors[0], [-0.02, -0.01, 0.0, 0.01, 0.02])
    curve = fw.landscape.parabola(found)
    assert curve.curvature == pytest.approx(pairs.values[0], rel=1e-4)
    assert found.norm == pytest.approx(1.0, rel=1e-6)


def test_without_a_graph_nothing_is_differentiated_and_transformers_go_the_usual_way():
    objective, seen = network(), []

    def looking(model, batch):
        loss = cross_entropy(model, batch)
        seen.append((loss.requires_grad, torch.backends.mha.get_fastpath_enabled()))
        return loss

    watched = Objective(objective.model, looking, objective.data)
    line(watched, objective.gradient(), [0.0])
    assert set(seen) == {(False, False)}
    assert torch.backends.mha.get_fastpath_enabled()
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("momentum", [0.1, None])
def test_statistics_that_are_recomputed_do_not_hang_on_the_layers_momentum(momentum):
    objective = normalised_network(mode="eval")
    direction = random_direction(objective)
    expected = line(objective, direction, [0.3], buffers="recomputed").losses
    objective.model[1].momentum = momentum
    assert line(objective, direction, [0.3], buffers="recomputed").losses == expected
    assert objective.model[1].momentum == momentum
