"""Jacobians from layer to layer: against explicit ones, decomposed whole, in float64."""

import math

import numpy as np
import pytest
import torch
from curvature.networks import problem
from curvature.singular_values import explicit
from test_objective import batches, cross_entropy
from torch import nn

from flatwise import Objective
from flatwise.curvature import layer_jacobians


def deep(width=8, layers=3, dtype=torch.float64):
    torch.manual_seed(0)
    hidden = [nn.Sequential(nn.Linear(width, width), nn.Tanh()) for _ in range(layers)]
    return nn.Sequential(nn.Linear(5, width), *hidden, nn.Linear(width, 3)).to(dtype)


def convolutional():
    torch.manual_seed(0)
    first = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True)
    return nn.Sequential(*first, nn.Conv2d(4, 3, 2), nn.GELU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(3, 3)).double()


CASES = {
    "mlp": (deep, (5,), ["0", "1", "2", "3", "4"], "current"),
    "convolutions": (convolutional, (2, 6, 6), ["0", "3", "7"], "eval"),
}
every_case = pytest.mark.parametrize("name", CASES)


def case(name, dtype=torch.float64):
    make, shape, layers, mode = CASES[name]
    return Objective(make().to(dtype), cross_entropy, batches(4, 3, shape=shape, dtype=dtype), mode=mode), layers


@every_case
@pytest.mark.parametrize("from_input", [False, True])
def test_singular_values_and_vectors_are_those_of_the_explicit_jacobians(name, from_input):
    objective, layers = case(name)
    found = layer_jacobians(objective, layers, 2, from_input=from_input, tol=1e-11)
    matrices = explicit(objective, layers, from_input)
    assert found.layers == ["input"] * from_input + layers
    assert len(found.values) == len(matrices) == len(found.layers) - 1
    for i, matrix in enumerate(matrices):
        left, values, right = torch.linalg.svd(matrix)
        torch.testing.assert_close(found.values[i], values[:, :2], rtol=1e-9, atol=1e-12)
        u, v = found.left[i].flatten(2), found.right[i].flatten(2)
        torch.testing.assert_close((u[:, 0] * left[:, :, 0]).sum(1).abs(), torch.ones(7).double(), rtol=1e-7, atol=0)
        torch.testing.assert_close((v[:, 0] * right[:, 0]).sum(1).abs(), torch.ones(7).double(), rtol=1e-7, atol=0)
        torch.testing.assert_close(v @ matrix.transpose(1, 2), found.values[i][..., None] * u, rtol=0, atol=1e-10)
        back = torch.linalg.vector_norm(u @ matrix - found.values[i][..., None] * v, dim=2)
        assert float((back - found.residuals[i]).abs().max()) < 1e-10
    shapes = [vectors.shape[2:] for vectors in found.right[1:]]
    assert [vectors.shape[2:] for vectors in found.left[:-1]] == shapes


@every_case
def test_cosines_are_those_of_left_with_next_right_vectors(name):
    objective, layers = case(name)
    found = layer_jacobians(objective, layers, 2, tol=1e-11)
    matrices = explicit(objective, layers, False)
    for i, layer in enumerate(layers[1:-1]):
        left, right = torch.linalg.svd(matrices[i])[0][:, :, 0], torch.linalg.svd(matrices[i + 1])[2][:, 0]
        expected = (left * right).sum(1).abs()
        torch.testing.assert_close(found.cosines(layer)[:, 0, 0], expected, rtol=1e-6, atol=1e-8)
        alignment = found.alignment(layer)
        assert alignment.value == pytest.approx(float(expected.mean()))
        assert alignment.standard_error == pytest.approx(float(expected.std() / math.sqrt(7)))
        assert alignment.record is found.record


def test_looser_tolerances_are_kept_and_cost_less():
    objective, layers = case("convolutions", torch.float32)
    loose, tight = (layer_jacobians(objective, layers, tol=tol) for tol in (1e-2, 1e-5))
    assert loose.products < tight.products
    for found, tol in ((loose, 1e-2), (tight, 1e-5)):
        for values, residuals in zip(found.values, found.residuals, strict=True):
            assert float((residuals / values).max()) <= tol
    for a, b in zip(loose.values, tight.values, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=0)


