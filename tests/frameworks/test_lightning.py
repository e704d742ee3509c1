"""Lightning's Trainer, automatic and manual: real trainings, compared with a plain loop."""

import logging

import pytest
import torch
from frameworks.lightning_modules import (
    IGNORED,
    Bare,
    Manual,
    ManualByClosure,
    ManualHalved,
    Module,
    fit,
    half_precision,
)
from frameworks.loops import DATA, distance, few_methods, plain
from lightning.pytorch.callbacks import StochasticWeightAveraging
from methods.cases import every_method
from optim.problems import flat, loss_of

import flatwise as fw
from flatwise.methods import SAM, SGD, EigenSAM

pytestmark = pytest.mark.filterwarnings(*IGNORED)
EIGEN = EigenSAM(rho=0.1, alpha=0.5, every=3, iterations=2)


@pytest.fixture(autouse=True)
def _quiet(caplog):
    caplog.set_level(logging.ERROR, "lightning.pytorch")


# --- automatic optimization -------------------------------------------------------------------------------------------


@every_method
def test_training_equals_a_plain_loop(case):
    module = Module(case.method)
    trainer = fit(module)
    expected, records = plain(case.method)
    assert distance(module.net, expected.model) == 0
    assert trainer.global_step == len(records) == 12
    assert module.forwards == sum(record["evaluations"] for record in records)


def test_a_method_of_one_pass_is_lightning_without_us():
    module, untouched = Module(SGD()), Module(None)
    fit(module)
    fit(untouched)
    assert distance(module.net, untouched.net) == 0
    assert module.ends == untouched.ends


@few_methods
def test_what_is_logged_is_the_loss_of_the_step(case):
    module = Module(case.method)
    trainer = fit(module)
    losses = [record["loss"] for record in plain(case.method)[1]]
    assert module.ends == losses
    assert float(trainer.callback_metrics["loss_step"]) == losses[-1]
    assert float(trainer.callback_metrics["loss_epoch"]) == pytest.approx(sum(losses[6:]) / 6, rel=1e-6)


@few_methods
@pytest.mark.parametrize("how", [{"clip": 0.3}, {"clip_value": 0.02}])
def test_the_direction_is_clipped_once(case, how):
    module = Module(case.method)
    algorithm = "norm" if "clip" in how else "value"
    fit(module, gradient_clip_val=next(iter(how.values())), gradient_clip_algorithm=algorithm)
    assert distance(module.net, plain(case.method, **how)[0].model) == 0
    assert distance(module.net, plain(case.method)[0].model) > 1e-3


@few_methods
@pytest.mark.filterwarnings("ignore:Lightning runs training_step in every pass")
def test_without_the_mixin_the_weights_are_exact_as_well(case):
    module = Bare(case.method)
    fit(module, gradient_clip_val=0.3)
    assert distance(module.net, plain(case.method, clip=0.3)[0].model) == 0


def test_bfloat16_equals_a_plain_loop_under_autocast():
    module = Module(EIGEN)
    fit(module, precision="bf16-mixed")
    autocast = lambda: torch.autocast("cpu", torch.bfloat16, cache_enabled=False)
    assert distance(module.net, plain(EIGEN, autocast=autocast)[0].model) == 0


@few_methods
@pytest.mark.parametrize("scale", [2.0**10, 2.0**22], ids=["fits", "overflows at first"])
def test_float16_equals_a_plain_loop_with_a_scaler(case, scale):
    module, plugin = Module(case.method), half_precision(scale)
    trainer = fit(module, plugins=plugin, gradient_clip_val=0.3)
    scaler = half_precision(scale).scaler
    autocast = lambda: torch.autocast("cpu", torch.float16, cache_enabled=False)
    expected = plain(case.method, autocast=autocast, scaler=scaler, clip=0.3)[0]
    assert distance(module.net, expected.model) == 0
    assert plugin.scaler.get_scale() == scaler.get_scale()
    skipped = [trainer.optimizers[0].diagnostics["skipped"], expected.opt.diagnostics["skipped"]]
    assert skipped[0] == skipped[1]
    assert (skipped[0] > 0) == (scale > 2**20)


