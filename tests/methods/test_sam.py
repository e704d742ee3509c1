"""SAM with several ascents, and un-normalised SAM."""

import itertools

import pytest
import torch
from methods.quadratics import direction, displaced_requests, state_at
from optim.problems import batches, build, count_evaluations, flat, step_by_closure, step_by_passes, train

from flatwise import theory
from flatwise.methods import SAM, USAM, ReverseSAM

H = torch.diag(torch.tensor([8.0, 3.0, 1.0, 0.2, -2.0], dtype=torch.float64))
W = torch.tensor([0.3, -1.0, 0.7, 2.0, 0.4], dtype=torch.float64)


def places(method, w=W):
    return displaced_requests(method, w, H, state_at(method, w))[0]


@pytest.mark.parametrize("ascents", [1, 2, 3, 7])
def test_a_step_takes_one_evaluation_more_than_ascents(ascents):
    method = SAM(rho=0.1, ascents=ascents)
    run = build(method)
    assert method.cost == 1 + ascents
    assert [count_evaluations(run, step_by_closure, batch) for batch in batches(2)] == [1 + ascents] * 2


@pytest.mark.parametrize("ascents", [2, 5])
def test_every_ascent_is_as_long_as_the_others_and_follows_its_own_gradient(ascents):
    rho = 0.6
    path = [torch.zeros_like(W), *places(SAM(rho=rho, ascents=ascents))]
    assert len(path) == ascents + 1
    for before, after in itertools.pairwise(path):
        gradient = H @ (W + before)
        torch.testing.assert_close(after - before, rho / ascents * gradient / gradient.norm())


def test_many_ascents_follow_the_gradient_where_it_leads():
    """The end of the path of steepest ascent of length rho, from a fine integration of w' = g / |g|."""
    rho, w = 1.0, W
    for _ in range(20_000):
        g = H @ w
        w = w + rho / 20_000 * g / g.norm()
    errors = [(places(SAM(rho=rho, ascents=n))[-1] - (w - W)).norm().item() for n in (1, 4, 16)]
    assert errors[1] < errors[0] / 2
    assert errors[2] < errors[1] / 2


def test_reverse_sam_descends_in_several_steps():
    first, second = places(ReverseSAM(rho=0.2, ascents=2))
    torch.testing.assert_close(first, -0.1 * H @ W / (H @ W).norm())
    g = H @ (W + first)
    torch.testing.assert_close(second, first - 0.1 * g / g.norm())


@pytest.mark.parametrize("ascents", [0, -1, 1.5, True, None, "2"])
def test_ascents_must_be_a_whole_number_above_zero(ascents):
    with pytest.raises((ValueError, TypeError), match="ascents"):
        SAM(ascents=ascents)


def test_several_ascents_leave_out_groups_without_a_radius():
    groups = lambda model: [
        {"params": list(model[0].parameters()), "rho": 0.0},
        {"params": list(model[2].parameters())},
    ]
    run = build(SAM(rho=0.3, ascents=3), dtype=torch.float64, groups=groups)
    batch = batches(1, dtype=torch.float64)[0]
    before, moved = flat(run.params), []
    for p in run.opt.passes():
        moved.append(flat(run.params) - before)
        p.backward(torch.nn.functional.cross_entropy(run.model(batch[0]), batch[1]))
    size = flat(run.model[0].parameters()).numel()
    assert all(torch.equal(d[:size], torch.zeros(size, dtype=torch.float64)) for d in moved)
    torch.testing.assert_close(moved[1].norm().item(), 0.1)
    assert 0.2 < moved[3].norm() <= 0.3 + 1e-9
    torch.testing.assert_close(run.opt.diagnostics["displacement_norm"], moved[3].norm().item())


def test_one_ascent_and_several_along_one_line_are_the_same():
    """Along an eigenvector the gradient keeps its direction."""
    w = torch.tensor([0.5, 0.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(direction(SAM(rho=0.3, ascents=4), w, H), direction(SAM(rho=0.3), w, H))


def test_un_normalised_sam_is_the_gradient_of_a_penalty_on_a_quadratic():
    """Of f + rho / 2 |grad f|^2, by automatic differentiation."""
    w = W.clone().requires_grad_()
    (g,) = torch.autograd.grad(w @ H @ w / 2, w, create_graph=True)
    (expected,) = torch.autograd.grad(w @ H @ w / 2 + 0.3 / 2 * g @ g, w)
    torch.testing.assert_close(direction(USAM(rho=0.3), W, H), expected)


def test_un_normalised_sam_and_sam_agree_where_the_gradient_has_length_one():
    w = W / (H @ W).norm()
    torch.testing.assert_close(direction(USAM(rho=0.3), w, H), direction(SAM(rho=0.3), w, H))


@pytest.mark.parametrize(("factor", "grows"), [(0.99, False), (1.01, True)])
def test_the_edge_of_un_normalised_sam_is_where_it_diverges(factor, grows):
    lr, rho = 0.1, 0.2
    h = torch.tensor([[factor * float(theory.usam_edge(lr, rho))]], dtype=torch.float64)
    w = torch.tensor([0.37], dtype=torch.float64)
    for _ in range(500):
        w = w - lr * direction(USAM(rho=rho), w, h)
    assert (w.abs().item() > 0.37) == grows


def test_a_displacement_of_un_normalised_sam_is_as_long_as_it_says():
    run = build(USAM(rho=0.2), dtype=torch.float64)
    train(run, batches(2, dtype=torch.float64), step_by_passes)
    told = run.opt.diagnostics
    torch.testing.assert_close(told["displacement_norm"], 0.2 * told["gradient_norm"])
