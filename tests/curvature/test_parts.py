"""Blocks of the Hessian, against the blocks of its matrix in float64."""

import pytest
import torch
from curvature.networks import brute_force, problem
from test_objective import cross_entropy, flat, unflat
from torch import nn

from flatwise import Objective, SharpnessAware, methods
from flatwise import vectors as V
from flatwise.curvature import (
    by_group,
    by_layer,
    diagonal,
    hessian,
    hessian_blocks,
    matching,
    restricted,
    spectral_density,
    top_eigenpairs,
    trace,
)


def objective_of(name, dtype=torch.float64):
    model, data, mode = problem(name, dtype)
    return Objective(model, cross_entropy, data, mode=mode)


def coordinates(objective, places):
    """Which coordinates of the flat weights are in a block."""
    return flat([torch.full(t.shape, keep) for t, keep in zip(objective.weights, places, strict=True)])


def block_of(name, objective, places):
    inside = coordinates(objective, places)
    return brute_force(name)[inside][:, inside]


def dense(operator):
    """The matrix of an operator, one product for each coordinate."""
    present = V.present(operator.like)
    columns = []
    for e in torch.eye(operator.size, dtype=present[0].dtype):
        pieces = iter(unflat(e, present))
        columns.append(flat(V.present(operator([None if t is None else next(pieces) for t in operator.like]))))
    return torch.stack(columns, dim=1)


NETWORKS = ["mlp", "tied weights and an unused parameter", "BatchNorm, training mode", "multi-head attention"]


@pytest.mark.parametrize("name", NETWORKS)
def test_the_block_of_every_layer_is_that_of_the_matrix(name):
    objective = objective_of(name)
    parts = by_layer(objective)
    blocks = hessian_blocks(objective, parts)
    assert sum(block.size for block in blocks.values()) == V.size(objective.weights)
    for layer, block in blocks.items():
        expected = block_of(name, objective, parts[layer])
        torch.testing.assert_close(dense(block), expected, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(dense(restricted(hessian(objective), parts[layer])), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("engine", "error"), [("double", 1e-10), ("forward", 1e-10), ("differences", 1e-6), ("one-sided", 1e-4)]
)
def test_blocks_by_every_engine(engine, error):
    objective = objective_of("mlp")
    before = V.clone(objective.weights)
    parts = by_layer(objective)
    for layer, block in hessian_blocks(objective, parts, engine, step=7).items():
        expected = block_of("mlp", objective, parts[layer])
        assert (dense(block) - expected).norm() < error * expected.norm()
        assert (block.engine, block.record.step) == (engine, 7)
    assert all(torch.equal(a, b) for a, b in zip(before, objective.weights, strict=True))
    assert all(p.grad is None and p.requires_grad for p in objective.model.parameters())


@pytest.mark.parametrize("keep_graph", [False, True])
def test_graphs_are_kept_if_asked_for(keep_graph):
    objective = objective_of("mlp")
    parts, calls = by_layer(objective), []
    counted = Objective(objective.model, lambda m, b: calls.append(1) or cross_entropy(m, b), objective.data)
    for layer, block in hessian_blocks(counted, parts, keep_graph=keep_graph).items():
        vector = V.random_like(block.like, 0)
        block(vector)
        calls.clear()
        expected = block_of("mlp", objective, parts[layer]) @ flat(V.present(vector))
        torch.testing.assert_close(flat(V.present(block(vector))), expected, rtol=1e-9, atol=1e-12)
        assert len(calls) == (0 if keep_graph else 2)


def test_reentrant_checkpointing_in_a_block():
    objective = objective_of("reentrant checkpointed block")
    parts = by_layer(objective)
    for layer, block in hessian_blocks(objective, parts).items():
        expected = block_of("reentrant checkpointed block", objective, parts[layer])
        assert block.engine == "differences"
        assert (dense(block) - expected).norm() < 1e-6 * expected.norm()


def test_every_estimator_takes_a_block():
    objective = objective_of("mlp")
    parts = by_layer(objective)
    block, matrix = hessian_blocks(objective, parts)["2"], block_of("mlp", objective, parts["2"])
    values = torch.linalg.eigvalsh(matrix)
    pairs = top_eigenpairs(block, 2, tol=1e-8)
    assert pairs.values == pytest.approx(values.flip(0)[:2].tolist())
    assert [t is None for t in pairs.vectors[0]] == [True, True, False, False]
    assert trace(block, 2 * block.size).value == pytest.approx(float(matrix.trace()))
    density = spectral_density(block, probes=1, steps=block.size)
    assert density.size == block.size == len(matrix)
    assert float(density.nodes.max()) == pytest.approx(float(values[-1]))
    mean, error = diagonal(block, 300)
    z = (flat(V.present(mean)) - matrix.diagonal()) / flat(V.present(error)).clamp(min=1e-9)
    assert float(z.abs().max()) < 5


def test_a_block_is_below_the_whole_and_the_traces_add_up():
    objective = objective_of("mlp")
    blocks = hessian_blocks(objective, by_layer(objective)).values()
    matrix = brute_force("mlp")
    assert sum(trace(b, 2 * b.size).value for b in blocks) == pytest.approx(float(matrix.trace()))
    top = float(torch.linalg.eigvalsh(matrix)[-1])
    assert all(top_eigenpairs(b, tol=1e-4).values[0] <= top * (1 + 1e-9) for b in blocks)


def test_a_block_says_what_it_is():
    objective = objective_of("mlp")
    block = hessian_blocks(objective, {"biases": matching(objective, "*.bias")})["biases"]
    assert block.reason.endswith("; block 'biases'")
    assert block.record.parameters == block.size == 9
    assert block.record.checked


# --- names ------------------------------------------------------------------------------------------------------------


def names(objective, places):
    own = [n for n, p in objective.model.named_parameters() if p.requires_grad]
    return [n for n, keep in zip(own, places, strict=True) if keep]


def test_layers_are_the_modules_that_hold_parameters():
    model, data, _ = problem("tied weights and an unused parameter")
    model.last.bias.requires_grad_(False)
    parts = by_layer(objective := Objective(model, cross_entropy, data))
    assert {layer: names(objective, places) for layer, places in parts.items()} == {
        "": ["unused"],
        "first": ["first.weight", "first.bias"],
        "second": ["second.bias"],
        "last": ["last.weight"],
    }


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (("layer",), lambda n: n.startswith("layer.")),
        (("*.bias",), lambda n: n.endswith(".bias")),
        (("layer.norm?", "last.weight"), lambda n: n.startswith("layer.norm") or n == "last.weight"),
        (("*",), lambda n: True),
    ],
)
def test_parameters_by_their_names(patterns, expected):
    objective = objective_of("transformer layer")
    everything = [n for n, _ in objective.model.named_parameters()]
    assert names(objective, matching(objective, *patterns)) == [n for n in everything if expected(n)]


