"""Paths and planes through checkpoints: the losses there are those of the checkpoints."""

import json
import math

import pytest
import torch
from landscape.landscapes import (
    as_vector,
    assert_untouched,
    bowl,
    everything,
    loss_with,
    network,
    normalised_network,
)
from test_objective import Tied, convolutional, cross_entropy, mlp
from torch import nn

from flatwise import Objective
from flatwise import vectors as V
from flatwise.landscape import path, plane_through


def checkpoints(count, make=mlp, shape=(5,)):
    """State dicts of networks of different seeds, with buffers of different data."""
    return [network(make, shape, seed=10 + i).model.state_dict() for i in range(count)]


def normalised_checkpoints(count):
    states = checkpoints(count, convolutional, (2, 4, 4))
    for i, state in enumerate(states):
        state["1.running_var"] = state["1.running_var"] * (1 + i)
    return states


def test_the_ends_of_a_path_have_the_losses_of_the_checkpoints():
    objective = network()
    a, b = checkpoints(2)
    found = path(objective, a, b, names=("SGD", "SAM"))
    losses = dict(zip(found.lengths, found.losses, strict=True))
    assert [losses[0.0], losses[1.0]] == [loss_with(objective, a), loss_with(objective, b)]
    assert [mark.loss for mark in found.marks] == [losses[0.0], losses[1.0]]
    assert [(mark.label, mark.place) for mark in found.marks] == [("SGD", (0.0,)), ("SAM", (1.0,))]
    assert (found.name, found.at, found.buffers) == ("from SGD to SAM", "SGD", "none")


def test_a_path_through_a_bowl_and_beyond_it():
    objective, matrix, center = bowl()
    a, b = torch.randn(2, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    found = path(objective, as_vector(a), as_vector(b), [-0.5, 0.25, 2.0])
    for t, loss in zip(found.lengths, found.losses, strict=True):
        w = a + t * (b - a) - center
        assert loss == pytest.approx(float(w @ matrix @ w / 2), rel=1e-12)
    assert found.norm == pytest.approx(float((b - a).norm()))


def test_a_plane_through_three_places_in_a_bowl():
    objective, matrix, center = bowl()
    a, b, c = torch.randn(3, 6, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    found = plane_through(objective, *map(as_vector, (a, b, c)), points=4, margin=0.5)
    corners = torch.tensor([mark.place for mark in found.marks], dtype=torch.float64)
    torch.testing.assert_close(torch.pdist(corners), torch.pdist(torch.stack([a, b, c])))
    right = (b - a) / (b - a).norm()
    up = (c - a) - ((c - a) @ right) * right
    up = up / up.norm()
    for y, row in zip(found.ys, found.losses, strict=True):
        for x, loss in zip(found.xs, row, strict=True):
            w = a + x * right + y * up - center
            assert loss == pytest.approx(float(w @ matrix @ w / 2), rel=1e-10)
    width = max(x for x, _ in corners.tolist()) - min(x for x, _ in corners.tolist())
    assert found.xs[-1] - found.xs[0] == pytest.approx(2 * width)
    for mark, corner in zip(found.marks, (a, b, c), strict=True):
        assert mark.loss == pytest.approx(float((corner - center) @ matrix @ (corner - center) / 2), rel=1e-12)


def test_statistics_are_recomputed_by_default_and_the_checkpoints_keep_their_own():
    objective = normalised_network(mode="eval")
    a, b = normalised_checkpoints(2)
    found = path(objective, a, b, [0.0, 0.5, 1.0])
    assert found.buffers == "recomputed"
    assert [mark.loss for mark in found.marks] == [loss_with(objective, a), loss_with(objective, b)]
    for t, loss in zip(found.lengths, found.losses, strict=True):
        objective.model.load_state_dict(mixed(a, b, t))
        torch.optim.swa_utils.update_bn([objective.data[0]] * 7 + [objective.data[1]] * 4, objective.model)
        assert loss == pytest.approx(objective.value().item(), rel=1e-6)


def mixed(a, b, t):
    return {name: torch.lerp(a[name], b[name], t) if a[name].is_floating_point() else a[name] for name in a}


def test_interpolated_buffers_are_those_of_the_checkpoints_at_both_ends():
    objective = normalised_network(mode="eval")
    a, b = normalised_checkpoints(2)
    found = path(objective, a, b, [0.0, 0.25, 1.0], buffers="interpolated")
    expected = [loss_with(objective, mixed(a, b, t)) for t in (0.0, 0.25, 1.0)]
    assert found.losses == pytest.approx(expected, rel=1e-12)
    assert found.losses[0] == found.marks[0].loss
    assert found.losses[2] == found.marks[1].loss


def test_interpolated_buffers_stop_at_the_ends():
    objective = normalised_network(mode="eval")
    a, b = normalised_checkpoints(2)
    b["1.running_var"] = a["1.running_var"] * 10  # ten times as far, and the variance would be negative
    found = path(objective, a, b, [-2.0], buffers="interpolated")
    beyond = mixed(a, b, -2.0) | {name: a[name] for name in a if "running" in name}
    assert found.losses == pytest.approx([loss_with(objective, beyond)], rel=1e-12)


def test_kept_buffers_are_those_of_the_model():
    objective = normalised_network(mode="eval")
    a, b = normalised_checkpoints(2)
    found = path(objective, a, b, [0.5], buffers="kept")
    own = {name: t for name, t in objective.model.state_dict().items() if "running" in name}
    assert found.losses == pytest.approx([loss_with(objective, mixed(a, b, 0.5) | own)], rel=1e-12)


def test_a_plane_through_checkpoints_with_buffers():
    objective = normalised_network(mode="eval")
    states = normalised_checkpoints(3)
    before = everything(objective.model)
    by_default = plane_through(objective, *states, points=2, margin=0.0)
    assert by_default.buffers == "recomputed"
    found = plane_through(objective, *states, points=2, margin=0.0, buffers="interpolated", names=("a", "b", "c"))
    assert_untouched(objective.model, before)
    assert [mark.loss for mark in found.marks] == [loss_with(objective, state) for state in states]
    nearest = min((0, 1), key=lambda i: abs(found.xs[i]))
    if found.xs[nearest] == found.ys[0] == 0.0:
        assert found.losses[0][nearest] == pytest.approx(found.marks[0].loss, rel=1e-12)
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False)) == found.to_dict()


