"""Each mistake gets one clear ValueError or TypeError, and nothing is lost: the next good step is as if it had not been."""

import warnings

import pytest
import torch
from methods.cases import every_method
from optim.problems import assert_same, batches, build, closure_of, loss_of, mlp, norm_net, snapshot, step_by_closure
from torch import nn

import flatwise as fw
from flatwise import methods

MISTAKE = (ValueError, TypeError)


def returns_nothing(run, batch):
    def closure():
        loss_of(run.model, batch).backward()

    return closure


def never_backward(run, batch):
    return lambda: loss_of(run.model, batch)


def not_scalar(run, batch):
    def closure():
        losses = nn.functional.cross_entropy(run.model(batch[0]), batch[1], reduction="none")
        losses.mean().backward()
        return losses

    return closure


def text(run, batch):
    def closure():
        loss_of(run.model, batch).backward()
        return "0.3"

    return closure


def not_callable(run, batch):
    return 3


def no_closures(run, batch):
    return []


def not_all_callable(run, batch):
    return [closure_of(run, batch), None]


def second_returns_nothing(run, batch):
    return [closure_of(run, batch), returns_nothing(run, batch)]


CLOSURES = [
    returns_nothing,
    never_backward,
    not_scalar,
    text,
    not_callable,
    no_closures,
    not_all_callable,
    second_returns_nothing,
]


@pytest.mark.parametrize("mistake", CLOSURES)
@every_method
def test_closures_that_do_not_do_their_work(case, mistake):
    run, twin = build(case.method, net=norm_net), build(case.method, net=norm_net)
    for batch in batches(2):
        before = snapshot(run)
        with pytest.raises(MISTAKE) as caught:
            run.opt.step(mistake(run, batch))
        assert len(str(caught.value)) > 20
        assert_same(snapshot(run), before)
        step_by_closure(run, batch)
        step_by_closure(twin, batch)
        assert_same(snapshot(run), snapshot(twin))


def loop(run, body):
    for p in run.opt.passes():
        body(p)


@every_method
def test_a_loop_body_that_never_calls_backward(case):
    run = build(case.method, net=norm_net)
    (batch,) = batches(1)
    before = snapshot(run)
    with pytest.raises((*MISTAKE, RuntimeError), match="backward"):
        loop(run, lambda p: loss_of(run.model, batch))
    assert_same(snapshot(run), before)


@every_method
def test_a_loop_body_that_records_without_backward(case):
    run = build(case.method, net=norm_net)
    (batch,) = batches(1)
    before = snapshot(run)
    with pytest.raises((*MISTAKE, RuntimeError)):
        loop(run, lambda p: p.record(loss_of(run.model, batch)))
    assert_same(snapshot(run), before)


@pytest.mark.parametrize("loss", [None, 0.5, "loss", torch.ones(3)])
@every_method
def test_backward_of_what_is_no_scalar_loss(case, loss):
    run = build(case.method)
    before = snapshot(run)
    with pytest.raises(MISTAKE):
        loop(run, lambda p: p.backward(loss))
    assert_same(snapshot(run), before)


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_weights_of_micro_batches_out_of_range(weight):
    run = build(methods.SAM())
    (batch,) = batches(1)
    before = snapshot(run)
    with pytest.raises(MISTAKE, match="weight"):
        loop(run, lambda p: p.backward(loss_of(run.model, batch), weight=weight))
    assert_same(snapshot(run), before)


@every_method
def test_a_pass_that_is_over_takes_no_more_losses(case):
    run = build(case.method)
    (batch,) = batches(1)
    for p in run.opt.passes():
        p.backward(loss_of(run.model, batch))
    with pytest.raises((*MISTAKE, RuntimeError)):
        p.backward(loss_of(run.model, batch))


@every_method
def test_parameters_all_without_gradient(case):
    """The loss does not depend on them, or they are all frozen."""
    run = build(case.method)
    elsewhere = nn.Parameter(torch.ones(2))
    before = snapshot(run)

    def closure():
        loss = elsewhere.square().sum()
        loss.backward()
        return loss

    with pytest.raises(MISTAKE, match="gradient"):
        run.opt.step(closure)
    assert_same(snapshot(run), before)