def test_a_pattern_that_means_nothing_is_refused():
    objective = objective_of("mlp")
    with pytest.raises(ValueError, match=r"'lsat' names no parameter .* 0.weight, 0.bias, 2.weight, 2.bias"):
        matching(objective, "0", "lsat")


@pytest.mark.filterwarnings("ignore:1 of the optimizer.s 4 parameters are not in the model")
@pytest.mark.parametrize("wrapped", [False, True])
def test_the_groups_of_an_optimizer(wrapped):
    objective = objective_of("mlp")
    first, last = objective.model[0], objective.model[2]
    groups = [
        {"params": last.parameters(), "name": "head"},
        {"params": [first.weight]},
        {"params": [nn.Parameter(torch.ones(1))]},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    parts = by_group(objective, SharpnessAware(optimizer, methods.SAM(), objective.model) if wrapped else optimizer)
    assert parts == {"head": [False, False, True, True], "group 1": [True, False, False, False]}
    blocks = hessian_blocks(objective, parts)
    assert {name: block.size for name, block in blocks.items()} == {"head": 21, "group 1": 30}
    torch.testing.assert_close(dense(blocks["head"]), block_of("mlp", objective, parts["head"]), rtol=1e-9, atol=1e-12)


def test_groups_of_one_name_are_told_apart():
    objective = objective_of("mlp")
    groups = [{"params": layer.parameters(), "name": "linear"} for layer in (objective.model[0], objective.model[2])]
    parts = by_group(objective, torch.optim.SGD(groups))
    assert parts == {"linear (group 0)": [True, True, False, False], "linear (group 1)": [False, False, True, True]}


def test_what_has_no_groups_and_what_belongs_to_another_model():
    objective, other = objective_of("mlp"), objective_of("mlp")
    with pytest.raises(TypeError, match="optimizer must have param_groups"):
        by_group(objective, objective.model)
    with pytest.raises(ValueError, match="none of the objective's parameters"):
        by_group(objective, torch.optim.SGD(other.model.parameters()))


@pytest.mark.parametrize(
    ("places", "words"),
    [([True, False], "2 places were given, .* have 4 entries"), ([False] * 4, "the block is empty")],
)
def test_places_that_do_not_fit_are_refused(places, words):
    objective = objective_of("mlp")
    with pytest.raises(ValueError, match=words):
        hessian_blocks(objective, {"part": places})
    with pytest.raises(ValueError, match=words):
        restricted(hessian(objective), places)


# --- the objective behind it ------------------------------------------------------------------------------------------


def test_a_limited_objective_is_a_function_of_some_parameters():
    objective = objective_of("BatchNorm, evaluation mode")
    last = list(objective.model[-1].parameters())
    part = objective.limited(reversed(last))
    assert [id(p) for p in part.parameters()] == [id(p) for p in last]
    torch.testing.assert_close(flat(part.gradient()), flat(objective.gradient()[-2:]))
    kept = V.clone(objective.weights[:-2])
    with part.displaced() as place:
        place.to(V.random_like(part.weights, 0), 0.1)
        assert all(torch.equal(a, b) for a, b in zip(kept, objective.weights[:-2], strict=True))
        assert part.value() == objective.value()
    with pytest.raises(ValueError, match="none of the chosen parameters requires grad"):
        objective.limited([nn.Parameter(torch.ones(1))])
