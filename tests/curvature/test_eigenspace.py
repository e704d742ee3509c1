"""The top eigenspace as a function for methods: against brute force in float64, inside a step, and what it leaves alone."""

import copy

import pytest
import torch
import torch.nn.functional as F
from optim.problems import (
    assert_same,
    batches,
    build,
    every_base,
    flat,
    halves,
    loss_of,
    mlp,
    norm_net,
    snapshot,
    step_by_closure,
    step_by_passes,
    train,
)
from reference import transcriptions
from torch import nn

import flatwise as fw
from flatwise import vectors as V
from flatwise.curvature import eigenspace
from flatwise.methods import SGD, Bulk, Dominant, EigenSAM

K = 2
EVERYTHING = batches(2, dtype=torch.float64)


def objective_of(model, data=EVERYTHING, mode="eval"):
    return fw.Objective(model, loss_of, data, mode=mode)


def nothing_known(params, k=K):
    return [V.zeros_like(params) for _ in range(k)]


def exact(model, k=K):
    """The top eigenvectors of the mean loss of all batches, as columns, by brute force."""
    total = lambda: sum(loss_of(model, batch) for batch in EVERYTHING) / len(EVERYTHING)
    h = transcriptions.hessian_matrix(total, list(model.parameters()))
    return torch.linalg.eigh((h + h.T) / 2).eigenvectors[:, -k:]


def columns(found):
    return torch.stack([flat(vector) for vector in found], dim=1)


def projector(basis):
    return basis @ basis.T


def assert_same_space(found, expected, tolerance):
    assert (projector(found) - projector(expected)).norm() < tolerance


def test_it_is_the_space_of_the_largest_eigenvalues():
    model = mlp(torch.float64)
    found = columns(
        eigenspace(objective_of(model), tol=1e-8)(nothing_known([*model.parameters()]), [*model.parameters()])
    )
    assert_same_space(found, exact(model), 1e-6)
    torch.testing.assert_close(found.T @ found, torch.eye(K, dtype=torch.float64), rtol=0, atol=1e-10)


def test_it_starts_from_what_is_known_and_does_not_keep_anything():
    """The same known vectors at the same weights give the same bits, whatever was asked before; close ones take fewer passes."""
    model, passes = mlp(torch.float64), []
    counted = lambda model, batch: passes.append(1) or loss_of(model, batch)
    objective = fw.Objective(model, counted, EVERYTHING, mode="eval")
    find, params = eigenspace(objective, tol=1e-6), list(model.parameters())
    first = find(nothing_known(params), params)
    passes.clear()
    again = find(nothing_known(params), params)
    cold = len(passes)
    assert_same(again, first)
    passes.clear()
    warm = find(first, params)
    assert len(passes) < cold
    assert_same(eigenspace(objective_of(model), tol=1e-6)(first, params), warm)


def test_vectors_are_in_the_order_of_the_optimizers_parameters():
    """Also where two of them have the same shape."""
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    params = list(model.parameters())
    order = [4, 2, 0, 1, 3, 5]
    find = eigenspace(objective_of(model), tol=1e-9)
    plain = find(nothing_known(params), params)
    shuffled = find(nothing_known([params[i] for i in order]), [params[i] for i in order])
    back = [[vector[order.index(i)] for i in range(len(params))] for vector in shuffled]
    assert_same_space(columns(back), columns(plain), 1e-6)


def test_parameters_that_are_not_trained_are_held_fixed():
    model = mlp(torch.float64)
    params = list(model.parameters())
    last = params[2:]
    (found,) = eigenspace(objective_of(model), tol=1e-9)(nothing_known(last, 1), last)
    h = transcriptions.hessian_matrix(lambda: sum(loss_of(model, b) for b in EVERYTHING), last)
    top = torch.linalg.eigh((h + h.T) / 2).eigenvectors[:, -1]
    assert (flat(found) @ top).abs() > 1 - 1e-8


def test_a_frozen_parameter_of_the_optimizer_has_zeros():
    model = mlp(torch.float64)
    params = list(model.parameters())
    params[0].requires_grad_(False)
    found = eigenspace(objective_of(model))(nothing_known(params), params)
    assert all(torch.equal(vector[0], torch.zeros_like(params[0])) for vector in found)
    assert all(V.norm(vector).item() == pytest.approx(1.0) for vector in found)


