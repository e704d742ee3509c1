"""What a method may look at beside the weights: names and momentum, shown to those that need them and kept by nobody."""

from dataclasses import dataclass, field

import pytest
import torch
from methods.cases import EVERY, VARIANTS, every_way
from optim.problems import BASES, batches, build, every_base, flat, loss_of, mlp, seeded, step_by_passes, train, weights
from torch import nn

import flatwise as fw
from flatwise import methods

NAMES = ["0.weight", "0.bias", "2.weight", "2.bias"]


@dataclass(frozen=True)
class Looking(methods.SGD):
    """The base optimizer alone; notes the views of every step."""

    needs: frozenset = frozenset()
    seen: list = field(default_factory=list, compare=False)

    def passes(self, state):
        self.seen.append((list(state.names), list(state.momentum), list(state.weights)))
        return (yield from super().passes(state))


def looking(*needs):
    return Looking(frozenset(needs))


def test_who_needs_no_view_is_shown_none():
    run = build(looking())
    train(run, batches(3), step_by_passes)
    assert all((names, momentum) == ([], []) for names, momentum, _ in run.opt.method.seen)


@pytest.mark.parametrize(("base", "entry"), [("sgd", "momentum_buffer"), ("adamw", "exp_avg")])
def test_the_momentum_is_the_bases_own_and_none_before_the_first_step(base, entry):
    run = build(looking("momentum"), base)
    train(run, batches(3), step_by_passes)
    first, *later = [momentum for _, momentum, _ in run.opt.method.seen]
    assert first == [None] * 4
    for momentum in later:
        assert all(m is run.base.state[p][entry] for m, p in zip(momentum, run.params))


class Partly(nn.Module):
    """A frozen layer in front of one that is trained."""

    def __init__(self):
        super().__init__()
        self.frozen, self.trained = nn.Linear(6, 6).requires_grad_(False), nn.Linear(6, 3)

    def forward(self, x):
        return self.trained(self.frozen(x))


def test_views_are_in_the_order_of_the_parameters_with_none_for_the_frozen():
    run = build(looking("names", "momentum"), net=lambda dtype: seeded(Partly))
    train(run, batches(2), step_by_passes)
    _, momentum, shown = run.opt.method.seen[-1]
    assert shown[:2] == momentum[:2] == [None, None]
    assert all(m is run.base.state[p]["momentum_buffer"] for m, p in zip(momentum[2:], run.params[2:]))
    assert all(w is p for w, p in zip(shown[2:], run.params[2:]))


def test_names_are_those_in_the_model():
    run = build(looking("names"))
    step_by_passes(run, batches(1)[0])
    assert run.opt.method.seen[0][0] == NAMES


def test_names_do_not_tell_of_compilation():
    run = build(looking("names"))
    run.opt.model = torch.compile(run.model, backend="eager")
    step_by_passes(run, batches(1)[0])
    assert run.opt.method.seen[0][0] == NAMES


def test_names_follow_the_groups():
    run = build(
        looking("names"), groups=lambda model: [{"params": model[2].parameters()}, {"params": model[0].parameters()}]
    )
    step_by_passes(run, batches(1)[0])
    assert run.opt.method.seen[0][0] == [*NAMES[2:], *NAMES[:2]]


@every_base
def test_no_view_is_in_a_checkpoint_nor_kept_from_step_to_step(base):
    seeing, blind = build(looking("names", "momentum"), base), build(methods.SGD(), base)
    for run in (seeing, blind):
        train(run, batches(3), step_by_passes)
    for mine, others in zip(*(run.opt.state_dict()["state"].values() for run in (seeing, blind))):
        assert list(mine) == list(others)
    kept = seeing.opt._memory
    assert [kept.weights, kept.names, kept.momentum, kept.perturbed] == [[], [], [], []]


def test_a_base_without_momentum_is_refused_where_momentum_is_needed():
    for make in (lambda params: torch.optim.SGD(params, lr=0.1), lambda params: torch.optim.Adagrad(params)):
        with pytest.raises(ValueError, match="momentum"):
            build(methods.MomentumSAM(), make)


def test_without_a_model_names_are_refused():
    model = mlp()
    with pytest.raises(ValueError, match=r"model=\.\.\."):
        fw.SharpnessAware(BASES["sgd"](model.parameters()), methods.ASAM())


def refused(case):
    """Whether a step on gradients that are there is not enough for the first step."""
    return {"loss", "momentum"} & case.method.needs or case.method.evaluations(1) != 1


@every_way
def test_gradients_alone_are_enough_only_for_methods_that_look_at_nothing_else(case):
    run = build(case.method)
    before = weights(run)
    loss_of(run.model, batches(1)[0]).backward()
    if refused(case):
        with pytest.raises(RuntimeError, match="pass"):
            run.opt.step()
        assert torch.equal(flat(run.params), flat(before))
    else:
        run.opt.step()
        assert not torch.equal(flat(run.params), flat(before))


def test_of_all_methods_these_need_a_view():
    needed = {case.name: set(case.method.needs) for case in [*EVERY, *VARIANTS] if case.method.needs}
    assert needed == {
        "momentum-sam": {"momentum"},
        "asam, weights alone": {"names"},
        "prgd": {"loss"},
        "esam, half the samples": {"samples"},
    }
