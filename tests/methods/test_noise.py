"""Random displacements: their distribution, what they depend on, and what they leave alone."""

import pytest
import torch

from flatwise.methods import State
from flatwise.methods.noise import gaussian

LIKE = [torch.zeros(40, 5, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)]


def drawn(seed=0, step=0, count=1, like=LIKE, perturbed=()):
    return list(gaussian(State(step=step, weights=like, perturbed=perturbed), seed, count))


def first(**place):
    return drawn(**place)[0][0]


def test_it_is_standard_normal():
    """Mean, variance and fourth moment over 200,000 numbers, within four standard errors."""
    numbers = torch.cat([first(step=step).reshape(-1) for step in range(1000)])
    n = len(numbers)
    assert abs(numbers.mean()) < 4 / n**0.5
    assert abs((numbers**2).mean() - 1) < 4 * (2 / n) ** 0.5
    assert abs((numbers**4).mean() - 3) < 4 * (96 / n) ** 0.5


def test_samples_steps_and_seeds_are_independent():
    """Correlations of vectors of 200 numbers are within four standard errors."""
    draws = [first(seed=seed, step=step) for seed in (0, 1, 2**31, 2**40) for step in (0, 1, 2**20, 2**33)]
    draws += [vector[0] for vector in drawn(count=4)[1:]]
    flat = torch.stack([t.reshape(-1) for t in draws])
    correlations = torch.corrcoef(flat) - torch.eye(len(flat), dtype=torch.float64)
    assert correlations.abs().max() < 4 / 200**0.5


@pytest.mark.parametrize("place", [{}, {"seed": 3}, {"step": 9}, {"seed": 3, "step": 9}])
def test_the_same_place_gives_the_same_numbers_however_many_are_asked_for(place):
    assert torch.equal(drawn(count=5, **place)[2][1], drawn(count=3, **place)[2][1])


def test_torchs_random_state_stays():
    before = torch.get_rng_state()
    first()
    assert torch.equal(torch.get_rng_state(), before)


def test_a_parameter_that_is_not_displaced_has_none_and_the_others_keep_theirs():
    (vector,) = drawn(perturbed=[False, True])
    assert vector[0] is None
    assert torch.equal(vector[1], drawn()[0][1])