def test_parameters_of_another_model_are_refused():
    model = mlp(torch.float64)
    params = list(mlp(torch.float64).parameters())
    with pytest.raises(ValueError, match="not in the objective's model"):
        eigenspace(objective_of(model))(nothing_known(params), [*model.parameters(), params[0]])
    with pytest.raises(ValueError, match="not in the objective's model"):
        eigenspace(objective_of(model))(nothing_known(params), params)


def test_what_is_no_objective_and_a_tolerance_of_zero_are_refused():
    with pytest.raises(TypeError, match=r"must be a flatwise\.Objective, got a Sequential"):
        eigenspace(mlp())
    with pytest.raises(ValueError, match="tol must be"):
        eigenspace(objective_of(mlp(torch.float64)), tol=0.0)


def test_vectors_have_the_dtypes_of_what_is_remembered():
    model = mlp(torch.bfloat16)
    params = list(model.parameters())
    find = eigenspace(objective_of(model, batches(2, dtype=torch.bfloat16)), tol=0.3)
    assert all(t.dtype == torch.bfloat16 for vector in find(nothing_known(params, 1), params) for t in vector)


# --- inside a step ----------------------------------------------------------------------------------------------------


def with_space(method, base="sgd", net=mlp, every=1, tol=1e-2):
    """A run whose method looks at the Hessian of everything."""
    run = build(SGD(), base, net=net, dtype=torch.float64)
    space = eigenspace(objective_of(run.model), tol)
    run.opt = fw.SharpnessAware(run.base, method(SGD(), k=K, every=every, subspace=space), model=run.model)
    return run


@pytest.mark.parametrize("method", [Dominant, Bulk])
@every_base
def test_a_step_is_the_bases_update_projected_by_brute_force(method, base):
    run, plain = with_space(method, base, tol=1e-7), build(SGD(), base, dtype=torch.float64)
    for batch in batches(3, dtype=torch.float64, seed=3):
        before, inside = flat(run.params), projector(exact(run.model))
        plain.model.load_state_dict(run.model.state_dict())
        plain.base.load_state_dict(copy.deepcopy(run.base.state_dict()))
        step_by_closure(run, batch)
        step_by_closure(plain, batch)
        update = flat(plain.params) - before
        expected = inside @ update if method is Dominant else update - inside @ update
        torch.testing.assert_close(flat(run.params) - before, expected, rtol=0, atol=1e-6 * update.norm().item())


@pytest.mark.parametrize("step", [step_by_closure, step_by_passes])
def test_looking_changes_nothing_but_the_step(step):
    """Buffers, modes and random numbers are those of plain training, under both ways to drive a step."""
    torch.manual_seed(3)
    run, plain = with_space(Dominant, net=norm_net), build(SGD(), net=norm_net, dtype=torch.float64)
    torch.manual_seed(3)
    step(run, batches(1, dtype=torch.float64)[0])
    random = torch.get_rng_state()
    torch.manual_seed(3)
    step(plain, batches(1, dtype=torch.float64)[0])
    assert torch.equal(random, torch.get_rng_state())
    assert_same(dict(run.model.named_buffers()), dict(plain.model.named_buffers()))
    assert_same([p.grad for p in run.params], [p.grad for p in plain.params])
    assert [m.training for m in run.model.modules()] == [m.training for m in plain.model.modules()]


