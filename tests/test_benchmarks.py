"""The arithmetic of the benchmarks of curvature: counts, references, choices, shares."""

import copy

import pytest
import torch
from torch import nn

pytest.importorskip("scipy")

from benchmarks.curvature import cost
from benchmarks.curvature.contenders import CURVLINOPS, flatwise
from benchmarks.curvature.counting import Operations, TooMuch, gradient, operations_of, passes
from benchmarks.curvature.page import page
from benchmarks.curvature.problems import Problem
from benchmarks.curvature.reference import exact
from benchmarks.curvature.results import Results
from benchmarks.curvature.training import Training, blank, loss_of
from benchmarks.tracking.checks import TRAINING, Check, Run
from benchmarks.tracking.replay import Answer, Setting, reason, replayed, summary
from flatwise.curvature import from_matrix, top_eigenpairs


def network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).eval()
    return model, (torch.randn(12, 5), torch.arange(12) % 3)


def small_problem(k=2):
    model, batch = network()
    found = exact(model, *batch, k=k)
    start = found.vectors[:, 0].float()
    return Problem(model, batch, found.values, start, 1.0)


def dense_hessian():
    """By torch, in float64."""
    model, (x, y) = network()
    model.double()
    names, shapes = zip(*((n, p.shape) for n, p in model.named_parameters()))

    def loss(flat):
        parts = flat.split([s.numel() for s in shapes])
        weights = {n: part.view(s) for n, part, s in zip(names, parts, shapes)}
        return nn.functional.cross_entropy(torch.func.functional_call(model, weights, (x.double(),)), y)

    return torch.autograd.functional.hessian(loss, torch.cat([p.detach().reshape(-1) for p in model.parameters()]))


# --- the reference ----------------------------------------------------------------------------------------------------


