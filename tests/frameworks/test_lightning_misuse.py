"""What people do wrong with Lightning and SAM, and the sentence that each of them gets. The recipe's table says the same."""

import logging
import random

import pytest
import torch
from frameworks.lightning_modules import IGNORED, Bare, Manual, Module, fit, half_precision
from frameworks.loops import DATA, distance
from frameworks.misuse import assert_every_row_is_tested, assert_refused, assert_warned
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from optim.problems import BASES, flat, loss_of

import flatwise as fw
from flatwise.frameworks.lightning import SharpnessAwareMixin
from flatwise.methods import SAM

pytestmark = pytest.mark.filterwarnings(*IGNORED)


@pytest.fixture(autouse=True)
def _quiet(caplog):
    caplog.set_level(logging.ERROR, "lightning.pytorch")


def accumulates():
    fit(Module(SAM()), accumulate_grad_batches=2)


def accumulates_from_the_second_epoch_on():
    fit(Module(SAM()), callbacks=[GradientAccumulationScheduler({1: 2})])


def accumulates_without_the_mixin():
    fit(Bare(SAM()), accumulate_grad_batches=2)


def steps_in_float16_without_the_mixin():
    fit(Bare(SAM()), plugins=half_precision())


def leaves_the_mixin_out():
    fit(Bare(SAM()))


def puts_the_mixin_last():
    class Last(LightningModule, SharpnessAwareMixin):
        pass


def forgets_the_model():
    class Forgets(Module):
        def configure_optimizers(self):
            return fw.SharpnessAware(BASES["sgd"](self.parameters()), self.method)

    fit(Forgets(SAM()))


def schedules_the_base_optimizer():
    class OnTheBase(Module):
        def configure_optimizers(self):
            base = BASES["sgd"](self.parameters())
            schedule = torch.optim.lr_scheduler.StepLR(base, 1)
            return [fw.SharpnessAware(base, self.method, model=self)], [schedule]

    fit(OnTheBase(SAM()))


def augments_in_training_step():
    class Mixes(Module):
        def training_step(self, batch, batch_idx):
            return random.betavariate(1, 1) * super().training_step(batch, batch_idx)

    fit(Mixes(SAM()))


class Once(Manual):
    def training_step(self, batch, batch_idx):
        self.manual_backward(loss_of(self.net, batch))
        self.optimizers().step()


class Silent(Manual):
    def training_step(self, batch, batch_idx):
        for _ in self.optimizers().passes():
            self.manual_backward(loss_of(self.net, batch))
        self.optimizers().step()


class TooEarly(Manual):
    def training_step(self, batch, batch_idx):
        for p in self.optimizers().passes():
            p.backward(loss_of(self.net, batch))
            self.optimizers().step()


class BackwardBefore(Manual):
    def training_step(self, batch, batch_idx):
        def closure():
            loss = loss_of(self.net, batch)
            self.manual_backward(loss)
            return loss

        self.optimizers().zero_grad()
        closure()
        self.optimizers().step(closure)

    def on_train_batch_end(self, outputs, batch, batch_idx):
        pass


class WithoutScaler(Manual):
    def scaler(self):
        return None


class WithPlugin(Manual):
    def scaler(self):
        return self.trainer.precision_plugin


PAGE = "lightning.md"
REFUSED = {
    "accumulation": (accumulates, ValueError, "Lightning accumulates micro-batches outside of this step"),
    "late accumulation": (
        accumulates_from_the_second_epoch_on,
        RuntimeError,
        "Lightning accumulates micro-batches outside of this step",
    ),
    "accumulation without the mixin": (
        accumulates_without_the_mixin,
        RuntimeError,
        "Lightning accumulates micro-batches outside of this step",
    ),
    "float16 without the mixin": (
        steps_in_float16_without_the_mixin,
        RuntimeError,
        "Every pass has to know the scaler",
    ),
    "the mixin last": (puts_the_mixin_last, TypeError, "SharpnessAwareMixin must stand before LightningModule"),
    "a schedule of the base optimizer": (
        schedules_the_base_optimizer,
        MisconfigurationException,
        "Some schedulers are attached with an optimizer that wasn't returned from",
    ),
    "one backward": (lambda: fit(Once(SAM())), RuntimeError, "step() alone cannot do it"),
    "no record": (lambda: fit(Silent(SAM())), ValueError, "the pass was not told its loss"),
    "a step in the loop": (
        lambda: fit(TooEarly(SAM())),
        RuntimeError,
        "step() was called while its passes were unfinished",
    ),
    "no scaler": (
        lambda: fit(WithoutScaler(SAM()), plugins=half_precision()),
        RuntimeError,
        "a GradScaler steps this optimizer, but its passes did not know it",
    ),
    "a plugin for a scaler": (
        lambda: fit(WithPlugin(SAM()), plugins=half_precision()),
        TypeError,
        "scaler must be a torch.amp.GradScaler",
    ),
}
WARNED = {
    "no mixin": (leaves_the_mixin_out, "Lightning runs training_step in every pass of a step"),
    "no model": (forgets_the_model, "SharpnessAware was made without model=..."),
    "mixup": (augments_in_training_step, "random numbers were drawn from Python's or numpy's global generator"),
    "a backward before": (
        lambda: fit(BackwardBefore(SAM())),
        ".grad holds gradients from a backward outside of it",
    ),
}
IGNORE_LOGS = "ignore:Lightning runs training_step in every pass"


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.filterwarnings(IGNORE_LOGS)
def test_a_bad_use_is_refused_in_words(name):
    assert_refused(PAGE, *REFUSED[name])


@pytest.mark.parametrize("name", WARNED)
def test_a_dangerous_use_is_warned_of_once(name):
    assert_warned(PAGE, *WARNED[name])


def test_every_row_of_the_recipe_is_tested():
    assert_every_row_is_tested(PAGE, [row[-1] for row in (REFUSED | WARNED).values()])


@pytest.mark.parametrize("kind", [Module, Bare])
@pytest.mark.filterwarnings(IGNORE_LOGS)
def test_a_refused_accumulation_has_moved_nothing(kind):
    module = kind(SAM())
    before = flat(module.parameters()).clone()
    with pytest.raises((ValueError, RuntimeError)):
        fit(module, accumulate_grad_batches=2)
    assert torch.equal(flat(module.parameters()), before)


def test_one_pass_without_the_mixin_is_not_warned_of():
    module = Bare(fw.methods.SGD())
    fit(module, epochs=1)
    assert distance(module.net, Bare(None).net) > 0
    assert len(module.ends) == len(DATA)
