"""Problems 2 and 7 under trainers that own the loop."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch.utils.data import DataLoader

from benchmarks.peers.closures import pytorch_optimizer_sam, sam_pytorch
from benchmarks.peers.finding import check, outcome
from benchmarks.peers.small import batches, counted, distance, flat, loss_of, network, ours, trained_by_hand


def fit(make: Any, data: list[Any], **options: Any) -> torch.nn.Module:
    """Lightning's automatic optimization, one epoch; the trained network."""
    from lightning.pytorch import LightningModule, Trainer

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()
            self.runs = counted(self.net)

        def training_step(self, batch: Any, _: int) -> Any:
            return loss_of(self.net, batch)

        def configure_optimizers(self) -> Any:
            return make(self.net)

    module = Module()
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = Trainer(max_epochs=1, accelerator="cpu", **quiet, **options)
    trainer.fit(module, DataLoader(data, batch_size=None))
    return module


def four_steps(make: Any) -> str:
    data = batches(4)
    module = fit(make, data)
    return f"{len(module.runs)} forwards in 4 steps; {distance(module.net, trained_by_hand(data)):.0e} from SAM by hand"


@check(2, "pytorch_optimizer", "Lightning's automatic optimization, four steps")
def under_lightning() -> tuple[str, str]:
    return four_steps(pytorch_optimizer_sam), four_steps(ours)


@check(7, "sam-pytorch", "Lightning's `accumulate_grad_batches=2`, one step")
def accumulated_by_lightning() -> tuple[str, str]:
    data = batches(2)
    whole = tuple(torch.cat(parts) for parts in zip(*data))
    right = flat(trained_by_hand([whole])) - flat(network())

    def off(make: Any) -> str:
        update = flat(fit(make, data, accumulate_grad_batches=2).net) - flat(network())
        return (
            f"the update is {float((update - right).norm() / right.norm()):.0%} off that of the whole batch, silently"
        )

    return outcome(lambda: off(sam_pytorch)), outcome(lambda: off(ours))