def test_the_reference_is_exact():
    matrix = dense_hessian()
    found = exact(*flattened(network()), k=4)
    torch.testing.assert_close(found.values, torch.linalg.eigvalsh(matrix).flip(0)[:4], rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(matrix @ found.vectors, found.vectors * found.values, rtol=0, atol=1e-3)
    residuals = torch.linalg.vector_norm(matrix @ found.vectors - found.vectors * found.values, dim=0)
    torch.testing.assert_close(found.residuals, residuals, rtol=1e-3, atol=1e-9)


def test_the_smallest_eigenvalue_can_be_asked_for():
    found = exact(*flattened(network()), which="SA")
    torch.testing.assert_close(found.values[0], torch.linalg.eigvalsh(dense_hessian())[0], rtol=1e-6, atol=1e-9)


def flattened(found):
    model, batch = found
    return model, *batch


# --- counts -----------------------------------------------------------------------------------------------------------


def test_operations_are_those_of_the_matrix_products():
    model, x = nn.Linear(4, 3, bias=False), torch.randn(5, 4)
    forward = 2 * 5 * 4 * 3
    assert operations_of(lambda: model(x)) == forward
    assert operations_of(lambda: torch.autograd.grad(model(x).sum(), model.weight)) == 2 * forward


def test_operations_stop_at_their_limit():
    a = torch.ones(10, 10)
    with Operations(limit=5000) as counted:
        a @ a, a @ a
        with pytest.raises(TooMuch):
            a @ a
    assert counted.total == 6000


def test_a_gradient_is_one_pass_forward_and_one_back():
    model, batch = network()
    with passes(model, 12) as counted:
        gradient(model, loss_of, batch)
    assert (counted.forward, counted.backward) == (1, 1)


def test_an_exact_product_is_one_pass_forward_and_two_back():
    model, batch = network()
    with passes(model, 12) as counted:
        first = torch.autograd.grad(loss_of(model, batch), list(model.parameters()), create_graph=True)
        torch.autograd.grad(first, list(model.parameters()), [torch.ones_like(g) for g in first])
    assert (counted.forward, counted.backward) == (1, 2)


def test_a_third_of_the_samples_is_a_third_of_a_pass():
    model, (x, y) = network()
    with passes(model, 12) as counted:
        gradient(model, loss_of, (x[:4], y[:4]))
    assert (counted.forward, counted.backward) == pytest.approx((1 / 3, 1 / 3))
    model(x)
    assert counted.forward == pytest.approx(1 / 3), "nothing is counted afterwards"


# --- choices ----------------------------------------------------------------------------------------------------------


def test_the_largest_relative_error_counts_and_a_missing_value_is_all_wrong():
    assert cost.relative_error([10.1, 4.0], [10.0, 5.0]) == pytest.approx(0.2)
    assert cost.relative_error([10.0], [10.0, 5.0]) == 1.0


@pytest.mark.parametrize("name", ["top 1", "top 1, warm"])
def test_settings_are_chosen_that_answer_within_one_percent_and_then_timed(name):
    pytest.importorskip("curvlinops")
    rows = cost.measure(cost.QUESTIONS[name], [flatwise("double"), CURVLINOPS], [small_problem()], rounds=2)
    for row in rows:
        assert row.settings is not None, row.remark
        assert len(row.products) == len(row.work) == 1
        assert len(row.errors) == len(row.gradients) == 2
        assert row.backward[0] >= row.products[0]
    assert rows[1].products[0] == round(rows[1].forward[0])


def test_rounds_have_start_vectors_of_their_own():
    seeds = []
    contender = flatwise("double")
    solve = lambda handle, search: seeds.append(search.seed) or contender.solve(handle, search)
    cost.measure(cost.QUESTIONS["top 1, defaults"], [cost.replace(contender, solve=solve)], [small_problem()], rounds=2)
    assert seeds == [0, 1, 2]


def test_with_no_rounds_it_is_counted_only():
    (row,) = cost.measure(cost.QUESTIONS["top 1"], [flatwise("double")], [small_problem()], rounds=0)
    assert row.work
    assert not row.seconds
    assert "time" not in cost.line(row)


def test_what_takes_too_much_is_given_up():
    question = cost.Question("top 1", 1, "cold", limit=1.5)
    row = cost.chosen(question, flatwise("double"), [small_problem()])
    assert row.settings is None
    assert "given up after 1.5 gradients" in row.remark


def test_who_takes_no_start_vector_says_so():
    contender = cost.replace(flatwise("double"), warm=[])
    row = cost.chosen(cost.QUESTIONS["top 1, warm"], contender, [small_problem()])
    assert row.settings is None
    assert row.remark == "takes no start vector"


def test_the_learning_rate_goes_along_a_cosine_to_zero_at_the_planned_end():
    training = Training(images=1000, epochs=3, planned=4, batch=100, lr=0.2)
    assert training.steps == 30
    assert [training.lr_at(step) for step in (0, 20, 40)] == pytest.approx([0.2, 0.1, 0.0])


# --- along a training -------------------------------------------------------------------------------------------------


def test_a_wrong_value_is_explained():
    pairs = top_eigenpairs(from_matrix(torch.diag(torch.tensor([5.0, 2.0, 1.0]))), tol=1e-3)
    assert reason(pairs, [5.05, 3.0, 1.0]) == ""
    assert reason(pairs, [9.0, 5.0, 1.0]).startswith("it followed eigenvalue number 2")
    assert reason(pairs, [9.0, 7.0, 1.0]).startswith("none of the 3 largest")


def short_run():
    """Two checks of a cnn6 that hardly moves between them."""
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(8, 3, 32, 32, generator=generator), torch.arange(8)
    model, checks = blank(TRAINING, probe), []
    for step in (0, 50):
        with torch.no_grad():
            model[-1].weight.add_(0.01 * torch.randn(model[-1].weight.shape, generator=generator))
        found = exact(model, *probe, k=2)
        checks.append(Check(step, copy.deepcopy(model.state_dict()), found.values, found.vectors.float()))
    return Run(probe, checks, 1.0)


def test_a_replay_finds_at_every_check_what_is_right_there_and_what_it_costs():
    answers = replayed(short_run(), Setting("double", {"tol": 0.01}))
    assert [a.step for a in answers] == [0, 50]
    for a in answers:
        assert a.error < 1e-3
        assert a.reason == ""
        assert a.alignment > 0.99
        assert a.work > a.products >= 1
        assert a.step_work == pytest.approx(2.0 * TRAINING.batch / 8), "SAM takes two gradients of a batch"
        assert min(a.seconds, a.gradient, a.step_seconds) > 0


def test_the_share_of_a_training_is_that_of_all_updates_in_all_steps():
    def answer(step, reason):
        costs = {"work": 10.0, "step_work": 2.0, "seconds": 3.0, "gradient": 1.0, "step_seconds": 1.5}
        return Answer(step, 4.0, 5.0, 7, 0.9, reason, **costs)

    found = summary([answer(0, ""), answer(50, "it followed eigenvalue number 2")], steps=100)
    assert (found["checks"], found["good"], found["worst"]) == (2, 1, pytest.approx(0.2))
    assert found["time"] == pytest.approx(2 * 3.0 / (100 * 1.5))
    assert found["work"] == pytest.approx(2 * 10.0 / (100 * 2.0))
    assert found["later"] == [3.0]
    assert found["failures"] == ["step 50: 4 for 5: it followed eigenvalue number 2"]


# --- the page ---------------------------------------------------------------------------------------------------------


def test_the_page_shows_what_there_are_results_of(tmp_path):
    results = Results(tmp_path)
    assert "##" not in page(results)
    problem = small_problem()
    (row,) = cost.measure(cost.QUESTIONS["top 1"], [flatwise("double")], [problem], rounds=2)
    results.save("top 1", [vars(row)], problems=[problem.facts()])
    text = page(results)
    assert "### The top eigenvalue within 1 %" in text
    assert f"| {cost.label(row.settings)} | {row.products[0]} |" in text
    assert "## Memory" not in text
