"""Fabric: real trainings compared with a plain loop, in one process and in two, and what people do wrong with it."""

import numpy
import pytest
import torch
from frameworks import lightning_workers
from frameworks.lightning_workers import METHODS, free_port
from frameworks.loops import DATA, EPOCHS, distance, few_methods, plain
from frameworks.misuse import assert_every_row_is_tested, assert_refused, assert_told, assert_warned
from lightning.fabric import Fabric
from lightning.fabric.plugins import MixedPrecision
from methods.cases import every_method
from optim.problems import BASES, build, flat, halves, loss_of, mlp, noisy_net, step_by_passes

import flatwise as fw
from flatwise.methods import SAM, EigenSAM

PAGE = "fabric.md"


class Run:
    """Fabric, and what it made of a fresh model and optimizer."""

    def __init__(self, method, plugins=None):
        self.fabric = Fabric(accelerator="cpu", devices=1, plugins=plugins)
        self.bare = build(method, net=noisy_net)
        self.model, self.optimizer = self.fabric.setup(self.bare.model, self.bare.opt)

    @property
    def scaler(self):
        return getattr(self.fabric.strategy.precision, "scaler", None)

    def loss_and_backward(self, batch):
        loss = loss_of(self.model, batch)
        self.fabric.backward(loss)
        return loss


def by_passes(run, batch):
    for p in run.optimizer.passes(run.scaler):
        p.record(run.loss_and_backward(batch))
    run.optimizer.step()


def by_closure(run, batch):
    run.optimizer.step(lambda: run.loss_and_backward(batch))


def by_halves(run, batch):
    for p in run.optimizer.passes():
        for part in halves(batch):
            p.record(run.loss_and_backward(part))
    run.optimizer.step()


def by_closures(run, batch):
    run.optimizer.step([lambda part=part: run.loss_and_backward(part) for part in halves(batch)])


def clipped(run, batch):
    for p in run.optimizer.passes(run.scaler):
        p.record(run.loss_and_backward(batch))
    run.fabric.clip_gradients(run.model, run.optimizer, max_norm=0.3, error_if_nonfinite=False)
    run.optimizer.step()


def train(method, step=by_passes, plugins=None, epochs=EPOCHS):
    run = Run(method, plugins)
    for number, batch in enumerate(DATA * epochs):
        torch.manual_seed(number)
        step(run, batch)
    return run


def half_precision(scale=2.0**10):
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=3))


# --- one process ------------------------------------------------------------------------------------------------------


@every_method
@pytest.mark.parametrize("step", [by_passes, by_closure])
def test_training_equals_a_plain_loop(case, step):
    run = train(case.method, step)
    assert distance(run.bare.model, plain(case.method)[0].model) == 0


@few_methods
@pytest.mark.parametrize("step", [by_halves, by_closures])
def test_micro_batches_equal_a_plain_loop(case, step):
    run = train(case.method, step)
    assert distance(run.bare.model, plain(case.method, halved=True)[0].model) < 1e-6


@few_methods
def test_float16_equals_a_plain_loop_with_a_scaler(case):
    run = train(case.method, clipped, half_precision(2.0**22))
    scaler = half_precision(2.0**22).scaler
    autocast = lambda: torch.autocast("cpu", torch.float16, cache_enabled=False)
    expected = plain(case.method, autocast=autocast, scaler=scaler, clip=0.3)[0]
    assert distance(run.bare.model, expected.model) == 0
    assert run.scaler.get_scale() == scaler.get_scale()
    assert run.optimizer.diagnostics["skipped"] == expected.opt.diagnostics["skipped"] > 0


def test_a_checkpoint_of_fabric_continues_bitwise(tmp_path):
    method = EigenSAM(rho=0.1, alpha=0.5, every=2, iterations=2)
    run, resumed = train(method, epochs=1), Run(method)
    run.fabric.save(tmp_path / "half.ckpt", {"model": run.model, "optimizer": run.optimizer})
    resumed.fabric.load(tmp_path / "half.ckpt", {"model": resumed.model, "optimizer": resumed.optimizer})
    for each in (run, resumed):
        torch.manual_seed(0)
        by_passes(each, DATA[0])
    assert distance(resumed.bare.model, run.bare.model) == 0
    assert resumed.optimizer.diagnostics == run.optimizer.diagnostics


def test_an_optimizer_around_fabrics_equals_one_inside():
    fabric, model = Fabric(accelerator="cpu", devices=1), noisy_net()
    wrapped, base = fabric.setup(model, BASES["sgd"](model.parameters()))
    optimizer = fw.SharpnessAware(base, SAM(0.1), model=wrapped)
    for number, batch in enumerate(DATA * EPOCHS):
        torch.manual_seed(number)
        for p in optimizer.passes():
            loss = loss_of(wrapped, batch)
            fabric.backward(loss)
            p.record(loss)
        optimizer.step()
    assert distance(model, plain(SAM(0.1))[0].model) == 0


# --- two processes ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What both ranks found, by scenario."""
    folder = tmp_path_factory.mktemp("two-processes")
    torch.multiprocessing.spawn(lightning_workers.run, args=(str(folder), free_port()), nprocs=2)
    found = [torch.load(folder / f"{rank}.pt") for rank in range(2)]
    return {name: (found[0][name], found[1][name]) for name in found[0]}


