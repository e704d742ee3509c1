"""The free eigenvector: what it learns from a step's own gradients, and from probes where evaluation mode differs."""

import pytest
import torch
from methods.quadratics import evaluate_around, state_at
from methods.test_eigen_sam import matrix
from torch import nn

import flatwise as fw
from flatwise import vectors as V
from flatwise.methods import EigenSAM, Evaluation, drive

RHO, ALPHA = 0.1, 0.5
H, Q = matrix([9.0, 5.0, 1.0, 0.5, 0.1, -1.0])
OTHER, OTHER_Q = matrix([7.0, 3.0, 1.0, 0.5, 0.1, -2.0], seed=1)


def free(rho=RHO, alpha=ALPHA):
    return EigenSAM(rho=rho, alpha=alpha, source="free")


def places(steps, seed=0):
    """Weights that have nothing to do with each other, so that gradients point everywhere."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(steps, len(H), generator=generator, dtype=torch.float64)


def modes(w, h, in_evaluation):
    """The loss with another Hessian where it is only measured, and how often it was asked."""
    train, evaluation, asked = evaluate_around(w, h), evaluate_around(w, in_evaluation), []

    def evaluate(at):
        asked.append(at)
        return (evaluation if at.probe else train)(at)

    return evaluate, asked


def followed(weights, h, in_evaluation, method=None):
    """The state after a dialogue at each of the weights, and the requests of each."""
    method = method or free()
    state, requests = state_at(method, weights[0]), []
    for step, w in enumerate(weights):
        state.weights, state.step = [w], step
        evaluate, asked = modes(w, h, in_evaluation)
        drive(method, evaluate, state)
        requests.append(asked)
    return state, requests


def alignment(state, vector):
    return abs(float(state.vectors["eigenvector"][0] @ vector))


def test_on_a_quadratic_it_finds_the_top_eigenvector_without_another_evaluation():
    state, requests = followed(places(80), H, H)
    assert alignment(state, Q[:, 0]) > 0.97
    assert [len(asked) for asked in requests] == [3] + [2] * 79  # the first step looks whether evaluation mode differs


def test_where_evaluation_mode_differs_it_finds_that_ones_with_a_probe_every_fifth_step():
    state, requests = followed(torch.ones(120, 6, dtype=torch.float64), H, OTHER)
    assert alignment(state, OTHER_Q[:, 0]) > 0.97
    assert [sum(at.probe for at in asked) for asked in requests] == [int(step % 5 == 0) for step in range(120)]
    assert abs(float(OTHER_Q[:, 0] @ Q[:, 0])) < 0.9  # another vector than that of training mode


def test_probes_are_by_turns_on_either_side_which_takes_the_gradients_difference_out():
    """The gradients of the modes differ by a constant: the average of both sides does not see it."""
    w, shift = torch.ones(6, dtype=torch.float64), 0.02 * Q[:, 3]
    method, sides = free(), []
    state = state_at(method, w)

    def evaluate(at):
        answer = evaluate_around(w, H)(at)
        if at.probe and at.vector is not None:
            sides.append(float(at.length) > 0)
        return Evaluation(answer.loss, [answer.gradient[0] + shift]) if at.probe else answer

    found = []
    for step in range(101):
        state.step = step
        drive(method, evaluate, state)
        found.append(state.vectors["eigenvector"][0])
    assert sides == [i % 2 == 0 for i in range(20)]
    middle = found[95] + found[100]
    torch.testing.assert_close(abs(float(middle @ Q[:, 0] / middle.norm())), 1.0, atol=1e-3, rtol=0)


def slow(gradients_of, weights, rho=RHO, alpha=ALPHA, memory=0.9):
    """The first form as in its definition: d = (g_a - g) / |e|; h <- memory h + (1 - memory) sign(<d, v>) d; v = h / |h|."""
    average, v, found = torch.zeros_like(weights[0]), torch.zeros_like(weights[0]), []
    for w in weights:
        g = gradients_of(w)
        u = g / g.norm()
        e = rho * (u + alpha * torch.sign(g @ v) * (v - (v @ u) * u))
        there = gradients_of(w + e)
        d = (there - g) / e.norm()
        average = memory * average + (1 - memory) * (-d if d @ v < 0 else d)
        v = average / average.norm()
        found.append((there, v))
    return found


def test_directions_and_vectors_are_those_of_a_slow_transcription():
    weights, method = places(50, seed=2), free()
    state = state_at(method, weights[0])
    for step, (w, (direction, v)) in enumerate(zip(weights, slow(lambda w: H @ w, weights), strict=True)):
        state.weights, state.step = [w], step
        torch.testing.assert_close(drive(method, evaluate_around(w, H), state)[0], direction)
        torch.testing.assert_close(state.vectors["eigenvector"][0], v)


def test_a_zero_gradient_leaves_the_vector_as_it_was():
    state, _ = followed(places(20), H, H)
    before = state.vectors["eigenvector"][0]
    drive(free(), evaluate_around(torch.zeros(6, dtype=torch.float64), H), state)
    torch.testing.assert_close(state.vectors["eigenvector"][0], before)


def test_alpha_zero_is_sam_and_learns_nothing():
    method = free(alpha=0.0)
    state = state_at(method, places(1)[0])
    drive(method, evaluate_around(places(1)[0], H), state)
    assert not state.vectors["eigenvector"][0].any()
    assert method.cost == 2.0


@pytest.mark.parametrize("settings", [{"every": 10}, {"iterations": 3}])
def test_settings_of_refreshes_are_refused(settings):
    with pytest.raises(ValueError, match="no effect with source 'free'"):
        EigenSAM(source="free", **settings)


def test_other_methods_with_an_eigenvector_do_not_know_it():
    for method in (fw.methods.XSAM, fw.methods.EigenvaluePenalty):
        with pytest.raises(ValueError, match="source must be one of"):
            method(source="free")


def networks():
    plain = [nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)]
    return {"plain": nn.Sequential(*plain), "batchnorm": nn.Sequential(plain[0], nn.BatchNorm1d(8), *plain[1:])}


def trained(model, steps, samples=64):
    """The optimizer after so many steps on some of the data each, the evaluations of each step, and the data."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(64, 5, generator=generator), torch.randint(3, (64,), generator=generator)
    optimizer = fw.SharpnessAware(torch.optim.SGD(model.parameters(), lr=0.05), free(), model=model)
    counts = []
    for _ in range(steps):
        some = torch.randperm(64, generator=generator)[:samples]
        for p in optimizer.passes():
            p.backward(nn.functional.cross_entropy(model(x[some]), y[some]))
        optimizer.step()
        counts.append(int(optimizer.diagnostics["evaluations"]))
    return optimizer, counts, (x, y)


