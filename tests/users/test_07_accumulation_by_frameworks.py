"""Problem 7, where a framework accumulates: it is refused with the way out, before a weight has moved.

Lightning #17650. Under `accumulate_grad_batches=2` a correct SAM runs the last micro-batch only, and adds it to what the first
one left; under `accelerator.accumulate` a step with a closure never sees the first one.
"""

import logging

import pytest
import torch
from torch.utils.data import DataLoader
from users.plain import batches, flat, loss_of, momentum_sgd, network, sam_by_hand

import flatwise as fw

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*`isinstance.treespec, LeafSpec.` is deprecated"),
]
SAM = fw.methods.SAM(rho=0.1)


def trained_by_hand(data):
    """SAM by hand on batches of two of the given ones."""
    model = network()
    base = momentum_sgd(model.parameters())
    for pair in zip(data[::2], data[1::2]):
        sam_by_hand(model, base, lambda pair=pair: sum(loss_of(model, batch) for batch in pair) / 2, 0.1)
    return flat(model)


def lightning_module(automatic):
    from lightning.pytorch import LightningModule

    class Module(LightningModule):
        def __init__(self):
            super().__init__()
            self.net = network()
            self.automatic_optimization = automatic
            self.waiting = []

        def training_step(self, batch, _):
            if automatic:
                return loss_of(self.net, batch)
            self.waiting.append(batch)
            if len(self.waiting) == 2:  # as the error says
                for p in self.optimizers().passes():
                    for each in self.waiting:
                        loss = loss_of(self.net, each)
                        self.manual_backward(loss)
                        p.record(loss)
                self.optimizers().step()
                self.waiting = []
            return None

        def configure_optimizers(self):
            return fw.SharpnessAware(momentum_sgd(self.parameters()), SAM, model=self)

    return Module()


def fit(module, data, caplog, **options):
    from lightning.pytorch import Trainer

    caplog.set_level(logging.ERROR, "lightning.pytorch")
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = Trainer(max_epochs=1, accelerator="cpu", **quiet, **options)
    trainer.fit(module, DataLoader(data, batch_size=None))


def test_lightnings_accumulation_is_refused_with_the_way_out(caplog):
    module = lightning_module(automatic=True)
    before = flat(module.net)
    with pytest.raises((RuntimeError, ValueError), match="run all micro-batches in each pass"):
        fit(module, batches(4), caplog, accumulate_grad_batches=2)
    assert torch.equal(flat(module.net), before)


def test_the_way_out_under_lightning_trains_on_all_micro_batches(caplog):
    module = lightning_module(automatic=False)
    fit(module, batches(8), caplog)
    torch.testing.assert_close(flat(module.net), trained_by_hand(batches(8)))


@pytest.fixture
def accelerate():
    """The package, whose settings belong to the process: left as they were."""
    import accelerate
    from accelerate.state import AcceleratorState, GradientState

    yield accelerate
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def prepared(accelerator):
    model = network()
    return accelerator.prepare(model, fw.SharpnessAware(momentum_sgd(model.parameters()), SAM, model=model))


def test_accelerates_accumulation_is_refused_with_the_way_out(accelerate):
    from flatwise.frameworks.accelerate import passes

    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    model, optimizer = prepared(accelerator)
    before = flat(model)
    with pytest.raises(ValueError, match="accumulate inside the pass"):
        passes(accelerator, model, optimizer)
    assert torch.equal(flat(model), before)


def test_the_way_out_under_accelerate_trains_on_all_micro_batches(accelerate):
    from flatwise.frameworks.accelerate import passes

    accelerator = accelerate.Accelerator(cpu=True)
    model, optimizer = prepared(accelerator)
    data = batches(8)
    for pair in zip(data[::2], data[1::2]):
        for p in passes(accelerator, model, optimizer):
            for batch in pair:
                loss = loss_of(model, batch)
                accelerator.backward(loss)
                p.record(loss)
        optimizer.step()
    torch.testing.assert_close(flat(model), trained_by_hand(data))