def one_process(method):
    run = build(method, net=mlp)
    for batch in DATA:
        step_by_passes(run, batch)
    return flat(run.params)


@pytest.mark.parametrize("how", ["fabric", "accumulated"])
@pytest.mark.parametrize("name", METHODS)
def test_two_processes_equal_one(results, how, name):
    first, second = results[f"{how} {name}"]
    assert torch.equal(first, second)
    # gradient-norm divides the difference of two gradients by its small length
    tolerance = 1e-5 if name == "gradient-norm" else 1e-6
    torch.testing.assert_close(first, one_process(METHODS[name]), rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", ["sam", "eigen-sam"])
def test_lightning_tells_the_optimizer_of_data_parallelism(results, name):
    (first, kind), (second, _) = results[f"lightning {name}"]
    assert kind == "DistributedDataParallel"
    assert torch.equal(first, second)
    torch.testing.assert_close(first, one_process(METHODS[name]), rtol=0, atol=1e-6)


UNSYNCHRONISED = "the last micro-batch of this pass ran under no_sync"
UNAWARE = "the optimizer's model is neither a DistributedDataParallel nor sharded"


@pytest.mark.parametrize(("scenario", "sentence"), [("never synchronised", UNSYNCHRONISED), ("unaware", UNAWARE)])
def test_a_bad_use_in_two_processes_is_told_on_both(results, scenario, sentence):
    for messages in results[scenario]:
        assert sum(sentence in message for message in messages) == 1
    assert_told(PAGE, sentence)


# --- bad uses ---------------------------------------------------------------------------------------------------------


def one_backward():
    run = Run(SAM())
    run.loss_and_backward(DATA[0])
    run.optimizer.step()


def no_record():
    run = Run(SAM())
    for _ in run.optimizer.passes():
        run.loss_and_backward(DATA[0])


def backward_of_torch():
    run = Run(SAM(), half_precision())
    for p in run.optimizer.passes(run.scaler):
        p.backward(loss_of(run.model, DATA[0]))


def no_scaler():
    run = Run(SAM(), half_precision())
    for p in run.optimizer.passes():
        p.record(run.loss_and_backward(DATA[0]))
    run.optimizer.step()


def a_closure_with_a_scaler():
    by_closure(Run(SAM(), half_precision()), DATA[0])


def steps_in_the_loop():
    run = Run(SAM())
    for p in run.optimizer.passes():
        p.record(run.loss_and_backward(DATA[0]))
        run.optimizer.step()


def forward_before_the_loop():
    run = Run(SAM())
    loss = loss_of(run.model, DATA[0])
    for p in run.optimizer.passes():
        p.backward(loss)


def both_backwards():
    run = Run(SAM())
    for p in run.optimizer.passes():
        p.backward(loss_of(run.model, DATA[0]))
        p.record(run.loss_and_backward(DATA[1]))


def wraps_the_optimizer_of_fabric():
    run = Run(SAM())
    fw.SharpnessAware(run.optimizer, SAM(), model=run.model)


def accumulates_outside():
    run = Run(SAM())
    run.loss_and_backward(DATA[0])
    by_closure(run, DATA[1])
    by_closure(run, DATA[2])


def clips_in_the_loop():
    run = Run(SAM())
    for _ in range(2):
        for p in run.optimizer.passes():
            p.backward(loss_of(run.model, DATA[0]))
            run.fabric.clip_gradients(run.model, run.optimizer, max_norm=0.1)
        run.optimizer.step()


def mixes_in_the_loop():
    run = Run(SAM())
    for _ in range(2):
        for p in run.optimizer.passes():
            share = float(numpy.random.beta(1, 1))
            p.backward(share * loss_of(run.model, DATA[0]))
        run.optimizer.step()


REFUSED = {
    "one backward": (one_backward, RuntimeError, "step() alone cannot do it"),
    "no record": (no_record, ValueError, "the pass was not told its loss"),
    "torch's backward": (backward_of_torch, RuntimeError, "requires you to call `fabric.backward(loss)`"),
    "no scaler": (no_scaler, RuntimeError, "a GradScaler steps this optimizer, but its passes did not know it"),
    "closure and scaler": (a_closure_with_a_scaler, RuntimeError, "Closure use is not currently supported"),
    "a step in the loop": (steps_in_the_loop, RuntimeError, "step() was called while its passes were unfinished"),
    "forward before": (forward_before_the_loop, RuntimeError, "every pass needs a forward of its own"),
    "two kinds of backward": (both_backwards, RuntimeError, "driven by both p.backward and p.record"),
    "wrapped twice": (wraps_the_optimizer_of_fabric, TypeError, "base_optimizer is a SharpnessAware already"),
}
WARNED = {
    "accumulation": (accumulates_outside, ".grad holds gradients from a backward outside of it"),
    "clipping in the loop": (clips_in_the_loop, "gradients were changed within a pass"),
    "mixup": (mixes_in_the_loop, "random numbers were drawn from Python's or numpy's global generator"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_use_is_refused_in_words(name):
    assert_refused(PAGE, *REFUSED[name])


@pytest.mark.parametrize("name", WARNED)
def test_a_dangerous_use_is_warned_of_once(name):
    assert_warned(PAGE, *WARNED[name])


def test_every_row_of_the_recipe_is_tested():
    assert_every_row_is_tested(PAGE, [row[-1] for row in (REFUSED | WARNED).values()] + [UNSYNCHRONISED, UNAWARE])
