"""The sources of the tracked eigenvector: what each finds, when, what is remembered, and resumes in the midst of a search."""

import copy

import pytest
import torch
from methods.cases import fixed_space
from methods.quadratics import evaluate_around, state_at
from optim.problems import (
    assert_same,
    batches,
    build,
    count_evaluations,
    every_base,
    flat,
    mlp,
    noisy_net,
    norm_net,
    snapshot,
    step_by_closure,
    step_by_passes,
    train,
)

from flatwise.methods import XSAM, EigenSAM, EigenvaluePenalty, Interval, Late, drive

W = torch.linspace(-1, 1, 6, dtype=torch.float64)


def matrix(spectrum, seed=0):
    """A symmetric matrix with the given eigenvalues in random directions, and its eigenvectors as columns."""
    n, generator = len(spectrum), torch.Generator().manual_seed(seed)
    q = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))[0]
    return q @ torch.diag(torch.tensor(spectrum, dtype=torch.float64)) @ q.T, q


def tracked(source, h, steps, every=1, iterations=5, w=W):
    """The vector and the notes after each of some steps at the same weights."""
    method = EigenSAM(rho=0.01, every=every, iterations=iterations, source=source)
    state, vectors = state_at(method, w), []
    for step in range(steps):
        state.step = step
        drive(method, evaluate_around(w, h), state)
        vectors.append(state.vectors["eigenvector"][0])
    return vectors, state


PLAIN = [9.0, 4.0, 1.0, 0.5, -1.0, 0.1]
NEGATIVE = [3.0, 2.0, 0.5, 0.1, -1.0, -10.0]


@pytest.mark.parametrize("source", ["ritz", "power", "lanczos"])
def test_on_a_positive_spectrum_all_sources_find_the_top_eigenvector(source):
    h, q = matrix(PLAIN)
    vectors, state = tracked(source, h, 40)
    assert (vectors[-1] @ q[:, 0]).abs() > 1 - 1e-6
    torch.testing.assert_close(vectors[-1].norm().item(), 1.0)
    assert state.numbers["value"] == pytest.approx(9.0, rel=1e-4)
    assert state.numbers["residual"] < 0.02


@pytest.mark.parametrize(("source", "place"), [("ritz", 0), ("lanczos", 0), ("power", -1)])
def test_a_larger_negative_eigenvalue_is_followed_by_the_power_iteration_alone(source, place):
    h, q = matrix(NEGATIVE)
    vectors, state = tracked(source, h, 60)
    assert (vectors[-1] @ q[:, place]).abs() > 0.99
    assert state.numbers["value"] == pytest.approx(NEGATIVE[place], rel=0.05)


