"""Methods with a hand in the update: what they are shown, what becomes of what they return, and when they are not asked."""

from dataclasses import dataclass, field

import pytest
import torch
from optim.problems import (
    batches,
    build,
    every_base,
    flat,
    loss_of,
    mlp,
    seeded,
    step_by_closure,
    step_by_passes,
    weights,
)
from torch import nn

from flatwise import methods
from flatwise import vectors as V


@dataclass(frozen=True)
class Halving(methods.SAM):
    """SAM, and half of every update; notes what it was shown."""

    shown: list = field(default_factory=list, compare=False)

    changes_update = True

    def init(self, vectors):
        return methods.State(numbers={"updates": 0.0})

    def update(self, state, weights, update):
        state.numbers["updates"] += 1
        self.shown.append((state.step, V.clone(weights), V.clone(update)))
        return V.scale(update, 0.5)


@dataclass(frozen=True)
class Refusing(methods.SGD):
    changes_update = True

    def update(self, state, weights, update):
        raise KeyError("not today")


def directions(run):
    return [p.grad.clone() for p in run.params]


def scaled_step(run, batch):
    step_by_passes(run, batch, torch.amp.GradScaler("cpu", init_scale=2.0**10))


@pytest.mark.parametrize("step", [step_by_closure, step_by_passes, scaled_step])
@every_base
def test_the_weights_are_those_before_plus_what_it_returns(base, step):
    run = build(Halving(), base)
    for number, batch in enumerate(batches(5)):
        before = weights(run)
        step(run, batch)
        assert len(run.opt.method.shown) == number + 1
        count, shown, update = run.opt.method.shown[-1]
        assert count == number
        assert torch.equal(flat(shown), flat(before))
        assert torch.equal(flat(run.params), flat([w + 0.5 * u for w, u in zip(before, update)]))


@every_base
def test_it_is_shown_the_change_that_the_base_made(base):
    """With momentum and weight decay: the base's own state goes on as if its update had been taken whole."""
    run, whole = build(Halving(), base, dtype=torch.float64), build(methods.SAM(), base, dtype=torch.float64)
    for batch in batches(5, dtype=torch.float64):
        before = weights(run)
        whole.model.load_state_dict(run.model.state_dict())
        step_by_passes(run, batch)
        step_by_passes(whole, batch)
        change = [after - old for after, old in zip(weights(whole), before)]
        assert torch.equal(flat(run.opt.method.shown[-1][2]), flat(change))
    for mine, others in zip(run.base.state.values(), whole.base.state.values()):
        assert all(torch.equal(torch.as_tensor(mine[name]), torch.as_tensor(others[name])) for name in others)


def test_it_is_not_asked_in_a_step_that_is_skipped():
    run = build(Halving())
    (batch,) = batches(1)
    before = weights(run)
    for step in (step_by_closure, step_by_passes, scaled_step):
        step(run, (batch[0] * torch.inf, batch[1]))
    assert run.opt.method.shown == []
    assert torch.equal(flat(run.params), flat(before))
    assert run.opt.state_dict()["state"][0]["flatwise.updates"] == 0


def test_what_it_writes_into_the_state_is_kept():
    run = build(Halving())
    for batch in batches(3):
        step_by_passes(run, batch)
    assert run.opt.state_dict()["state"][0]["flatwise.updates"] == 3


def test_it_is_asked_after_a_step_on_gradients_that_are_there():
    run = build(methods.Dominant(methods.SGD(), k=1, subspace=lambda known, w: [V.unit(V.clone(w))]))
    before = weights(run)
    loss_of(run.model, batches(1)[0]).backward()
    run.opt.step()
    moved = flat(run.params) - flat(before)
    assert torch.nn.functional.cosine_similarity(moved, flat(before), dim=0).abs() > 0.999


@dataclass(frozen=True)
class Agreeing(methods.SAM):
    changes_update = True


@every_base
def test_an_update_that_is_returned_as_it_was_is_the_bases_own_bitwise(base):
    agreeing, plain = build(Agreeing(), base), build(methods.SAM(), base)
    for batch in batches(5):
        step_by_passes(agreeing, batch)
        step_by_passes(plain, batch)
    assert torch.equal(flat(agreeing.params), flat(plain.params))


def test_where_it_raises_the_weights_are_those_before():
    run = build(Refusing())
    before = weights(run)
    with pytest.raises(KeyError, match="not today"):
        step_by_passes(run, batches(1)[0])
    assert torch.equal(flat(run.params), flat(before))
    assert run.opt.state_dict()["state"][0]["flatwise.step"] == 0


class Idle(nn.Module):
    """With a layer that is frozen and one that nobody asks."""

    def __init__(self):
        super().__init__()
        self.asked, self.frozen, self.idle = mlp(), nn.Linear(3, 3).requires_grad_(False), nn.Linear(3, 3)

    def forward(self, x):
        return self.frozen(self.asked(x))


@every_base
def test_parameters_without_gradient_take_no_part(base):
    """A leap multiplies all weights that are trained, and leaves the others."""
    run = build(methods.PRGD(every=1, growth=1.5), base, lambda dtype: seeded(Idle))
    asked, resting = (
        flat(run.model.asked.parameters()),
        flat([*run.model.frozen.parameters(), *run.model.idle.parameters()]),
    )
    step_by_passes(run, batches(1)[0])
    torch.testing.assert_close(flat(run.model.asked.parameters()), 1.5 * asked)
    assert torch.equal(flat([*run.model.frozen.parameters(), *run.model.idle.parameters()]), resting)
