"""Hugging Face Accelerate: real trainings of tiny models, compared with a plain loop of our optimizer."""

import copy
from contextlib import nullcontext, suppress

import pytest
import torch
from accelerate import Accelerator
from frameworks.language import distance, language_model, loss_of, plain_loop, sequences, windows
from optim.problems import assert_same, batches, flat, halves, mlp, noisy_net, norm_net, seeded
from optim.problems import loss_of as class_loss
from reference import transcriptions

import flatwise as fw
from flatwise.frameworks.accelerate import passes
from flatwise.methods import SAM, SGD, EigenSAM, GradientNorm, ReverseSAM

METHODS = {
    "sgd": SGD(),
    "sam": SAM(rho=0.1),
    "reverse-sam": ReverseSAM(rho=0.1),
    "gradient-norm": GradientNorm(rho=0.01),
    "eigen-sam": EigenSAM(rho=0.1, every=2, iterations=2),
}


def accelerator(**settings):
    return Accelerator(cpu=True, **settings)


def with_scaler(scale=2.0**16):
    """As under fp16 on a GPU."""
    ours = accelerator()
    ours.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    ours.native_amp = True
    ours.state._mixed_precision = "fp16"
    return ours


def unprepared(method=METHODS["sam"], net=noisy_net, gamma=0.9):
    """A model, our optimizer, and a scheduler that takes `gamma` of the learning rate at each step."""
    model = seeded(net)
    base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    optimizer = fw.SharpnessAware(base, method, model=model)
    return model, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=gamma)


def step(ours, model, optimizer, batch, **options):
    for p in passes(ours, model, optimizer, **options):
        loss = class_loss(model, batch)
        ours.backward(loss)
        p.record(loss)
    ours.clip_grad_norm_(model.parameters(), 0.5)
    optimizer.step()


def train(ours, data, *kind):
    model, optimizer, schedule = ours.prepare(*unprepared(*kind))
    for batch in data:
        step(ours, model, optimizer, batch)
        schedule.step()
    return model


def reference(data, *kind, scaler=None, precision=None):
    """The same training without Accelerate."""
    model, optimizer, schedule = unprepared(*kind)
    for batch in data:
        for p in optimizer.passes(scaler):
            with torch.autocast("cpu", precision, enabled=precision is not None):
                output = model(batch[0])
            p.backward(torch.nn.functional.cross_entropy(output.float(), batch[1]))
        if scaler is not None:
            scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step() if scaler is None else scaler.step(optimizer)
        if scaler is not None:
            scaler.update()
        schedule.step()
    return model


# --- equal to a plain loop --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_a_training_equals_a_plain_loop_bitwise(name):
    """With BatchNorm, dropout, clipping and a scheduler: weights and buffers."""
    torch.manual_seed(3)
    expected = reference(batches(6), METHODS[name])
    torch.manual_seed(3)
    assert_same(train(accelerator(), batches(6), METHODS[name]).state_dict(), expected.state_dict())


def test_a_language_model_trains_as_in_a_plain_loop():
    ours = accelerator()
    model = language_model()
    base = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.LambdaLR(base, lambda step: 1 - step / 6)
    model, optimizer, schedule = ours.prepare(model, fw.SharpnessAware(base, SAM(rho=0.1), model=model), schedule)
    steps = windows(sequences(), 4, 1, steps=6)
    for samples in steps:
        for p in passes(ours, model, optimizer):
            loss = loss_of(model, samples)
            ours.backward(loss)
            p.record(loss)
        ours.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    expected, _ = plain_loop(SAM(rho=0.1), steps, base=lambda parameters: torch.optim.AdamW(parameters, lr=1e-2))
    assert distance(model, expected) < 1e-6


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_training_in_half_precision_equals_a_plain_loop(precision):
    ours = with_scaler() if precision == "fp16" else accelerator(mixed_precision="bf16")
    settings = {"precision": torch.bfloat16}
    if precision == "fp16":
        settings = {"precision": torch.float16, "scaler": torch.amp.GradScaler("cpu")}
    kind = (SAM(rho=0.1), norm_net)
    expected = reference(batches(6), *kind, **settings)
    assert_same(train(ours, batches(6), *kind).state_dict(), expected.state_dict())
    assert not torch.equal(flat(expected.parameters()), flat(reference(batches(6), *kind).parameters()))