@pytest.mark.parametrize("spectrum", [PLAIN, NEGATIVE], ids=["plain", "negative"])
def test_with_many_products_the_power_iteration_ends_where_it_does_from_noise(spectrum):
    """As in the official code, which starts at noise, and later at the vector known alone."""
    h, _ = matrix(spectrum)
    v = torch.randn(6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for _ in range(60):
        v = h @ v / (h @ v).norm()
    for found in tracked("power", h, 2, iterations=60)[0]:
        torch.testing.assert_close(found * torch.sign(found @ v), v, rtol=0, atol=1e-6)


def test_the_residual_of_the_power_iteration_is_that_of_its_last_product():
    """`|H v - (v'Hv) v|` of the vector before the last one, which is what is known."""
    h, _ = matrix(PLAIN)
    vectors, state = tracked("power", h, 3, iterations=1)
    v = vectors[-2] + 0.1 * h @ W / (h @ W).norm()
    v = v / v.norm()
    value = v @ h @ v
    assert state.numbers["value"] == pytest.approx(value.item(), rel=1e-6)
    assert state.numbers["residual"] == pytest.approx((h @ v - value * v).norm().item(), rel=1e-4)


# --- a search that is spread over steps -------------------------------------------------------------------------------


def test_a_spread_search_takes_one_product_a_step_and_ends_with_the_last():
    """Alike modes: one evaluation to find that out. Then products at steps 0 to 2, 6 to 8 ..."""
    run = build(EigenSAM(every=6, iterations=3, source="lanczos"))
    evaluations, known = [], []
    for batch in batches(10):
        evaluations.append(count_evaluations(run, step_by_passes, batch))
        vector = flat([entry["flatwise.eigenvector"] for entry in run.opt.state_dict()["state"].values()])
        known.append(bool(vector.norm() > 0))
    assert evaluations == [4, 3, 3, 2, 2, 2, 3, 3, 3, 2]
    assert known == [False, False] + [True] * 8


def test_under_batch_norm_each_product_takes_the_gradient_in_evaluation_mode_too():
    run = build(EigenSAM(every=6, iterations=3, source="lanczos"), net=norm_net)
    assert [count_evaluations(run, step_by_passes, batch) for batch in batches(8)] == [4, 4, 4, 2, 2, 2, 4, 4]


def test_a_refresh_that_is_due_waits_for_the_one_before():
    """Otherwise a search longer than the interval would never end."""
    h, q = matrix(PLAIN)
    vectors, _ = tracked("lanczos", h, 40, every=2, iterations=5)
    assert [bool(v.norm() > 0) for v in vectors[:6]] == [False] * 4 + [True] * 2
    assert (vectors[-1] @ q[:, 0]).abs() > 1 - 1e-6


def test_within_an_interval_a_spread_search_goes_on_at_its_turns():
    run = build(Interval(EigenSAM(every=4, iterations=3, source="lanczos"), every=2))
    assert [count_evaluations(run, step_by_passes, batch) for batch in batches(9)] == [4, 1, 3, 1, 3, 1, 3, 1, 3]


@pytest.mark.parametrize("method", [EigenSAM, XSAM, EigenvaluePenalty])
@pytest.mark.parametrize(
    "settings",
    [{"source": "power", "iterations": 2}, {"source": "lanczos", "iterations": 2}, {"source": fixed_space}],
    ids=["power", "lanczos", "function"],
)
@every_base
def test_resuming_after_any_step_continues_bitwise(method, settings, base):
    """Also between two products of a spread search."""
    tracking = method(rho=0.1, every=3, **settings)
    data = batches(6)
    run = build(tracking, base)
    saved = [copy.deepcopy((run.model.state_dict(), run.opt.state_dict()))]
    for batch in data:
        step_by_closure(run, batch)
        saved.append(copy.deepcopy((run.model.state_dict(), run.opt.state_dict())))
    for step, (model, opt) in enumerate(saved):
        again = build(tracking, base)
        again.model.load_state_dict(model)
        again.opt.load_state_dict(opt)
        train(again, data[step:])
        assert_same(snapshot(again), snapshot(run), f"resumed after step {step}")


def frozen_head(model):
    return [{"params": model[0].parameters(), "rho": 0.0}, {"params": model[2].parameters()}]


@pytest.mark.parametrize("source", ["ritz", "power", "lanczos"])
def test_a_checkpoint_holds_vectors_also_of_parameters_that_are_not_displaced(source):
    """They have zeros, at any point of a search."""
    method = EigenSAM(rho=0.1, every=4, iterations=3, source=source)
    run = build(method, groups=frozen_head)
    for batch in batches(5):
        step_by_closure(run, batch)
        again = build(method, groups=frozen_head)
        again.opt.load_state_dict(copy.deepcopy(run.opt.state_dict()))
        assert_same(again.opt.state_dict()["state"], run.opt.state_dict()["state"])
    vector = [entry["flatwise.eigenvector"] for entry in run.opt.state_dict()["state"].values()]
    assert flat(vector[:2]).norm() == 0
    torch.testing.assert_close(flat(vector[2:]).norm().item(), 1.0)


def test_a_skipped_step_takes_no_product_with_it():
    run = build(EigenSAM(every=6, iterations=3, source="lanczos"))
    good, (x, y) = batches(2)
    step_by_closure(run, good)
    before = without_counts(run)
    step_by_closure(run, (x * float("nan"), y))
    assert_same(without_counts(run), before)


def without_counts(run):
    """The method's memory, without the number of skipped steps."""
    entries = copy.deepcopy(run.opt.state_dict()["state"])
    return [{name: value for name, value in entry.items() if name != "flatwise.skipped"} for entry in entries.values()]


# --- functions --------------------------------------------------------------------------------------------------------


def test_a_function_is_asked_when_it_is_time_and_its_vector_is_made_a_unit_vector():
    asked = []

    def source(known, weights):
        asked.append((torch.is_grad_enabled(), flat(known[0]).norm().item(), [id(w) for w in weights]))
        return [[torch.full_like(w, 3.0) for w in weights]]

    run = build(EigenSAM(rho=0.1, every=3, source=source), net=noisy_net)
    assert [count_evaluations(run, step_by_passes, batch) for batch in batches(5)] == [2] * 5
    assert [(grad, pytest.approx(norm)) for grad, norm, _ in asked] == [(True, 0.0), (True, 1.0)]
    assert asked[0][2] == [id(p) for p in run.params]
    vector = flat([entry["flatwise.eigenvector"] for entry in run.opt.state_dict()["state"].values()])
    torch.testing.assert_close(vector, torch.full_like(vector, len(vector) ** -0.5))


def test_late_it_is_asked_at_the_first_turn():
    asked = []
    source = lambda known, weights: asked.append(1) or fixed_space(known, weights)
    run = build(Late(EigenSAM(rho=0.1, every=3, source=source), start=2))
    seen = []
    for batch in batches(7):
        step_by_closure(run, batch)
        seen.append(len(asked))
    assert seen == [0, 0, 1, 1, 1, 2, 2]


def test_a_parameter_that_the_function_leaves_out_has_zeros():
    run = build(EigenSAM(rho=0.1, source=lambda known, weights: [[torch.ones_like(weights[0]), *[None] * 3]]))
    train(run, batches(2))
    state = run.opt.state_dict()["state"]
    assert [bool(state[i]["flatwise.eigenvector"].norm() > 0) for i in range(4)] == [True, False, False, False]


@pytest.mark.parametrize("method", [EigenSAM, XSAM, EigenvaluePenalty])
def test_an_unknown_source_is_answered_with_those_that_there_are(method):
    with pytest.raises(ValueError, match=r"source must be one of 'ritz', .* or a function") as raised:
        method(source="lancos")
    assert ("'free'" in str(raised.value)) == (method is EigenSAM)


@pytest.mark.parametrize("method", [EigenSAM, XSAM, EigenvaluePenalty])
def test_a_function_has_no_number_of_iterations(method):
    with pytest.raises(ValueError, match="iterations has no effect with a function as source"):
        method(source=fixed_space, iterations=3)


def test_more_vectors_than_one_are_refused_and_the_weights_are_as_before():
    run = build(EigenSAM(source=lambda known, weights: [*known, *known]))
    before = flat(mlp().parameters())
    with pytest.raises(ValueError, match="source must return as many vectors as it is given, 1, got 2"):
        step_by_closure(run, batches(1)[0])
    assert torch.equal(flat(run.params), before)


# --- the cost ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "cost"),
    [
        (EigenSAM(every=5, iterations=2, source="power"), 2.4),
        (EigenSAM(every=5, iterations=2, source="lanczos"), 2.4),
        (EigenSAM(every=2, iterations=5, source="lanczos"), 3.0),
        (EigenSAM(every=5, source=fixed_space), 2.0),
        (EigenvaluePenalty(every=5, iterations=2), 3.4),
        (EigenvaluePenalty(every=5, source=fixed_space), 3.0),
        (XSAM(every=5, iterations=2, source="lanczos"), 2.4),
    ],
)
def test_the_mean_cost_is_as_claimed(method, cost):
    """Counted over ten steps, without the one evaluation that compares the modes in the first."""
    run = build(method)
    counted = sum(count_evaluations(run, step_by_passes, batch) for batch in batches(10))
    assert method.cost == pytest.approx(cost)
    assert (counted - (0 if callable(method.source) else 1)) / 10 == pytest.approx(cost)