def test_in_training_mode_statistics_play_no_part():
    objective = normalised_network(mode="train")
    found = path(objective, *normalised_checkpoints(2), [0.0, 1.0])
    assert found.buffers == "interpolated"
    assert found.losses == [mark.loss for mark in found.marks]


def test_vectors_bring_no_buffers():
    objective = normalised_network(mode="current")
    objective.model.train()
    here = objective.weights
    found = path(objective, here, V.scale(here, 1.5), [0.0])
    assert (found.buffers, found.losses) == ("kept", [objective.value().item()])
    with pytest.raises(ValueError, match="only state dicts hold buffers"):
        path(objective, here, V.scale(here, 1.5), buffers="interpolated")


def test_none_in_a_vector_means_as_in_the_model():
    objective = network()
    here = objective.weights
    there = [None, *(2 * w for w in here[1:])]
    found = path(objective, here, there, [1.0])
    with objective.displaced() as place:
        place.at(there)
        assert found.losses == [objective.value().item()]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
@pytest.mark.parametrize("buffers", ["interpolated", "recomputed"])
def test_a_path_that_is_interrupted_changes_nothing(error, buffers):
    states = normalised_checkpoints(2)
    objective = normalised_network(mode="eval")
    before = everything(objective.model)

    def stop(done, total):
        if done == 4:
            raise error

    with pytest.raises(error):
        path(objective, *states, buffers=buffers, progress=stop)
    assert_untouched(objective.model, before)


def test_the_barrier_is_the_height_above_the_straight_line():
    objective = network()
    found = path(objective, *checkpoints(2))
    losses = dict(zip(found.lengths, found.losses, strict=True))
    above = [loss - (1 - t) * losses[0.0] - t * losses[1.0] for t, loss in losses.items() if 0 <= t <= 1]
    assert found.barrier == pytest.approx(max(above))
    convex = path(bowl()[0], as_vector(torch.zeros(6).double()), as_vector(torch.ones(6).double()))
    assert convex.barrier == pytest.approx(0.0, abs=1e-9)


