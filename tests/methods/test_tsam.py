"""Tilted SAM: its limits, the points at which it looks, and losses that exponentials cannot hold."""

import pytest
import torch
from methods.quadratics import direction, evaluate_around, state_at
from optim.problems import batches, build, flat, loss_of

from flatwise.methods import SAM, TSAM, Evaluation, drive

H = torch.diag(torch.tensor([8.0, 3.0, 1.0, 0.2, -2.0], dtype=torch.float64))
W = torch.tensor([0.3, -1.0, 0.7, 2.0, 0.4], dtype=torch.float64)


def looked(method, step=0):
    """The places of all requests, and the loss and the gradient there."""
    places, evaluate = [], evaluate_around(W, H)

    def record(at):
        answer = evaluate(at)
        places.append((at.displacement()[0].clone(), answer.loss, answer.gradient[0].clone()))
        return answer

    return places, drive(method, record, state_at(method, W, step))[0]


def test_without_a_random_part_one_sample_is_sam():
    found = direction(TSAM(rho=0.3, radius=0.0, samples=1), W, H)
    torch.testing.assert_close(found, direction(SAM(rho=0.3), W, H))


def test_it_looks_at_random_points_at_the_radius_and_a_step_of_rho_uphill_from_there():
    places, _ = looked(TSAM(rho=0.3, radius=2.0, samples=4))
    assert len(places) == 8
    for (start, _, g), (end, _, _) in zip(places[::2], places[1::2]):
        torch.testing.assert_close(start.norm().item(), 0.6)
        torch.testing.assert_close(end - start, 0.3 * g / g.norm())


def test_the_random_points_are_uniform_on_the_sphere():
    """Means and second moments of 2,000 unit vectors in five dimensions, within four standard errors."""
    starts = [
        start / 0.6 for step in range(500) for start, _, _ in looked(TSAM(rho=0.3, radius=2.0, samples=4), step)[0][::2]
    ]
    t = torch.stack(starts)
    n, d = t.shape
    assert t.mean(dim=0).abs().max() < 4 * (1 / d / n) ** 0.5
    moments = t.T @ t / n - torch.eye(d, dtype=t.dtype) / d
    assert moments.abs().max() < 4 * (3 / d / (d + 2) / n) ** 0.5


def test_tilt_zero_is_the_mean_of_the_gradients():
    places, found = looked(TSAM(rho=0.3, tilt=0.0, samples=5))
    torch.testing.assert_close(found, torch.stack([g for _, _, g in places[1::2]]).mean(dim=0))


def test_a_large_tilt_picks_the_sample_of_the_largest_loss():
    places, found = looked(TSAM(rho=0.3, tilt=1e9, samples=5))
    worst = max(places[1::2], key=lambda place: place[1])
    assert torch.equal(found, worst[2])


@pytest.mark.parametrize("tilt", [0.1, 3.0])
def test_the_weights_are_a_softmax_of_the_losses(tilt):
    places, found = looked(TSAM(rho=0.3, tilt=tilt, samples=5))
    weights = torch.softmax(tilt * torch.stack([loss for _, loss, _ in places[1::2]]), dim=0)
    torch.testing.assert_close(found, weights @ torch.stack([g for _, _, g in places[1::2]]))


@pytest.mark.parametrize("offset", [-1e6, -1e3, 0.0, 1e3, 1e6])
def test_losses_of_any_size_do_not_overflow(offset):
    """What is added to all losses does not matter."""
    w, evaluate = W.float(), evaluate_around(W.float(), H.float())

    def shifted(at):
        answer = evaluate(at)
        return Evaluation(answer.loss.double() + offset, answer.gradient)

    method = TSAM(rho=0.3, tilt=50.0, samples=3)
    found = drive(method, shifted, state_at(method, w))[0]
    expected = drive(method, evaluate, state_at(method, w))[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_the_seed_and_the_step_choose_the_points():
    points = lambda seed, step: looked(TSAM(rho=0.3, seed=seed), step)[0][0][0]
    assert torch.equal(points(1, 2), points(1, 2))
    assert not torch.equal(points(1, 2), points(2, 2))
    assert not torch.equal(points(1, 2), points(1, 3))


def test_groups_that_are_not_displaced_count_neither_in_the_radius_nor_in_the_ascent():
    groups = lambda model: [{"params": model[0].parameters(), "rho": 0.0}, {"params": model[2].parameters()}]
    run = build(TSAM(rho=0.3, radius=2.0, samples=1), groups=groups, dtype=torch.float64)
    (batch,), start = batches(1, dtype=torch.float64), [p.detach().clone() for p in run.params]
    places = []
    for p in run.opt.passes():
        places.append([(q - s).detach() for q, s in zip(run.params, start)])
        p.backward(loss_of(run.model, batch))
    assert all(flat(place[:2]).norm() == 0 for place in places)
    torch.testing.assert_close(flat(places[0]).norm().item(), 0.6)
    torch.testing.assert_close((flat(places[1]) - flat(places[0])).norm().item(), 0.3)
