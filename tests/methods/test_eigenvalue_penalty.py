"""The eigenvalue penalty: what it adds to the gradient on losses whose top eigenvalue and its gradient are known."""

import copy

import pytest
import torch
from methods.quadratics import direction, state_at
from methods.random_losses import evaluate_with
from optim.problems import batches, build, count_evaluations, flat, loss_of, mlp, seeded, step_by_passes
from reference import family_two, transcriptions
from torch import nn

from flatwise.methods import EigenvaluePenalty, drive

H = torch.diag(torch.tensor([8.0, 3.0, 1.0, 0.2, -2.0], dtype=torch.float64))
W = torch.tensor([0.3, -1.0, 0.7, 2.0, 0.4], dtype=torch.float64)
SPECTRUM = torch.tensor([4.0, 2.0, 1.0, -0.5], dtype=torch.float64)


def scaled_bowl(w):
    """`exp(z) x'Hx / 2`: at x = 0 the top eigenvalue is 4 exp(z), and only it can move z."""
    return torch.exp(w[4]) * (SPECTRUM.to(w.dtype) * w[:4] ** 2).sum() / 2


def axis(known, weights):
    """The exact top eigenvector of both losses here."""
    return [[torch.eye(5, dtype=known[0][0].dtype)[0]]]


def on_the_bowl(method, dtype=torch.float64, height=0.3):
    w = torch.tensor([0.0, 0.0, 0.0, 0.0, height], dtype=dtype)
    return drive(method, evaluate_with(scaled_bowl, w), state_at(method, w))[0]


@pytest.mark.parametrize("source", ["ritz", "power", "lanczos", axis])
def test_on_a_quadratic_it_is_the_gradient(source):
    torch.testing.assert_close(direction(EigenvaluePenalty(rho=1.0, source=source), W, H), H @ W, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-2)])
@pytest.mark.parametrize("rho", [0.1, 1.0])
def test_it_descends_the_top_eigenvalue_by_half_of_rho_squared(dtype, tolerance, rho):
    found = on_the_bowl(EigenvaluePenalty(rho=rho, source=axis), dtype)
    expected = rho**2 / 2 * 4 * torch.exp(torch.tensor(0.3, dtype=dtype))
    torch.testing.assert_close(found[4], expected, rtol=tolerance, atol=0)
    assert found[:4].abs().max() <= tolerance * expected


def test_the_sign_of_the_vector_does_not_matter():
    flipped = lambda known, weights: [[-t for t in axis(known, weights)[0]]]
    found = on_the_bowl(EigenvaluePenalty(source=flipped))
    torch.testing.assert_close(found, on_the_bowl(EigenvaluePenalty(source=axis)), rtol=1e-6, atol=1e-12)


def test_without_a_known_eigenvector_it_is_the_gradient():
    nothing = lambda known, weights: known
    run = build(EigenvaluePenalty(rho=0.5, source=nothing), dtype=torch.float64)
    (batch,) = batches(1, dtype=torch.float64)
    expected = torch.autograd.grad(loss_of(run.model, batch), run.params)
    for p in run.opt.passes():
        p.backward(loss_of(run.model, batch))
    assert torch.equal(flat([p.grad for p in run.params]), flat(expected))


def test_on_a_network_penalised_training_ends_with_a_smaller_top_eigenvalue():
    """Than the same steps without it, at a larger loss: that is the bargain."""
    (batch,) = batches(1, dtype=torch.float64)

    def end(rho):
        run = build(
            EigenvaluePenalty(rho=rho, every=1), lambda params: torch.optim.SGD(params, lr=0.1), dtype=torch.float64
        )
        for _ in range(60):
            step_by_passes(run, batch)
        h = family_two.hessian_matrix(lambda: loss_of(run.model, batch), run.params)
        return torch.linalg.eigvalsh((h + h.T) / 2)[-1].item(), loss_of(run.model, batch).item()

    (value, loss), (penalised, larger) = end(0.0), end(0.7)
    assert penalised < 0.8 * value
    assert larger > loss


def test_it_takes_three_evaluations_and_the_products_of_a_refresh():
    run = build(EigenvaluePenalty(every=4, iterations=2))
    assert [count_evaluations(run, step_by_passes, batch) for batch in batches(6)] == [6, 3, 3, 3, 5, 3]


def two_norms(dtype):
    layers = lambda: nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3)
    )
    return seeded(layers).to(dtype)


def slope(model, batch, mode, vector=None, length=1e-4):
    """The gradient of `v'Hv` in a mode, with `v` held fixed: by default the top eigenvector, and so of the top eigenvalue.

    A difference of exact products along `v`: torch has no third derivative of BatchNorm.
    """
    model = copy.deepcopy(model).train(mode == "train")
    params = list(model.parameters())
    loss = lambda: loss_of(model, batch)
    v = transcriptions.top_eigenvector(loss, params)[1] if vector is None else vector
    parts = family_two.parts_of(v, params)
    products = []
    for sign in (1, -1):
        with transcriptions.moved(params, [sign * length * t for t in parts]):
            products.append(transcriptions.hessian_matrix(loss, params) @ v)
    return (products[0] - products[1]) / (2 * length)


def penalty_part(net):
    """A network as it was, a batch, what is added to the gradient, and the vector tracked; running statistics have settled."""
    run = build(EigenvaluePenalty(rho=1.0, iterations=25), net=net, dtype=torch.float64)
    (batch,) = batches(1, dtype=torch.float64)
    for _ in range(100):
        run.model(batch[0])
    before = copy.deepcopy(run.model)
    g = flat(torch.autograd.grad(loss_of(run.model, batch), run.params))
    for p in run.opt.passes():
        p.backward(loss_of(run.model, batch))
    added = flat([p.grad for p in run.params]) - g
    run.opt.step()
    state = run.opt.state_dict()["state"]
    return before, batch, added, flat([state[i]["flatwise.eigenvector"] for i in range(len(run.params))])


def cosines(net):
    """With the training curvature's slope along the vector tracked, and with the slopes of the top eigenvalues of both modes."""
    model, batch, added, v = penalty_part(net)
    slopes = [slope(model, batch, "train", v), slope(model, batch, "train"), slope(model, batch, "eval")]
    return [torch.nn.functional.cosine_similarity(added, other, dim=0).item() for other in slopes]


def test_without_batchnorm_it_descends_the_top_eigenvalue_of_either_mode():
    assert min(cosines(mlp)) > 0.999


def test_with_batchnorm_it_descends_the_training_curvature_along_the_vector_of_evaluation_mode():
    """Which is the gradient of the top eigenvalue of neither mode."""
    found, *eigenvalues = cosines(two_norms)
    assert found > 0.999
    assert max(eigenvalues) < 0.95