def test_a_path_through_infinity_has_an_infinite_barrier():
    model = nn.Linear(1, 1, bias=False)
    objective = Objective(model, lambda model, batch: (model.weight**-2).sum(), [torch.zeros(1)])
    found = path(objective, [torch.ones(1, 1)], [-torch.ones(1, 1)])
    assert found.barrier == math.inf


def test_a_path_without_its_ends_has_no_barrier():
    with pytest.raises(ValueError, match="hold 0 and 1"):
        _ = path(network(), *checkpoints(2), [0.5]).barrier


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_checkpoints_of_wrapped_models_are_understood(prefix):
    objective = network()
    a, b = checkpoints(2)
    wrapped = {prefix + name: t for name, t in a.items()}
    assert path(objective, wrapped, b, [0.0]).losses == path(objective, a, b, [0.0]).losses


def test_frozen_parameters_must_be_those_of_the_model():
    objective = network()
    a, b = checkpoints(2)
    objective.model[0].bias.requires_grad_(False)
    with pytest.raises(ValueError, match=r"differs from the model in '0\.bias', which does not move"):
        path(objective, a, b)
    frozen = {"0.bias": objective.model[0].bias.detach()}
    assert path(objective, a | frozen, b | frozen, [0.0]).losses == [loss_with(objective, a | frozen)]


def test_an_objective_of_some_parameters_moves_these_alone():
    objective = network()
    a, b = checkpoints(2)
    objective.model.load_state_dict(a)
    last = objective.limited(objective.model[2].parameters())
    mixture = a | {name: b[name] for name in ("2.weight", "2.bias")}
    assert path(last, a, mixture, [1.0]).losses == [loss_with(objective, mixture)]
    with pytest.raises(ValueError, match=r"differs from the model in '0\.weight'"):
        path(last, a, b)


def without(state, name):
    return {key: t for key, t in state.items() if key != name}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: without(s, "2.bias"), r"checkpoint 'b' is not one of this model: it lacks '2\.bias'"),
        (lambda s: s | {"extra": torch.ones(1)}, "holds 'extra', which the model does not know"),
        (lambda s: s | {"2.bias": torch.ones(4)}, r"has shape \(4,\) there and \(3,\) here"),
        (lambda s: [torch.ones(2)], "1 entries"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(change, words):
    a, b = checkpoints(2)
    with pytest.raises(ValueError, match=words):
        path(network(), a, change(b))


def test_a_model_is_no_checkpoint():
    with pytest.raises(TypeError, match="must be a state dict or a list of tensors, got Sequential"):
        path(network(), checkpoints(1)[0], network().model)


def test_checkpoints_that_span_nothing_are_refused():
    objective = network()
    a, b = checkpoints(2)
    with pytest.raises(ValueError, match="have the same weights"):
        path(objective, a, a)
    for third in (a, mixed(a, b, 0.3)):
        with pytest.raises(ValueError, match="lie on one line"):
            plane_through(objective, a, b, third)
    with pytest.raises(ValueError, match="lie on one line"):
        plane_through(objective, a, a, b)
    with pytest.raises(ValueError, match="points must be at least 2"):
        plane_through(objective, *checkpoints(3), points=1)


def test_statistics_of_batches_are_weighted_by_samples():
    objective = normalised_network(mode="eval")
    a, b = normalised_checkpoints(2)
    found = path(objective, a, b, [0.5]).losses
    swapped = Objective(objective.model, cross_entropy, objective.data[::-1], mode="eval")
    assert path(swapped, a, b, [0.5]).losses == pytest.approx(found, rel=1e-10)


def test_checkpoints_with_tied_weights():
    torch.manual_seed(0)
    objective, states = network(Tied), [network(Tied, seed=seed).model.state_dict() for seed in (1, 2)]
    found = path(objective, *states, [0.0, 1.0])
    assert found.losses == [loss_with(objective, state) for state in states]