def test_a_frozen_model_is_refused_at_the_step_at_the_latest():
    run = build(methods.SAM())
    run.model.requires_grad_(False)
    elsewhere = nn.Parameter(torch.ones(2))

    def closure():
        loss = loss_of(run.model, batches(1)[0]) * elsewhere.sum()
        loss.backward()
        return loss

    with pytest.raises(MISTAKE, match="gradient"):
        run.opt.step(closure)


def test_the_second_loss_must_be_built_after_the_weights_moved():
    """One forward outside the loop, two backward passes: torch's own error, and nothing is lost."""
    run = build(methods.SAM())
    before = snapshot(run)
    loss = loss_of(run.model, batches(1)[0])
    with pytest.raises((*MISTAKE, RuntimeError)):
        loop(run, lambda p: p.backward(loss))
    assert_same(snapshot(run), before)


def sgd(params, **options):
    return torch.optim.SGD(params, lr=0.1, **options)


def test_a_class_where_a_method_belongs():
    model = mlp()
    with pytest.raises(TypeError, match=r"SAM\("):
        fw.SharpnessAware(sgd(model.parameters()), methods.SAM, model=model)


@pytest.mark.parametrize("method", [None, "sam", 0.05])
def test_what_is_no_method(method):
    model = mlp()
    with pytest.raises(TypeError, match="method"):
        fw.SharpnessAware(sgd(model.parameters()), method, model=model)


def test_a_class_where_a_base_optimizer_belongs():
    with pytest.raises(TypeError, match="SGD"):
        fw.SharpnessAware(torch.optim.SGD, methods.SAM(), model=mlp())


@pytest.mark.parametrize("base", [None, "sgd", [nn.Parameter(torch.ones(2))]])
def test_what_is_no_base_optimizer(base):
    with pytest.raises(TypeError, match="optimizer"):
        fw.SharpnessAware(base, methods.SAM(), model=mlp())


def test_a_base_optimizer_that_climbs():
    """Displaced uphill, a loss that is to be maximised is seen at its best and not at its worst."""
    model = nn.Linear(2, 1)
    for base in (torch.optim.SGD, torch.optim.AdamW):
        with pytest.raises(MISTAKE, match="maximize=True"):
            fw.SharpnessAware(base(model.parameters(), lr=0.1, maximize=True), methods.SAM(), model=model)


def test_lbfgs_as_base():
    model = mlp()
    with pytest.raises(MISTAKE, match="LBFGS"):
        fw.SharpnessAware(torch.optim.LBFGS(model.parameters()), methods.SAM(), model=model)
    with pytest.raises(MISTAKE, match="Adadelta keeps a rho of its own"):
        fw.SharpnessAware(torch.optim.Adadelta(model.parameters()), methods.SAM(), model=model)


def test_a_wrapper_as_base():
    run = build(methods.SAM())
    with pytest.raises(MISTAKE, match="SharpnessAware"):
        fw.SharpnessAware(run.opt, methods.SAM(), model=run.model)


@pytest.mark.parametrize("model", ["model", 3, lambda x: x])
def test_what_is_no_model(model):
    with pytest.raises(TypeError, match="model"):
        fw.SharpnessAware(sgd(mlp().parameters()), methods.SAM(), model=model)


@pytest.mark.parametrize(
    ("lacking", "model"),
    [(4, lambda a, b: mlp()), (2, lambda a, b: a), (0, lambda a, b: nn.ModuleList([a, b]))],
    ids=["another network", "one of two", "both"],
)
def test_a_model_that_lacks_parameters_of_the_optimizer_is_told_once(lacking, model):
    a, b = nn.Linear(6, 10), nn.Linear(10, 3)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        opt = fw.SharpnessAware(sgd([*a.parameters(), *b.parameters()]), methods.SAM(), model=model(a, b))
        for _ in range(2):
            for p in opt.passes():
                p.backward(b(a(torch.ones(4, 6))).square().mean())
            opt.step()
    assert len(told) == bool(lacking)
    for warning in told:
        assert f"{lacking} of the optimizer's 4 parameters are not in the model" in str(warning.message)
        assert "nn.ModuleList([a, b])" in str(warning.message)
        assert warning.filename == __file__


