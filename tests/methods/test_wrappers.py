"""Methods around methods: when they speak, what they pass on, and the step that keeps the gradient's length."""

import copy
import weakref
from dataclasses import dataclass

import pytest
import torch
from methods.quadratics import direction, evaluate_around, state_at
from optim.problems import (
    assert_same,
    batches,
    build,
    count_evaluations,
    every_base,
    flat,
    loss_of,
    noisy_net,
    snapshot,
    step_by_closure,
    step_by_passes,
    train,
)

from flatwise import vectors as V
from flatwise.methods import (
    AESAM,
    GSAM,
    NSO,
    SAM,
    SGD,
    TSAM,
    USAM,
    At,
    Dialogue,
    EigenSAM,
    Interval,
    Late,
    LookSAM,
    MomentumSAM,
    Stable,
    drive,
)

H = torch.diag(torch.tensor([8.0, 3.0, 1.0, 0.2, -2.0], dtype=torch.float64))
W = torch.tensor([0.3, -1.0, 0.7, 2.0, 0.4], dtype=torch.float64)
G = H @ W


def counts(method, steps, net=noisy_net):
    """The evaluations of each step."""
    run = build(method, net=net)
    return [count_evaluations(run, step_by_passes, batch) for batch in batches(steps)]


def trained(method, steps=8):
    torch.manual_seed(4)
    run = build(method, net=noisy_net)
    train(run, batches(steps))
    return flat(run.params)


# --- Stable -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [SAM(rho=0.3), USAM(rho=0.3), GSAM(rho=0.3), TSAM(rho=0.3), NSO(rho=0.3)])
def test_the_direction_is_that_of_the_method_within_at_the_length_of_the_gradient(method):
    found, within = direction(Stable(method), W, H), direction(method, W, H)
    torch.testing.assert_close(found.norm(), G.norm())
    torch.testing.assert_close(found / found.norm(), within / within.norm())


def test_one_evaluation_at_displaced_weights_has_no_gradient_at_the_weights():
    """Momentum SAM evaluates once, elsewhere: one evaluation more tells the length."""
    method, places = Stable(MomentumSAM(rho=0.3)), []
    state, evaluate = state_at(method, W), evaluate_around(W, H)
    state.momentum = [torch.ones_like(W)]
    found = drive(method, lambda at: places.append(at.vector is None) or evaluate(at), state)[0]
    torch.testing.assert_close(found.norm(), G.norm())
    assert places == [False, True]


def test_around_a_method_that_asks_at_the_weights_it_costs_nothing():
    assert counts(Stable(SAM()), 3) == [2, 2, 2]
    assert counts(Stable(TSAM(samples=2)), 3) == [5, 5, 5]


def test_one_evaluation_at_the_weights_is_rescaled_too():
    """Between its SAM steps LookSAM turns and lengthens the gradient after a single evaluation."""
    method = Stable(LookSAM(rho=0.3, every=5))
    state = state_at(method, W)
    state.step, state.vectors["orthogonal_gradient"] = 1, [torch.ones_like(W)]
    found = drive(method, evaluate_around(W, H), state)[0]
    torch.testing.assert_close(found.norm(), G.norm())
    assert not torch.allclose(found, G)


def test_probes_are_not_taken_for_the_gradient():
    """In evaluation mode a gradient is another one under BatchNorm."""
    run = build(Stable(EigenSAM(rho=0.1, every=1, iterations=2)), net=noisy_net)
    (batch,) = batches(1)
    torch.manual_seed(2)
    for p in run.opt.passes():
        p.backward(loss_of(run.model, batch))
        if p.at_weights and not p.is_probe:
            first = flat([q.grad for q in run.params]).norm()
    torch.testing.assert_close(flat([q.grad for q in run.params]).norm(), first)


def test_without_rho_it_is_the_base_optimizer_bitwise():
    assert torch.equal(trained(Stable(SAM(rho=0.0))), trained(SGD()))


def test_the_first_gradient_does_not_live_through_the_second_evaluation():
    """As for SAM itself: the request is the last to hold it."""
    method = Stable(SAM(rho=0.3))
    dialogue = method.passes(state_at(method, W))
    answer = evaluate_around(W, H)(next(dialogue))
    request = dialogue.send(answer)
    gradient = weakref.ref(request.vector[0])
    del answer, request
    assert gradient() is None


# --- Late and Interval ------------------------------------------------------------------------------------------------


def test_before_its_turn_it_is_the_base_optimizer_bitwise():
    assert torch.equal(trained(Late(SAM(rho=0.3), start=8)), trained(SGD()))
    assert not torch.equal(trained(Late(SAM(rho=0.3), start=7)), trained(SGD()))