def test_autocast_around_the_whole_loop_is_autocast_around_each_forward():
    """Torch keeps the casts of the weights until autocast is left; they must not outlive a displacement."""
    losses = []
    for around in ("loop", "forward"):
        ours = accelerator(mixed_precision="bf16")
        model, optimizer = unprepared(SAM(rho=0.5), norm_net)[:2]
        optimizer = ours.prepare(optimizer)
        with ours.autocast() if around == "loop" else nullcontext():
            for p in passes(ours, model, optimizer):
                with ours.autocast() if around == "forward" else nullcontext():
                    loss = class_loss(model, batches(1)[0])
                ours.backward(loss)
                p.record(loss)
                losses.append(float(loss.detach()))
    assert losses[:2] == losses[2:]
    assert losses[1] > losses[0] + 0.1


# --- prepare, accumulation, parts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("order", ["together", "optimizer first", "model first"])
def test_model_and_optimizer_may_be_prepared_in_any_order(order, compiled):
    """Compiled, the model that was prepared is another object than the one that the optimizer was made with."""
    ours = accelerator(dynamo_backend="EAGER") if compiled else accelerator()
    model, optimizer, _ = unprepared(SAM(rho=0.1), norm_net, 1.0)
    if order == "optimizer first":
        optimizer, model = ours.prepare(optimizer, model)
    elif order == "model first":
        model = ours.prepare(model)
        optimizer = ours.prepare(optimizer)
    else:
        model, optimizer = ours.prepare(model, optimizer)
    for batch in batches(2):
        step(ours, model, optimizer, batch)
    assert fw.unwrap(optimizer).model is model
    expected = reference(batches(2), SAM(rho=0.1), norm_net, 1.0)
    assert torch.equal(flat(model.parameters()), flat(expected.parameters()))


def test_an_optimizer_made_without_a_model_learns_of_the_prepared_one():
    ours = accelerator()
    model = seeded(norm_net)
    with pytest.warns(UserWarning, match="without model"):
        optimizer = fw.SharpnessAware(torch.optim.SGD(model.parameters(), lr=0.1), SAM(rho=0.1))
    model, optimizer = ours.prepare(model, optimizer)
    step(ours, model, optimizer, batches(1)[0])
    assert int(model[1].num_batches_tracked) == 1


def test_micro_batches_inside_a_pass_are_weighted():
    ours = accelerator()
    model, optimizer, _ = ours.prepare(*unprepared(SAM(rho=0.1), mlp, 1.0))
    for batch in batches(3):
        for p in passes(ours, model, optimizer):
            for piece in halves(batch, sizes=(12, 4)):
                loss = class_loss(model, piece)
                ours.backward(loss)
                p.record(loss, weight=len(piece[1]))
        ours.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
    expected = reference(batches(3), SAM(rho=0.1), mlp, 1.0)
    torch.testing.assert_close(flat(model.parameters()), flat(expected.parameters()), rtol=0, atol=1e-6)


def test_a_dialogue_for_each_part_averages_their_directions():
    ours = accelerator()
    model, optimizer, _ = ours.prepare(*unprepared(SAM(rho=0.1), mlp, 1.0))
    pieces = halves(batches(1)[0])
    for p in passes(ours, model, optimizer, parts=2, each=True):
        loss = class_loss(model, pieces[p.part])
        ours.backward(loss)
        p.record(loss)
    params = list(seeded(mlp).parameters())
    net = seeded(mlp)
    params = list(net.parameters())
    alone = [transcriptions.sam(lambda piece=piece: class_loss(net, piece), params, 0.1) for piece in pieces]
    for p, one, other in zip(model.parameters(), *alone):
        torch.testing.assert_close(p.grad, (one + other) / 2, rtol=0, atol=1e-6)


