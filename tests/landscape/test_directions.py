"""Random directions: each filter as long as that of the weights."""

import pytest
import torch
from landscape.landscapes import network, normalised_network
from torch import nn

from flatwise import landscape
from flatwise import vectors as V

SHAPES = [(4, 3, 2, 2), (5, 4), (5,), ()]


def drawn(seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in SHAPES]


def filter_norms(t):
    return t.flatten(1).norm(dim=1)


def test_every_filter_has_the_norm_of_the_weights_filter():
    weights = drawn(0)
    found = landscape.filter_normalised(drawn(1), weights)
    for d, w in zip(found[:2], weights[:2], strict=True):
        torch.testing.assert_close(filter_norms(d), filter_norms(w))


def test_a_filter_keeps_its_direction():
    direction = drawn(1)
    found = landscape.filter_normalised(direction, drawn(0))
    for d, n in zip(direction[:2], found[:2], strict=True):
        torch.testing.assert_close(nn.functional.cosine_similarity(d.flatten(1), n.flatten(1)), torch.ones(len(d)))


def test_biases_stay_where_they_are_as_in_the_paper():
    found = landscape.filter_normalised(drawn(1), drawn(0))
    assert [float(t.abs().sum()) for t in found[2:]] == [0, 0]


def test_biases_can_be_scaled_to_the_norm_of_the_weights():
    weights = drawn(0)
    found = landscape.filter_normalised(drawn(1), weights, one_dimensional="scaled")
    torch.testing.assert_close(found[2].norm(), weights[2].norm())
    torch.testing.assert_close(found[3].abs(), weights[3].abs())


def test_zeros_on_either_side_stay_zeros():
    weights, direction = drawn(0), drawn(1)
    weights[0][1], direction[1][2] = 0, 0
    found = landscape.filter_normalised(direction, weights, one_dimensional="scaled")
    assert all(torch.isfinite(t).all() for t in found)
    assert not found[0][1].any()
    assert not found[1][2].any()
    assert found[0][0].any()


def test_none_stays_none():
    assert landscape.filter_normalised([None, *drawn(1)[1:]], drawn(0))[0] is None


@pytest.mark.parametrize(
    ("direction", "options", "words"),
    [
        (drawn(1), {"one_dimensional": "ignore"}, 'must be "zero" or "scaled"'),
        (drawn(1)[:2], {}, "the shapes of the weights"),
        (drawn(1)[::-1], {}, "the shapes of the weights"),
    ],
)
def test_what_does_not_fit_is_refused(direction, options, words):
    with pytest.raises(ValueError, match=words):
        landscape.filter_normalised(direction, drawn(0), **options)


def test_a_random_direction_depends_on_its_seed_alone():
    objective = normalised_network()
    one, same, other = (landscape.random_direction(objective, seed) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert V.cosine(one, other).abs() < 0.5
    for d, w in zip(one, objective.weights, strict=True):
        torch.testing.assert_close(d.norm(), w.norm() if w.ndim > 1 else torch.zeros_like(w.norm()))


def test_a_random_direction_is_as_long_as_the_weights_without_their_biases():
    objective = network()
    matrices = [w for w in objective.weights if w.ndim > 1]
    torch.testing.assert_close(V.norm(landscape.random_direction(objective)), V.norm(matrices))