def test_from_the_first_step_on_it_is_the_method_bitwise():
    assert torch.equal(trained(Late(SAM(rho=0.3), start=0)), trained(SAM(rho=0.3)))
    assert torch.equal(trained(Interval(SAM(rho=0.3), every=1)), trained(SAM(rho=0.3)))


def test_turns_are_counted_by_steps():
    assert counts(Late(SAM(), start=3), 5) == [1, 1, 1, 2, 2]
    assert counts(Late(SAM(), start=1, stop=3), 5) == [1, 2, 2, 1, 1]
    assert counts(Interval(SAM(), every=3), 7) == [2, 1, 1, 2, 1, 1, 2]


def test_wrappers_of_wrappers():
    assert counts(Late(Interval(Stable(SAM()), every=2), start=3), 8) == [1, 1, 1, 1, 2, 1, 2, 1]
    assert counts(Interval(Late(SAM(), start=3), every=2), 6) == [1, 1, 1, 1, 2, 1]


def test_a_skipped_step_is_no_turn():
    run = build(Interval(SAM(rho=0.1), every=3), net=noisy_net)
    (x, y), good = batches(2)
    assert count_evaluations(run, step_by_passes, (x * float("nan"), y)) == 2
    assert count_evaluations(run, step_by_passes, good) == 2


def test_a_tracked_eigenvector_begins_with_the_first_turn():
    """One evaluation to compare the modes, two products: 5; later refreshes come 4 steps after the first one."""
    method = Late(EigenSAM(rho=0.1, every=4, iterations=2), start=3)
    run, zero = build(method), []
    seen = []
    for batch in batches(8):
        seen.append(count_evaluations(run, step_by_passes, batch))
        vector = [entry["flatwise.eigenvector"] for entry in run.opt.state_dict()["state"].values()]
        zero.append(bool(V.norm(vector) == 0))
    assert seen == [1, 1, 1, 5, 2, 2, 2, 4]
    assert zero == [True] * 3 + [False] * 5


def test_a_tracked_eigenvector_is_refreshed_at_the_first_turn_when_it_is_due():
    method = Interval(EigenSAM(rho=0.1, every=4, iterations=2), every=3)
    run = build(method)
    assert [count_evaluations(run, step_by_passes, batch) for batch in batches(13)] == [
        5,
        1,
        1,
        2,
        1,
        1,
        4,
        1,
        1,
        2,
        1,
        1,
        4,
    ]


@pytest.mark.parametrize(
    "method", [Late(EigenSAM(rho=0.1, every=2, iterations=2), start=3), Interval(Stable(SAM(rho=0.1)), every=3)]
)
@every_base
def test_resuming_in_the_midst_continues_bitwise(method, base):
    data = batches(7)
    run = build(method, base)
    saved = [copy.deepcopy((run.model.state_dict(), run.opt.state_dict()))]
    for batch in data:
        step_by_closure(run, batch)
        saved.append(copy.deepcopy((run.model.state_dict(), run.opt.state_dict())))
    for step, (model, opt) in enumerate(saved):
        again = build(method, base)
        again.model.load_state_dict(model)
        again.opt.load_state_dict(opt)
        train(again, data[step:])
        assert_same(snapshot(again), snapshot(run), f"resumed after step {step}")


@pytest.mark.parametrize(
    "method",
    [
        Late(SAM(), start=3),
        Late(SAM(), start=2, stop=5),
        Interval(SAM(ascents=2), every=3),
        Stable(Interval(SAM(), every=2)),
    ],
)
def test_evaluations_of_a_run_are_as_counted(method):
    assert method.evaluations(9) == sum(counts(method, 9))


def test_the_mean_cost_is_as_counted():
    assert Interval(SAM(ascents=2), every=3).cost == pytest.approx(
        sum(counts(Interval(SAM(ascents=2), every=3), 9)) / 9
    )
    assert Late(SAM(), start=3).cost is None
    assert Interval(AESAM()).cost is None


# --- what is passed on ------------------------------------------------------------------------------------------------


def test_a_share_of_the_run_is_answered_with_how_to_count_its_steps():
    with pytest.raises(
        TypeError, match=r"start must be an integer, .* got 0\.75: .* int\(0\.75 \* epochs \* len\(loader\)\)"
    ):
        Late(SAM(), start=0.75)
    with pytest.raises(TypeError, match=r"stop must be an integer, .* for the command line"):
        Late(SAM(), start=3, stop=1.0)
    with pytest.raises(TypeError, match=r"steps must be an integer, .* for the command line"):
        AESAM(steps=0.5)


