"""The claim about tiny subspaces: what its branches do, against dense eigenvectors."""

import math

import pytest
import torch

from flatwise import vectors as V
from flatwise.experiments.claims.listed import CLAIMS
from flatwise.experiments.claims.subspaces import METHODS, TINY_SUBSPACES, Study, fall, measure

PRESET = CLAIMS["tiny-subspaces"].preset("smoke") | {"widths": [3], "tol": 1e-4, "every": 1}


def study(method="SGD", **settings):
    return Study(PRESET | settings, METHODS[method](PRESET), seed=100)


def basis(made, k):
    """The top eigenvectors of the whole Hessian [D, k], dense."""
    parameters = made.objective.parameters()
    shapes = [p.shape for p in parameters]
    inputs, targets = made.objective.data[0]

    def loss(flat):
        pieces = flat.split([s.numel() for s in shapes])
        named = dict(zip(dict(made.model.named_parameters()), map(torch.Tensor.view, pieces, shapes), strict=True))
        outputs = torch.func.functional_call(made.model, named, (inputs,))
        return (outputs - torch.nn.functional.one_hot(targets, 10)).square().sum(1).mean() / 2

    matrix = torch.autograd.functional.hessian(loss, torch.cat([p.detach().flatten() for p in parameters]))
    return torch.linalg.eigh(matrix.double()).eigenvectors[:, -k:]


def flat(vector):
    return torch.cat([t.flatten() for t in vector]).double()


def test_the_share_is_that_of_the_projection_on_dense_eigenvectors():
    made = study()
    space, before = basis(made, 2), V.clone(made.weights)
    share = made.share_of_step(made._optimizer(made.method), 0)
    update = flat(V.add(made.weights, before, -1.0))
    assert share == pytest.approx(float((space.T @ update).norm() / update.norm()), abs=1e-3)


@pytest.mark.parametrize("method", ["SGD", "SAM"])
def test_the_parts_in_and_off_the_space_make_the_whole_update(method):
    updates = {}
    for branch in ("all", "dominant", "bulk"):
        made = study(method)
        updates[branch] = flat(made.step(made._optimizer(made._projected(branch)), 0))
    assert torch.allclose(updates["dominant"] + updates["bulk"], updates["all"], atol=1e-7)
    space = basis(study(), 2)
    assert torch.allclose(updates["dominant"], space @ (space.T @ updates["all"]), atol=1e-3 * updates["all"].norm())


def test_the_switch_comes_with_alignment_or_at_the_latest():
    assert study(aligned=0.0).align(id) == 1
    assert study(aligned=1.0, latest=3).align(id) == 3


def test_all_branches_begin_at_the_same_weights(tmp_path):
    told = []
    found = measure(PRESET, {"method": "SGD"}, 100, tmp_path, lambda done, total: told.append((done, total)))
    assert len({found[branch]["losses"][0] for branch in ("all", "dominant", "bulk")}) == 1
    assert told == sorted(told)
    assert told[-1] == (PRESET["latest"] + 3 * PRESET["steps"],) * 2


def test_the_fall_is_that_of_the_logarithm_to_the_mean_at_the_end():
    assert fall({"losses": [math.e, 9.0, 9.0, 9.0, 1.0]}) == pytest.approx(1.0)
    losses = [8.0] * 8 + [3.0, 1.0]
    assert fall({"losses": losses}) == pytest.approx(math.log(4))


def test_where_whole_updates_do_not_learn_there_is_no_share_of_their_fall():
    """A loss that rises with all three would else pass for one that falls as before."""
    rising = {"losses": [1.0, 2.0], "shares": [0.8], "steps": [0, 1]}
    cell = {"all": rising, "dominant": rising, "bulk": rising}
    outcome = TINY_SUBSPACES.judge({"cells": [{"method": "SGD"}]}, [[cell]])
    falls = [c.values[0] for c in outcome.criteria if "fall" in c.name]
    assert len(falls) == 2
    assert all(math.isnan(value) for value in falls)
