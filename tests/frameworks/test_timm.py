"""timm: its optimizers, schedules, scaler, averages and checkpoints around a step, the example, and what people do wrong."""

import re
import runpy
from pathlib import Path

import pytest
import timm
import torch
from frameworks.loops import DATA, EPOCHS, distance, few_methods, plain
from frameworks.misuse import assert_every_row_is_tested, assert_refused, assert_warned
from methods.cases import every_method
from optim.problems import loss_of, noisy_net, seeded
from timm.data import Mixup
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import CheckpointSaver, ModelEmaV3, NativeScaler, dispatch_clip_grad

import flatwise as fw
from flatwise.methods import SAM, SGD

PAGE = "timm.md"
EXAMPLE = Path(__file__).parents[2] / "examples" / "timm_training_loop.py"


class Run:
    """timm's parts around the small network, or another, and the updates so far."""

    def __init__(self, method=None, opt="momentum", model=None, **settings):
        self.model = model if model is not None else noisy_net()
        settings = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-2, "filter_bias_and_bn": False} | settings
        self.base = create_optimizer_v2(self.model, opt=opt, **settings)
        self.optimizer = self.base if method is None else fw.SharpnessAware(self.base, method, model=self.model)
        self.loss_scaler = NativeScaler("cpu")
        self.average = ModelEmaV3(self.model, decay=0.5)
        self.updates = 0

    @property
    def scaler(self):
        return self.loss_scaler._scaler


def step(run, batch, clip=0.3):
    """As in the example."""
    for p in run.optimizer.passes(run.scaler):
        p.backward(loss_of(run.model, batch))
    run.scaler.unscale_(run.optimizer)
    dispatch_clip_grad(run.model.parameters(), clip, mode="norm")
    run.scaler.step(run.optimizer)
    run.scaler.update()
    run.updates += 1
    run.average.update(run.model, step=run.updates)


def step_of_timm(run, batch, clip=0.3):
    """As in train.py: backward, clipping and the update in one call."""
    run.optimizer.zero_grad()
    run.loss_scaler(loss_of(run.model, batch), run.optimizer, clip_grad=clip, parameters=list(run.model.parameters()))


def train(run, step=step, epochs=EPOCHS, data=DATA):
    for number, batch in enumerate(data * epochs):
        torch.manual_seed(number)
        step(run, batch)
    return run


# --- training ---------------------------------------------------------------------------------------------------------


@every_method
def test_training_equals_a_plain_loop(case):
    assert distance(train(Run(case.method)).model, plain(case.method, clip=0.3)[0].model) < 1e-6


@pytest.mark.parametrize("opt", ["momentum", "adamw", "lion", "lookahead_momentum"])
def test_a_method_of_one_pass_is_timm_without_us(opt):
    ours, theirs = train(Run(SGD(), opt, lr=0.01)), train(Run(None, opt, lr=0.01), step_of_timm)
    assert distance(ours.model, theirs.model) == 0
    assert distance(train(Run(SGD(), opt, lr=0.01), step_of_timm).model, theirs.model) == 0


@pytest.mark.parametrize("opt", ["nadamw", "lamb", "adopt", "muon", "lookahead_adamw", "madgrad", "rmsproptf"])
def test_optimizers_of_timm_step_along_the_direction(opt):
    """The base is given SAM's gradients by hand."""
    ours, by_hand = Run(SAM(0.1), opt, lr=0.01), Run(None, opt, lr=0.01)
    for number, batch in enumerate(DATA):
        torch.manual_seed(number)
        for p in ours.optimizer.passes():
            p.backward(loss_of(ours.model, batch))
        for theirs, mine in zip(by_hand.model.parameters(), ours.model.parameters(), strict=True):
            theirs.grad = mine.grad.clone()
        ours.optimizer.step()
        by_hand.optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(ours.model.parameters(), by_hand.model.parameters(), strict=True))


def network():
    make = lambda: timm.create_model(
        "test_efficientnet", pretrained=False, in_chans=1, num_classes=3, drop_path_rate=0.5
    )
    return seeded(make)