@pytest.mark.parametrize("wrap", [Stable, Late, Interval])
def test_a_method_without_rho_has_none_within(wrap):
    assert not hasattr(wrap(SGD()), "rho")
    with pytest.raises(ValueError, match="rho_schedule has no effect"):
        build(wrap(SGD()), rho_schedule=lambda step, lr: 1.0)


def test_rho_goes_through():
    method = Late(Interval(Stable(SAM(rho=0.2)), every=2), start=5)
    assert method.rho == 0.2
    assert method.with_rho(0.3) == Late(Interval(Stable(SAM(rho=0.3)), every=2), start=5)


def test_a_schedule_of_rho_goes_through():
    run = build(Stable(Interval(SAM(rho=0.2), every=2)), rho_schedule=lambda step, lr: step / 4)
    lengths, evaluations = [], []
    for batch in batches(4):
        step_by_passes(run, batch)
        lengths.append(run.opt.diagnostics["displacement_norm"])
        evaluations.append(run.opt.diagnostics["evaluations"])
    assert evaluations == [1, 1, 2, 1]
    assert lengths == pytest.approx([0.0, 0.0, 0.1, 0.0], rel=1e-5)


def test_groups_with_a_rho_of_their_own_go_through():
    groups = lambda model: [{"params": model[0].parameters(), "rho": 0.0}, {"params": model[2].parameters()}]
    run = build(Late(SAM(rho=0.2), start=0), groups=groups)
    (batch,), start = batches(1), [p.detach().clone() for p in run.params]
    for p in run.opt.passes():
        moved = [not torch.equal(a, b) for a, b in zip(run.params, start)]
        assert moved == ([False] * 4 if p.at_weights else [False, False, True, True])
        p.backward(loss_of(run.model, batch))


def test_adaptive_methods_stay_adaptive():
    assert Late(AESAM()).adaptive
    with pytest.raises(ValueError, match="adaptive"):
        build(Stable(AESAM()), perturb="local")


def test_needs_go_through():
    with pytest.raises(ValueError, match="momentum"):
        build(Late(MomentumSAM()), lambda params: torch.optim.SGD(params, lr=0.1))


# --- methods of others ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Downhill(Dialogue):
    """Somebody's own: the gradient a little downhill, with a hand in the update."""

    rho: float = 0.1

    @property
    def changes_update(self):
        return True

    def passes(self, state):
        here = yield At.weights()
        there = yield At.along(here.release(), -self.rho)
        return there.release()

    def update(self, state, weights, update):
        return V.scale(update, 0.5)


class Bare:
    """It has what a method must have, but not what wrappers ask for."""

    adaptive = False

    def init(self, vectors):
        return SGD().init(vectors)

    def passes(self, state):
        return SGD().passes(state)


def test_a_method_of_ones_own_can_be_wrapped():
    assert torch.equal(trained(Late(Downhill(), start=0)), trained(Downhill()))
    assert torch.equal(trained(Late(Downhill(), start=8)), trained(SGD()))
    assert not torch.equal(trained(Late(Downhill(), start=4)), trained(SGD()))
    torch.testing.assert_close(direction(Stable(Downhill()), W, H).norm(), G.norm())


@pytest.mark.parametrize("wrap", [Stable, Late, Interval])
def test_what_is_no_dialogue_is_refused(wrap):
    with pytest.raises(TypeError, match=r"derived from flatwise\.methods\.Dialogue"):
        wrap(Bare())
    with pytest.raises(TypeError, match=r"must be an instance, got the class SAM: pass SAM\(\)"):
        wrap(SAM)
    with pytest.raises(TypeError, match="method must be"):
        wrap("sam")


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Late(SAM(), start=-1), ValueError, "start must not be negative"),
        (lambda: Late(SAM(), start=2.5), TypeError, "start must be an integer"),
        (lambda: Late(SAM(), start=5, stop=5), ValueError, "stop must be above start, got start=5, stop=5"),
        (lambda: Interval(SAM(), every=0), ValueError, "every must be at least 1"),
    ],
)
def test_an_argument_out_of_its_range_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_what_it_makes_of_the_update_is_what_moves_the_weights():
    run, plain = build(Late(Downhill(rho=0.0), start=0)), build(SGD())
    (batch,) = batches(1)
    start = flat(run.params)
    step_by_closure(run, batch)
    step_by_closure(plain, batch)
    torch.testing.assert_close(flat(run.params) - start, (flat(plain.params) - start) / 2)


@dataclass(frozen=True)
class InPlace(Downhill):
    """It writes into the update that it is given, and returns it."""

    def update(self, state, weights, update):
        V.scale_(update, 0.5)
        return update


def test_an_update_may_be_changed_in_place():
    assert torch.equal(trained(InPlace()), trained(Downhill()))