def test_schedulers_step_once_a_step():
    module = Module(SAM(0.1), schedule=True)
    trainer = fit(module)
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.1 * 0.5**3


@few_methods
def test_resuming_continues_bitwise(case, tmp_path):
    whole = Module(case.method, schedule=True)
    fit(whole, epochs=3)
    fit(Module(case.method, schedule=True), epochs=2).save_checkpoint(tmp_path / "half.ckpt")
    resumed = Module(case.method, schedule=True)
    fit(resumed, epochs=3, resume=tmp_path / "half.ckpt")
    assert distance(resumed.net, whole.net) == 0
    assert len(resumed.ends) == len(DATA)


def test_a_batch_that_training_step_skips_changes_nothing():
    class Skips(Module):
        def training_step(self, batch, batch_idx):
            return None if batch_idx == 5 else super().training_step(batch, batch_idx)

        def on_train_batch_end(self, outputs, batch, batch_idx):
            self.after = [*getattr(self, "after", []), flat(self.parameters()).clone()]

    module = Skips(SAM(0.1))
    with pytest.warns(UserWarning, match="`training_step` returned `None`"):
        fit(module, epochs=1)
    assert torch.equal(module.after[5], module.after[4])
    assert not torch.equal(module.after[4], module.after[3])


def test_weight_averaging_renews_batchnorm_without_steps():
    module = Module(SAM(0.1))
    module.on_train_batch_end = lambda *_: None
    fit(module, callbacks=[StochasticWeightAveraging(1e-2, swa_epoch_start=1)])
    assert int(module.net[1].num_batches_tracked) == len(DATA)


def test_hooks_before_the_update_see_the_direction_once():
    class Looks(Module):
        def on_before_optimizer_step(self, optimizer):
            seen.append((type(optimizer), flat([p.grad for p in self.parameters()])))

    seen = []
    fit(Looks(SAM(0.1)), epochs=1, data=DATA[:1])
    run = plain(SAM(0.1), epochs=0)[0]
    torch.manual_seed(0)
    for p in run.opt.passes():
        p.backward(loss_of(run.model, DATA[0]))
    assert [kind for kind, _ in seen] == [fw.SharpnessAware]
    assert torch.equal(seen[0][1], flat([p.grad for p in run.params]))


def test_metrics_of_ones_own_count_one_pass():
    class Counting(Module):
        counted = 0

        def training_step(self, batch, batch_idx):
            self.counted += self.counts
            return super().training_step(batch, batch_idx)

    module = Counting(EIGEN)
    fit(module)
    assert module.counted == 12
    assert module.forwards > 24


# --- manual optimization ----------------------------------------------------------------------------------------------


@few_methods
@pytest.mark.parametrize("kind", [Manual, ManualByClosure, ManualHalved])
def test_manual_optimization_equals_a_plain_loop(case, kind):
    module = kind(case.method)
    module.on_train_batch_end = lambda *_: None
    trainer = fit(module)
    assert distance(module.net, plain(case.method, halved=kind.halved)[0].model) < 1e-6
    assert trainer.global_step == 12


def test_manual_float16_passes_the_scaler_on():
    module, plugin = ManualHalved(SAM(0.1)), half_precision(2.0**22)
    module.on_train_batch_end = lambda *_: None
    fit(module, plugins=plugin)
    scaler = half_precision(2.0**22).scaler
    autocast = lambda: torch.autocast("cpu", torch.float16, cache_enabled=False)
    expected = plain(SAM(0.1), autocast=autocast, scaler=scaler, halved=True)[0]
    assert distance(module.net, expected.model) < 1e-6
    assert plugin.scaler.get_scale() == scaler.get_scale()


def test_the_optimizer_can_be_reached_through_lightnings():
    class Looks(Manual):
        def training_step(self, batch, batch_idx):
            super().training_step(batch, batch_idx)
            found.append((fw.unwrap(self.optimizers()), dict(self.optimizers().diagnostics)))

    found = []
    module = Looks(SAM(0.1))
    module.on_train_batch_end = lambda *_: None
    trainer = fit(module, epochs=1, data=DATA[:1])
    assert found[0][0] is trainer.optimizers[0]
    assert found[0][1]["evaluations"] == 2
