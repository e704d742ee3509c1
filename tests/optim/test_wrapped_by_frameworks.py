"""Optimizers of frameworks around ours: classes that imitate it, wrappers that hide it, gradients that they leave behind."""

import copy
import functools
import warnings

import pytest
import torch
from methods.cases import every_displacing_method, every_method
from optim.problems import assert_same, batches, build, closure_of, loss_of, norm_net, snapshot, step_by_passes, train

import flatwise as fw


class Hiding:
    """Holds the optimizer and nothing else, as Accelerate does."""

    def __init__(self, optimizer):
        self.optimizer = optimizer


class Imitating:
    """Takes on the optimizer's class, as Lightning and Fabric do."""

    def __init__(self, optimizer):
        self._optimizer = optimizer
        self.__class__ = type("Imitation", (Imitating, type(optimizer)), {})

    def step(self, closure=None):
        return self._optimizer.step(closure)

    def __getattr__(self, name):
        return getattr(self._optimizer, name)


@every_method
def test_passes_of_an_imitation_are_those_of_the_real_optimizer(case):
    imitated, plain = build(case.method), build(case.method)
    imitation = Imitating(imitated.opt)
    assert isinstance(imitation, fw.SharpnessAware)
    for batch in batches(5):
        imitation.zero_grad()
        for p in imitation.passes():
            p.backward(loss_of(imitated.model, batch))
        imitation.step()
        step_by_passes(plain, batch)
        assert imitation.diagnostics == plain.opt.diagnostics
    imitation.load_state_dict(imitation.state_dict())
    assert imitation.param_groups is imitated.base.param_groups
    assert_same(snapshot(imitated), snapshot(plain))
    assert set(vars(imitation)) == {"_optimizer"}


def test_clearing_gradients_on_an_imitation_forgets_the_finished_passes():
    run = build(fw.methods.SAM(0.1))
    imitation = Imitating(run.opt)
    (batch,) = batches(1)
    for p in imitation.passes():
        p.backward(loss_of(run.model, batch))
    imitation.zero_grad()
    before = snapshot(run)
    with pytest.raises(RuntimeError, match=r"optimizer\.passes"):
        imitation.step()
    assert_same(snapshot(run), before)


@pytest.mark.parametrize(
    "wrap", [lambda o: o, Hiding, Imitating, lambda o: Hiding(Imitating(o)), lambda o: Imitating(o)]
)
def test_unwrap_finds_ours(wrap):
    run = build(fw.methods.SAM())
    assert fw.unwrap(wrap(run.opt)) is run.opt


@pytest.mark.parametrize("other", [None, 3, object(), Hiding(None), Hiding(Hiding(object()))])
def test_unwrap_says_where_there_is_none(other):
    with pytest.raises(TypeError, match="there is no SharpnessAware inside"):
        fw.unwrap(other)


def test_unwrap_says_so_of_a_plain_optimizer():
    with pytest.raises(TypeError, match="inside this SGD: wrap your optimizer"):
        fw.unwrap(torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=0.1))


@every_method
def test_a_model_wrapped_after_the_optimizer_was_made_can_be_set(case):
    late, early = build(case.method, net=norm_net), build(case.method, net=norm_net)
    inner = late.model
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        late.opt = fw.SharpnessAware(late.base, case.method)
    late.opt.model = torch.nn.Sequential(inner)
    for run in (late, early):
        train(run, batches(4))
    assert_same(snapshot(late), snapshot(early))
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module"):
        late.opt.model = "resnet18"


@every_method
def test_a_loop_that_calls_train_does_not_spoil_measuring_passes(case):
    """Trainers call model.train() at every training step."""
    careless, careful = build(case.method, net=norm_net), build(case.method, net=norm_net)
    for batch in batches(7):
        for p in careless.opt.passes():
            careless.model.train()
            careless.model[1].train(True)
            assert careless.model.training is not p.is_probe
            p.backward(loss_of(careless.model, batch))
        careless.opt.step()
        step_by_passes(careful, batch)
    assert_same(snapshot(careless), snapshot(careful))
    assert "train" not in vars(careless.model)
    assert careless.model.eval().training is False