def test_a_network_of_timm_trains_as_by_hand():
    """BatchNorm, drop path, layer-wise learning rates; two backward passes and the displacement written out."""
    images = [torch.randn(8, 1, 16, 16, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    data = [(image, torch.arange(8) % 3) for image in images]
    settings = {"lr": 0.05, "layer_decay": 0.8}
    ours = train(Run(SAM(0.1), model=network(), **settings), data=data, epochs=1)
    by_hand = train(Run(None, model=network(), **settings), sam_by_hand, data=data, epochs=1)
    assert distance(ours.model, by_hand.model) < 1e-6
    assert distance(ours.model, network()) > 1e-2


def sam_by_hand(run, batch, rho=0.1, clip=0.3):
    parameters = list(run.model.parameters())
    noise = torch.get_rng_state()
    gradient = torch.autograd.grad(loss_of(run.model, batch), parameters)
    buffers = {name: b.clone() for name, b in run.model.named_buffers()}
    before = [p.detach().clone() for p in parameters]
    norm = torch.linalg.vector_norm(torch.stack([g.norm() for g in gradient]))
    with torch.no_grad():
        for p, g in zip(parameters, gradient, strict=True):
            p.add_(g * (rho / norm))
    torch.set_rng_state(noise)
    direction = torch.autograd.grad(loss_of(run.model, batch), parameters)
    with torch.no_grad():
        for p, w, d in zip(parameters, before, direction, strict=True):
            p.copy_(w)
            p.grad = d
        for name, b in run.model.named_buffers():
            b.copy_(buffers[name])
    dispatch_clip_grad(parameters, clip)
    run.optimizer.step()


# --- around the step --------------------------------------------------------------------------------------------------


def test_schedules_of_timm_set_the_learning_rate():
    run = Run(SAM(0.1))
    settings = {"sched": "cosine", "num_epochs": 2, "warmup_epochs": 1, "warmup_lr": 1e-3, "step_on_epochs": False}
    theirs = create_optimizer_v2(noisy_net(), opt="momentum", lr=0.1)
    schedules = [create_scheduler_v2(o, updates_per_epoch=6, **settings)[0] for o in (run.optimizer, theirs)]
    for update, batch in enumerate(DATA * 2):
        step(run, batch)
        for schedule in schedules:
            schedule.step_update(num_updates=update + 1)
        assert run.base.param_groups[0]["lr"] == theirs.param_groups[0]["lr"]


def test_the_average_is_of_the_weights_after_each_step():
    run, expected = Run(SAM(0.1)), plain(SAM(0.1), epochs=0)[0].model
    train(run)
    for steps in range(1, len(DATA) * EPOCHS + 1):
        weights = plain(SAM(0.1), clip=0.3, data=(DATA * EPOCHS)[:steps], epochs=1)[0].model
        decay = run.average.get_decay(steps)
        with torch.no_grad():
            for e, w in zip(expected.parameters(), weights.parameters(), strict=True):
                e.lerp_(w, 1 - decay)
    for a, e in zip(run.average.module.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(a, e, rtol=0, atol=1e-6)


@pytest.mark.parametrize("opt", ["momentum", "lookahead_adamw"])
@few_methods
def test_a_checkpoint_of_timm_continues_bitwise(case, opt, tmp_path):
    run = train(Run(case.method, opt, lr=0.01), epochs=1)
    saver = CheckpointSaver(
        run.model, run.optimizer, amp_scaler=run.loss_scaler, checkpoint_dir=tmp_path, recovery_dir=tmp_path
    )
    saver.save_checkpoint(0, metric=1.0)
    resumed = Run(case.method, opt, lr=0.01)
    timm.models.resume_checkpoint(
        resumed.model, tmp_path / "last.pth.tar", optimizer=resumed.optimizer, loss_scaler=resumed.loss_scaler
    )
    assert distance(train(resumed).model, train(run).model) == 0


def test_the_example_learns(capsys):
    runpy.run_path(str(EXAMPLE))
    found = re.findall(r"accuracy ([\d.]+) %, of the averaged weights ([\d.]+) %", capsys.readouterr().out)
    assert min(float(value) for value in found[-1]) > 80
    assert float(found[0][0]) < float(found[-1][0])


# --- bad uses ---------------------------------------------------------------------------------------------------------


def no_passes():
    run = Run(SAM())
    run.loss_scaler(loss_of(run.model, DATA[0]), run.optimizer)


def updates_in_every_pass():
    run = Run(SAM())
    for _ in run.optimizer.passes(run.scaler):
        run.loss_scaler(loss_of(run.model, DATA[0]), run.optimizer)


def the_loss_scaler_of_timm():
    run = Run(SAM())
    for p in run.optimizer.passes(run.loss_scaler):
        p.backward(loss_of(run.model, DATA[0]))


def no_record():
    run = Run(SAM())
    for _ in run.optimizer.passes(run.scaler):
        run.loss_scaler(loss_of(run.model, DATA[0]), run.optimizer, need_update=False)


def passes_without_the_scaler():
    run = Run(SAM())
    for p in run.optimizer.passes():
        loss = loss_of(run.model, DATA[0])
        run.loss_scaler(loss, run.optimizer, need_update=False)
        p.record(loss)
    run.scaler.step(run.optimizer)


def a_step_around_the_scaler():
    run = Run(SAM())
    for p in run.optimizer.passes(run.scaler):
        p.backward(loss_of(run.model, DATA[0]))
    run.optimizer.step()


def forward_before_the_passes():
    run = Run(SAM())
    loss = loss_of(run.model, DATA[0])
    for p in run.optimizer.passes(run.scaler):
        p.backward(loss)


def a_second_order_base():
    Run(SAM(), "adahessian", momentum=None)


def a_name_for_the_base():
    fw.SharpnessAware("sgd", SAM(), model=noisy_net())


def twice(in_the_loop):
    """Two steps, with something in the loop over passes that does not belong there."""
    run = Run(SAM())
    for _ in range(2):
        for p in run.optimizer.passes(run.scaler):
            p.backward(loss_of(run.model, DATA[0]))
            in_the_loop(run)
        run.scaler.step(run.optimizer)
        run.scaler.update()


def mixes_in_the_loop():
    mixup, run = Mixup(mixup_alpha=0.2, num_classes=3), Run(SAM())
    for _ in range(2):
        for p in run.optimizer.passes():
            inputs, targets = mixup(DATA[0][0].clone(), DATA[0][1])
            p.backward(torch.nn.functional.cross_entropy(run.model(inputs), targets))
        run.optimizer.step()


def clips_in_the_loop():
    twice(lambda run: dispatch_clip_grad(run.model.parameters(), 1.0))


def schedules_in_the_loop():
    def update(run):
        run.updates += 1
        schedule.setdefault(
            id(run), create_scheduler_v2(run.optimizer, num_epochs=1, step_on_epochs=False, updates_per_epoch=10)[0]
        ).step_update(run.updates)

    schedule = {}
    twice(update)


def accumulates_outside():
    run = Run(SAM())
    for _ in range(2):
        run.optimizer.zero_grad()
        run.loss_scaler(loss_of(run.model, DATA[0]), run.optimizer, need_update=False)
        step(run, DATA[1])


def forgets_the_model():
    model = noisy_net()
    fw.SharpnessAware(create_optimizer_v2(model, opt="sgd", lr=0.1), SAM())


REFUSED = {
    "no passes": (no_passes, RuntimeError, "Every pass has to know the scaler"),
    "an update in every pass": (
        updates_in_every_pass,
        RuntimeError,
        "step() was called while its passes were unfinished",
    ),
    "timm's scaler": (the_loss_scaler_of_timm, TypeError, "scaler must be a torch.amp.GradScaler"),
    "no record": (no_record, ValueError, "the pass was not told its loss"),
    "no scaler": (
        passes_without_the_scaler,
        RuntimeError,
        "a GradScaler steps this optimizer, but its passes did not know",
    ),
    "around the scaler": (a_step_around_the_scaler, RuntimeError, "these passes had a GradScaler"),
    "forward before": (forward_before_the_passes, RuntimeError, "every pass needs a forward of its own"),
    "second order": (a_second_order_base, ValueError, "Adahessian differentiates gradients again"),
    "a name": (a_name_for_the_base, TypeError, "base_optimizer must be a torch.optim.Optimizer"),
}
WARNED = {
    "mixup": (mixes_in_the_loop, "random numbers were drawn from Python's or numpy's global generator"),
    "clipping in the loop": (clips_in_the_loop, "gradients were changed within a pass"),
    "a schedule in the loop": (schedules_in_the_loop, "the learning rate changed within the passes of this step"),
    "accumulation": (accumulates_outside, ".grad holds gradients from a backward outside of it"),
    "no model": (forgets_the_model, "SharpnessAware was made without model=..."),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_use_is_refused_in_words(name):
    assert_refused(PAGE, *REFUSED[name])


@pytest.mark.parametrize("name", WARNED)
def test_a_dangerous_use_is_warned_of_once(name):
    assert_warned(PAGE, *WARNED[name])


def test_every_row_of_the_recipe_is_tested():
    assert_every_row_is_tested(PAGE, [row[-1] for row in (REFUSED | WARNED).values()])