def test_a_multiple_singular_value_is_found_as_often_as_it_is_there():
    model = nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 6, bias=False), nn.Linear(6, 3)).double()
    with torch.no_grad():
        model[1].weight.copy_(torch.diag(torch.tensor([3.0, 3.0, 3.0, 1.0, 0.5, 0.0])))
    found = layer_jacobians(Objective(model, cross_entropy, batches(4)), ["0", "1"], 4, tol=1e-8)
    torch.testing.assert_close(found.values[0], torch.tensor([[3.0, 3.0, 3.0, 1.0]]).double().expand(4, 4))


def test_layers_that_are_aligned_and_layers_that_are_not():
    """W2 W1 with W1 = s u v', W2 = t w x': the cosine is that of u with x."""
    u, x = torch.eye(6, dtype=torch.float64)[:2]
    v, w, both = torch.ones(5).double(), torch.ones(3).double(), (u + x) / math.sqrt(2)
    for into, cosine in ((u, 1.0), (x, 0.0), (both, math.sqrt(0.5))):
        model = nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 3)).double()
        with torch.no_grad():
            model[0].weight.copy_(torch.outer(u, v))
            model[1].weight.copy_(torch.outer(w, into))
        found = layer_jacobians(Objective(model, cross_entropy, batches(4)), ["0", "1"], from_input=True, tol=1e-10)
        assert found.alignment("0").value == pytest.approx(cosine, abs=1e-8)


def test_a_dead_layer_is_zero_and_no_nan():
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)).double()
    with torch.no_grad():
        model[0].bias.fill_(-100)
    found = layer_jacobians(Objective(model, cross_entropy, batches(4)), ["0", "1", "2"])
    assert float(found.values[0].abs().max()) == float(found.left[0].abs().max()) == 0
    assert found.alignment("1").value == 0
    assert float(found.residuals[0].max()) == 0


@pytest.mark.parametrize("size", [1, 2, 7, 300])
def test_chance_is_the_mean_of_random_directions(size):
    model = nn.Sequential(nn.Linear(5, 3), nn.Linear(3, size), nn.Linear(size, 3)).double()
    found = layer_jacobians(Objective(model, cross_entropy, batches(2)), ["0", "1", "2"])
    noise = np.random.default_rng(0).standard_normal((20000, size))
    cosines = np.abs(noise[:, 0]) / np.linalg.norm(noise, axis=1)
    assert found.chance("1") == pytest.approx(cosines.mean(), rel=0.03)


def test_of_a_subset_of_the_samples():
    objective, layers = case("mlp")
    whole, some = (layer_jacobians(o, layers, tol=1e-9) for o in (objective, objective.subset(4)))
    assert some.values[1].shape == (4, 1)
    nearest = (some.values[1] - whole.values[1].T).abs().amin(1)
    assert float(nearest.max()) < 1e-8


def test_batches_may_be_cut():
    objective, layers = case("mlp")
    cut = Objective(objective.model, cross_entropy, objective.data, micro_batch=2)
    whole, parts = layer_jacobians(objective, layers, tol=1e-9), layer_jacobians(cut, layers, tol=1e-9)
    torch.testing.assert_close(parts.values, whole.values, rtol=1e-8, atol=0)
    assert parts.products > whole.products


def test_attention_and_layers_that_return_tuples():
    model, data, mode = problem("multi-head attention")
    found = layer_jacobians(
        Objective(model, cross_entropy, data, mode), ["attention", "last"], tol=1e-9, from_input=True
    )
    matrices = explicit(Objective(model, cross_entropy, data), ["attention", "last"], True)
    for values, matrix in zip(found.values, matrices, strict=True):
        torch.testing.assert_close(values[:, 0], torch.linalg.matrix_norm(matrix, 2), rtol=1e-8, atol=0)