@pytest.mark.parametrize(("name", "expected"), [("plain", [3, 2, 2, 2, 2, 2, 2]), ("batchnorm", [3, 2, 2, 2, 2, 3, 2])])
def test_the_evaluations_of_a_network_with_and_without_batchnorm(name, expected):
    torch.manual_seed(0)
    assert trained(networks()[name], 7)[1] == expected


@pytest.mark.parametrize(("name", "samples"), [("plain", 32), ("batchnorm", 64)])
def test_along_it_the_curvature_of_a_network_is_close_to_the_largest(name, samples):
    """Noise of batches helps the average; probes under BatchNorm it hinders, where the eigenvalue is as small as here."""
    torch.manual_seed(0)
    model = networks()[name]
    optimizer, _, data = trained(model, 150, samples)
    loss = fw.Objective(model, lambda m, batch: nn.functional.cross_entropy(m(batch[0]), batch[1]), [data], mode="eval")
    hessian = fw.curvature.hessian(loss)
    entries = optimizer.state_dict()["state"]
    tracked = [entries[i]["flatwise.eigenvector"] for i in range(len(loss.weights))]
    along, largest = V.dot(tracked, hessian(tracked)), fw.curvature.top_eigenpairs(hessian).values[0]
    assert float(along) > 0.85 * float(largest)


def test_groups_without_rho_take_no_part():
    torch.manual_seed(0)
    model = networks()["batchnorm"]
    groups = [{"params": model[0].parameters(), "rho": 0.0}, {"params": model[1:].parameters()}]
    optimizer = fw.SharpnessAware(torch.optim.SGD(groups, lr=0.05), free(), model=model)
    x, y = torch.randn(32, 5), torch.randint(3, (32,))
    for _ in range(7):
        for p in optimizer.passes():
            p.backward(nn.functional.cross_entropy(model(x), y))
        optimizer.step()
    entries = optimizer.state_dict()["state"]
    sizes = [float(entries[i]["flatwise.eigenvector"].norm()) for i in range(6)]
    assert sizes[:2] == [0.0, 0.0]
    assert all(size > 0 for size in sizes[2:5])