def test_a_model_that_is_set_later_is_looked_at_too():
    run = build(methods.SAM())
    with pytest.warns(UserWarning, match="are not in the model") as told:
        run.opt.model = mlp()
    assert told[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run.opt.model = torch.compile(nn.ModuleList([run.model]))


def test_method_and_model_swapped_are_told_without_the_network_written_out():
    model = mlp()
    with pytest.raises(
        TypeError, match=r"got a Sequential: SharpnessAware\(base_optimizer, SAM\(rho=0.05\), model=model\)"
    ):
        fw.SharpnessAware(sgd(model.parameters()), model, methods.SAM())


def test_several_modules_are_told_how_to_be_one_model():
    a, b = mlp(), mlp()
    with pytest.raises(TypeError, match=r"got a list; for several modules pass nn.ModuleList\(\[a, b\]\)$"):
        fw.SharpnessAware(sgd([*a.parameters(), *b.parameters()]), methods.SAM(), model=[a, b])


def test_micro_batches_that_the_first_pass_used_up_are_named_as_a_possible_cause():
    run = build(methods.SAM())
    before = snapshot(run)
    micro_batches = iter(batches(2))
    with pytest.raises(ValueError, match="was the iterator of micro-batches used up by the first pass"):
        loop(run, lambda p: [p.backward(loss_of(run.model, batch)) for batch in micro_batches])
    assert_same(snapshot(run), before)
    with pytest.raises(ValueError, match="no parameter received a gradient in this pass") as caught:
        loop(run, lambda p: None)
    assert "micro-batches" not in str(caught.value)


def test_a_misspelt_perturb_is_answered_with_the_nearest():
    model = mlp()
    with pytest.raises(ValueError, match="global"):
        fw.SharpnessAware(sgd(model.parameters()), methods.SAM(), model=model, perturb="globl")
    with pytest.raises(ValueError, match="local"):
        fw.SharpnessAware(sgd(model.parameters()), methods.SAM(), model=model, perturb="locale")


def test_local_perturbation_needs_replicas():
    model = mlp()
    with pytest.raises(MISTAKE, match="DistributedDataParallel"):
        fw.SharpnessAware(sgd(model.parameters()), methods.SAM(), model=model, perturb="local")


@every_method
def test_sparse_gradients_are_refused_and_nothing_is_lost(case):
    embedding = nn.Embedding(10, 3, sparse=True)
    model = nn.Sequential(embedding, nn.Linear(3, 2))
    opt = fw.SharpnessAware(sgd(model.parameters()), case.method, model=model)
    before = [p.detach().clone() for p in model.parameters()]

    def closure():
        loss = model(torch.tensor([1, 3, 3])).square().mean()
        loss.backward()
        return loss

    with pytest.raises(MISTAKE, match="sparse"):
        opt.step(closure)
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before))


def test_a_misspelt_argument_is_refused():
    model = mlp()
    with pytest.raises(TypeError):
        fw.SharpnessAware(sgd(model.parameters()), methods.SAM(), model=model, fresh_noises=True)


def test_what_is_no_scaler():
    run = build(methods.SAM())
    with pytest.raises(TypeError, match="scaler"):
        for _ in run.opt.passes(scaler=65536.0):
            pass


def test_mended_after_all_of_it():
    run, twin = build(methods.SAM()), build(methods.SAM())
    for mistake in CLOSURES:
        with pytest.raises(MISTAKE):
            run.opt.step(mistake(run, batches(1)[0]))
    step_by_closure(run, batches(1)[0])
    step_by_closure(twin, batches(1)[0])
    assert_same(snapshot(run), snapshot(twin))
