"""Small LightningModules, and a quiet Trainer for them."""

import torch
from frameworks.loops import DATA, EPOCHS, loader
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.plugins import MixedPrecision
from optim.problems import BASES, halves, loss_of, noisy_net

import flatwise as fw
from flatwise.frameworks.lightning import SharpnessAwareMixin

IGNORED = [  # warnings of Lightning's that have nothing to do with us
    "ignore:.*does not have many workers",
    "ignore:.*`isinstance.treespec, LeafSpec.` is deprecated",
    "ignore:When using `Trainer.accumulate_grad_batches",
]


class Bare(LightningModule):
    """As in anybody's script; `configure_optimizers` wraps the optimizer unless there is no method."""

    def __init__(self, method, schedule=False):
        super().__init__()
        self.net, self.method, self.schedule = noisy_net(), method, schedule
        self.forwards, self.ends = 0, []

    def on_train_batch_start(self, batch, batch_idx):
        torch.manual_seed(self.trainer.global_step)

    def training_step(self, batch, batch_idx):
        self.forwards += 1
        loss = loss_of(self.net, batch)
        self.log("loss", loss, on_step=True, on_epoch=True)
        return loss

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.ends.append(float(outputs["loss"]))

    def configure_optimizers(self):
        optimizer = BASES["sgd"](self.parameters())
        if self.method is not None:
            optimizer = fw.SharpnessAware(optimizer, self.method, model=self)
        if not self.schedule:
            return optimizer
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 4, gamma=0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Module(SharpnessAwareMixin, Bare):
    pass


class Manual(Bare):
    """The passes in `training_step`, on the batch or on its halves."""

    halved = False

    def __init__(self, method):
        super().__init__(method)
        self.automatic_optimization = False

    def scaler(self):
        return getattr(self.trainer.precision_plugin, "scaler", None)

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        for p in optimizer.passes(self.scaler()):
            for part in halves(batch) if self.halved else [batch]:
                loss = loss_of(self.net, part)
                self.manual_backward(loss)
                p.record(loss)
        optimizer.step()


class ManualHalved(Manual):
    halved = True


class ManualByClosure(Manual):
    def training_step(self, batch, batch_idx):
        def closure():
            loss = loss_of(self.net, batch)
            self.manual_backward(loss)
            return loss

        self.optimizers().step(closure)


def fit(module, epochs=EPOCHS, data=DATA, resume=None, **settings):
    """Train; returns the trainer. Progress bars, summaries and logs are off."""
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = Trainer(max_epochs=epochs, accelerator="cpu", **(quiet | settings))
    trainer.fit(module, loader(data), ckpt_path=resume)
    return trainer


def half_precision(scale=2.0**10):
    """Lightning's plugin for float16; told by name, it would choose bfloat16 on a CPU."""
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=3))