def own_backward_then_closure(run, batch):
    """As the README of davda54/sam has it."""
    loss_of(run.model, batch).backward()
    run.opt.step(closure_of(run, batch))
    run.opt.zero_grad()


@every_displacing_method
def test_a_backward_before_the_step_is_told_once_and_does_no_harm(case):
    run, plain = build(case.method), build(case.method)
    data = batches(4)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for batch in data:
            own_backward_then_closure(run, batch)
    assert len(told) == 1
    assert "is not needed" in str(told[0].message)
    assert told[0].filename == __file__
    train(plain, data)
    plain.opt.zero_grad()
    assert_same(snapshot(run), snapshot(plain))


@every_method
def test_what_a_step_or_an_interrupted_one_leaves_is_no_surprise(case):
    """Under warnings as errors: our own direction, also clipped or scaled, and a pass that was broken off."""
    run = build(case.method)
    for batch in batches(3):
        train(run, [batch])
        torch.nn.utils.clip_grad_norm_(run.params, 1e-3)
        for p in run.opt.passes():
            p.backward(loss_of(run.model, batch))
            break
        copy.deepcopy(run.opt)
    for p in run.params:
        p.grad = None
    train(run, batches(1))


class Lightnings:
    """A closure of Lightning's: recognised by where its class is from."""

    __module__ = "lightning.pytorch.loops.optimization.automatic"

    def __init__(self, closure):
        self.closure = closure

    def __call__(self):
        return self.closure()


@pytest.mark.parametrize("wrapped", [lambda c: c, lambda c: functools.partial(lambda inner: inner(), c)])
def test_lightnings_accumulation_is_refused_and_nothing_moves(wrapped):
    run = build(fw.methods.SAM(0.1))
    first, second = batches(2)
    loss_of(run.model, first).backward()
    before = snapshot(run)
    with pytest.raises(RuntimeError, match="accumulate_grad_batches"):
        run.opt.step(wrapped(Lightnings(closure_of(run, second))))
    assert_same(snapshot(run), before)
    run.opt.zero_grad()
    run.opt.step(wrapped(Lightnings(closure_of(run, second))))


def passes_alone(run, batch):
    for p in run.opt.passes():
        p.backward(loss_of(run.model, batch))


@every_displacing_method
def test_passes_that_no_step_used_are_told_once(case):
    """A forgotten step() would train nothing and say nothing."""
    run = build(case.method)
    batch, *rest = batches(4)
    passes_alone(run, batch)
    with pytest.warns(UserWarning, match="no step.. has used") as told:
        passes_alone(run, batch)
    assert told[0].filename == __file__
    for batch in rest:
        passes_alone(run, batch)
    run.opt.zero_grad()
    passes_alone(run, batch)


def test_a_direction_dropped_on_purpose_is_no_mistake():
    run = build(fw.methods.SAM(0.1))
    for batch in batches(3):
        passes_alone(run, batch)
        run.opt.zero_grad()


def test_what_an_earlier_optimizer_left_is_no_surprise():
    run = build(fw.methods.SAM(0.1))
    (batch,) = batches(1)
    train(run, [batch])
    run.opt = fw.SharpnessAware(run.base, fw.methods.EigenSAM(), model=run.model)
    train(run, [batch])


@every_method
def test_the_loss_of_the_step_is_that_at_the_weights(case):
    run = build(case.method)
    (batch,) = batches(1)
    assert run.opt.loss is None
    expected = loss_of(run.model, batch).detach()
    step_by_passes(run, batch)
    assert torch.equal(run.opt.loss, expected)
    assert float(run.opt.loss) == run.opt.diagnostics["loss"]