def test_a_closure_serves_without_scaler_and_accumulation():
    ours = accelerator()
    model, optimizer, schedule = ours.prepare(*unprepared(SAM(rho=0.1), mlp))
    for batch in batches(3):

        def closure(batch=batch):
            optimizer.zero_grad()
            loss = class_loss(model, batch)
            ours.backward(loss)
            return loss

        optimizer.step(closure)
        schedule.step()
    model_, optimizer_, schedule_ = unprepared(SAM(rho=0.1), mlp)
    for batch in batches(3):
        for p in optimizer_.passes():
            p.backward(class_loss(model_, batch))
        optimizer_.step()
        schedule_.step()
    assert torch.equal(flat(model.parameters()), flat(model_.parameters()))


# --- skipped steps, interruptions, checkpoints ------------------------------------------------------------------------


def nan_at(ours, model, optimizer, where):
    """A step whose loss is not a number in one of its passes."""
    for i, p in enumerate(passes(ours, model, optimizer)):
        loss = class_loss(model, batches(1)[0]) * (float("nan") if i == where else 1.0)
        ours.backward(loss)
        p.record(loss)
    optimizer.step()


@pytest.mark.parametrize("scaled", [False, True], ids=["no-scaler", "scaler"])
@pytest.mark.parametrize("where", [0, 1])
def test_a_step_that_is_not_finite_is_skipped_and_accelerate_knows(where, scaled):
    ours = with_scaler() if scaled else accelerator()
    model, optimizer, schedule = ours.prepare(*unprepared(SAM(rho=0.1), norm_net))
    step(ours, model, optimizer, batches(1)[0])
    before = copy.deepcopy(model.state_dict())
    nan_at(ours, model, optimizer, where)
    schedule.step()
    assert ours.optimizer_step_was_skipped
    assert schedule.get_last_lr() == [0.1]
    assert_same(model.state_dict(), before)
    assert not scaled or ours.scaler.get_scale() == 2.0**15
    step(ours, model, optimizer, batches(1)[0])
    schedule.step()
    assert not ours.optimizer_step_was_skipped
    assert schedule.get_last_lr() == pytest.approx([0.09])


@pytest.mark.parametrize("how", ["break", "exception", "with"])
def test_leaving_the_loop_restores_the_weights(how):
    ours = accelerator()
    model, optimizer, _ = ours.prepare(*unprepared(SAM(rho=0.1), norm_net))
    before = copy.deepcopy(model.state_dict())
    moved = []

    def leave():
        for p in all_passes:
            moved.append(
                not torch.equal(flat(model.parameters()), flat(before[n] for n, _ in model.named_parameters()))
            )
            loss = class_loss(model, batches(1)[0])
            ours.backward(loss)
            p.record(loss)
            if len(moved) == 2:
                if how == "exception":
                    raise KeyboardInterrupt
                return

    if how == "with":
        with passes(ours, model, optimizer) as all_passes:
            leave()
    else:
        all_passes = passes(ours, model, optimizer)
        with suppress(KeyboardInterrupt):
            leave()
        del all_passes
    assert moved == [False, True]
    assert_same(model.state_dict(), before)


@pytest.mark.parametrize("name", ["sam", "eigen-sam"])
def test_a_state_that_was_saved_continues_bitwise(tmp_path, name):
    ours = accelerator()
    model, optimizer, schedule = ours.prepare(*unprepared(METHODS[name]))
    found = []
    for i, batch in enumerate([*batches(3), *batches(3), *batches(3)]):
        if i == 3:
            ours.save_state(str(tmp_path))
        if i == 6:
            found.append(copy.deepcopy(model.state_dict()))
            ours.load_state(str(tmp_path))
        step(ours, model, optimizer, batch)
        schedule.step()
    assert_same(model.state_dict(), found[0])