def test_measuring_changes_nothing_and_is_recorded():
    objective, layers = case("convolutions")
    before, random = {k: v.clone() for k, v in objective.model.state_dict().items()}, torch.get_rng_state()
    found = layer_jacobians(objective, layers, step=11)
    assert (found.record.step, found.record.mode) == (11, "eval")
    with pytest.raises(ValueError, match="k must be at most 3") as raised:
        layer_jacobians(objective, layers, 4)
    assert all(torch.equal(v, before[k]) for k, v in objective.model.state_dict().items())
    assert all(p.grad is None for p in objective.model.parameters())
    assert torch.equal(random, torch.get_rng_state())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in objective.model.modules())
    assert objective.model.training
    assert raised.traceback  # held until here: nothing waits for it to go away
    again = layer_jacobians(objective, layers)
    assert all(torch.equal(a, b) for a, b in zip(found.left, again.left, strict=True))


def test_what_has_not_converged_is_told():
    objective, layers = case("convolutions")
    with pytest.warns(UserWarning, match=r"a relative residual of .* is left, wanted 1e-09; raise max_basis or tol"):
        layer_jacobians(objective, layers, max_basis=2, tol=1e-9)


# --- what is refused --------------------------------------------------------------------------------------------------


class Tangled(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.unused, self.mixing, self.last = (nn.Linear(5, 5) for _ in range(4))

    def forward(self, x):
        h = self.first(x)
        h = h - h.mean(0) + self.mixing(self.first(x))
        return self.last(h)[:, :3]


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        (["0", "nine"], "layer 'nine' is no module of this model"),
        (["0", "0"], "layer '0' appears twice"),
        (["0"], "name two layers at least"),
        (["1", "0"], "layer '0' ran where '1' was to run"),
    ],
)
def test_layers_that_are_no_chain(layers, words):
    with pytest.raises(ValueError, match=words):
        layer_jacobians(case("mlp")[0], layers)


def test_what_has_no_jacobian_of_a_sample():
    objective = Objective(Tangled().double(), cross_entropy, batches(4))
    with pytest.raises(ValueError, match="layer 'unused' did not run"):
        layer_jacobians(objective, ["mixing", "last", "unused"])
    with pytest.raises(ValueError, match="layer 'first' ran where 'mixing' was to run"):
        layer_jacobians(objective, ["first", "mixing"])
    model, data, _ = problem("BatchNorm, training mode")
    with pytest.raises(
        ValueError, match=r'BatchNorm in training mode\?\), so there is no Jacobian .*mode="eval" has one'
    ):
        layer_jacobians(Objective(model, cross_entropy, data, mode="train"), ["0", "1"])
    parallel = nn.ModuleDict({"a": nn.Linear(5, 3), "b": nn.Linear(5, 3)}).double()
    both = Objective(parallel, lambda m, x: (m["a"](x[0]) + m["b"](x[0])).mean(), batches(4))
    with pytest.raises(ValueError, match="a -> b: the one does not depend on the other"):
        layer_jacobians(both, ["a", "b"])


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"k": 4}, ValueError, "k must be at most 3, the smaller size of 3 -> 4, got 4"),
        ({"k": 0}, ValueError, "k must be at least 1"),
        ({"max_basis": 1, "k": 2}, ValueError, "max_basis must be at least 2"),
        ({"tol": 0.0}, ValueError, "tol must be a finite number > 0"),
        ({"layers": "0"}, TypeError, "layers must be a list of names"),
        ({"k": 1.5}, TypeError, "k must be an integer"),
    ],
)
def test_bad_arguments_are_refused(change, error, words):
    objective, layers = case("mlp")
    with pytest.raises(error, match=words):
        layer_jacobians(**{"objective": objective, "layers": layers} | change)


def test_tokens_have_no_derivative():
    model = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 3)).double()
    data = [(torch.randint(9, (4, 3)), torch.randint(3, (4,)))]
    objective = Objective(model, cross_entropy, data)
    with pytest.raises(TypeError, match=r"'input' has torch.int64 of shape \(4, 3\); name another"):
        layer_jacobians(objective, ["0", "2"], from_input=True)
    assert layer_jacobians(objective, ["0", "2"]).values[0].shape == (4, 1)


def test_layers_in_the_middle_of_nothing():
    found = layer_jacobians(*case("mlp"))
    for layer in ("0", "4", "input"):
        with pytest.raises(ValueError, match=f"'{layer}' is not between two Jacobians; these are: 1, 2, 3"):
            found.cosines(layer)