def test_an_error_while_looking_changes_nothing():
    run = with_space(Dominant, net=norm_net)
    train(run, batches(2, dtype=torch.float64))
    before = snapshot(run)
    find = run.opt.method.subspace

    def fails(model, batch):
        F.cross_entropy(model(batch[0]), batch[1])
        raise RuntimeError("out of memory")

    broken = eigenspace(fw.Objective(run.model, fails, EVERYTHING, mode="eval"))
    run.opt.method = Dominant(SGD(), k=K, subspace=broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        step_by_closure(run, EVERYTHING[0])
    run.opt.method = Dominant(SGD(), k=K, subspace=find)
    assert_same(snapshot(run), before)


@pytest.mark.parametrize("net", [mlp, norm_net])
@every_base
def test_a_run_resumed_at_any_step_continues_bitwise(base, net):
    data = batches(4, dtype=torch.float64)
    run = with_space(Dominant, base, net, every=2)
    saved = [copy.deepcopy((run.model.state_dict(), run.opt.state_dict()))]
    for batch in data:
        step_by_closure(run, batch)
        saved.append(copy.deepcopy((run.model.state_dict(), run.opt.state_dict())))
    for step, (model, opt) in enumerate(saved):
        again = with_space(Dominant, base, net, every=2)
        again.model.load_state_dict(model)
        again.opt.load_state_dict(opt)
        train(again, data[step:])
        assert_same(snapshot(again), snapshot(run), f"resumed after step {step}")


def test_a_deep_copy_looks_at_its_own_model():
    run = with_space(Bulk)
    train(run, EVERYTHING)
    twin = copy.deepcopy(run)
    train(twin, EVERYTHING)
    train(run, EVERYTHING)
    assert_same(snapshot(twin), snapshot(run))


def once_differentiable(dtype):
    """With a custom function that refuses to be differentiated twice, so that products are differences."""
    return nn.Sequential(nn.Linear(6, 10), OnceOnly(), nn.Linear(10, 3)).to(dtype)


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(y := torch.tanh(x))
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        (y,) = ctx.saved_tensors
        return g * (1 - y**2)


class OnceOnly(nn.Module):
    def forward(self, x):
        return _Once.apply(x)


def test_differences_of_gradients_are_as_pure_as_exact_products():
    """The length of a difference is found anew, so that a resumed run and an old one take the same."""
    torch.manual_seed(0)
    model = once_differentiable(torch.float64)
    params = list(model.parameters())
    used = eigenspace(objective_of(model), tol=1e-4)
    used(nothing_known(params), params)
    with torch.no_grad():
        for p in params:
            p.mul_(3.0)
    fresh = eigenspace(objective_of(model), tol=1e-4)
    assert_same(used(nothing_known(params), params), fresh(nothing_known(params), params))


def test_it_is_a_source_of_eigen_sams_vector():
    run = build(SGD(), dtype=torch.float64)
    space = eigenspace(objective_of(run.model), tol=1e-9)
    run.opt = fw.SharpnessAware(run.base, EigenSAM(rho=0.1, every=2, source=space), model=run.model)
    train(run, EVERYTHING)
    v = exact(run.model, 1)[:, 0]
    step_by_passes(run, EVERYTHING[0])
    state = run.opt.state_dict()["state"]
    tracked = flat([state[i]["flatwise.eigenvector"] for i in range(len(run.params))])
    assert (tracked @ v).abs() > 1 - 1e-8


def by_closures(run, batch):
    def closure_of(part):
        def closure():
            loss = loss_of(run.model, part)
            loss.backward()
            return loss

        return closure

    run.opt.step([closure_of(part) for part in halves(batch)])


def by_parts(run, batch, **options):
    for p in run.opt.passes(parts=2, **options):
        p.backward(loss_of(run.model, halves(batch)[p.part]))
    run.opt.step()


RULES = {
    "closure": step_by_closure,
    "closures": by_closures,
    "passes": step_by_passes,
    "parts": by_parts,
    "each": lambda run, batch: by_parts(run, batch, each=True),
    "scaler": lambda run, batch: step_by_passes(run, batch, torch.amp.GradScaler("cpu")),
}


@pytest.mark.parametrize("rule", RULES)
def test_however_a_step_is_driven_the_two_parts_make_the_whole_update(rule):
    batch = batches(1, dtype=torch.float64, seed=3)[0]
    start = flat(mlp(torch.float64).parameters())
    moved = []
    for run in (with_space(Dominant), with_space(Bulk), build(SGD(), dtype=torch.float64)):
        RULES[rule](run, batch)
        moved.append(flat(run.params) - start)
    torch.testing.assert_close(moved[0] + moved[1], moved[2], rtol=0, atol=1e-14)
    assert (moved[0] @ moved[1]).abs() < 1e-12
    assert all(part.norm() > 0.1 * moved[2].norm() for part in moved[:2])
