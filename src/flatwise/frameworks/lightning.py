"""PyTorch Lightning, automatic optimization: a mixin for the LightningModule whose optimizer is a SharpnessAware."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from torch import Tensor

from flatwise.optim import SharpnessAware, messages

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule as _Module
else:
    _Module = object  # serves the package pytorch_lightning as well as lightning


class SharpnessAwareMixin(_Module):
    """Before `LightningModule` in the bases of a module that returns a SharpnessAware from `configure_optimizers`.

        class Digits(SharpnessAwareMixin, LightningModule):
            def configure_optimizers(self):
                return SharpnessAware(torch.optim.SGD(self.parameters(), lr=0.1), SAM(rho=0.05), model=self)

    Weights are exact without it, too. With it:

    - `self.log`, and what `on_train_batch_end` is given, come from one pass of a step, and not from all or the last of them.
    - `precision="16-mixed"` works: every pass knows the gradient scaler.
    - `accumulate_grad_batches` above 1 is refused before the first batch.
    - The optimizer learns of DistributedDataParallel, which Lightning wraps around the module.

    Whoever overrides `on_fit_start` or `optimizer_step` calls `super()`'s.

    Attributes:
        counts: whether the pass of the moment is the one whose loss is the step's (the first in training mode): for metrics
            that `training_step` updates itself. True outside of passes.
    """

    counts: bool = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse bases in the order in which nothing here would be called."""
        super().__init_subclass__(**kwargs)
        before = cls.__mro__[: cls.__mro__.index(SharpnessAwareMixin)]
        if any(base.__name__ == "LightningModule" for base in before):
            raise TypeError(f"class {cls.__name__}: SharpnessAwareMixin must stand before LightningModule in the bases")

    def on_fit_start(self) -> None:
        """Check the trainer's settings, and tell the optimizers how Lightning has wrapped the module.

        Raises:
            ValueError: the trainer accumulates micro-batches outside of the step.
        """
        super().on_fit_start()
        if self.automatic_optimization and self.trainer.accumulate_grad_batches > 1:
            raise ValueError(messages.LIGHTNING_ACCUMULATES)
        for optimizer in self.trainer.optimizers:
            if isinstance(optimizer, SharpnessAware) and optimizer.model is self:
                optimizer.model = self.trainer.strategy.model

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One step, from Lightning's closure; a `training_step` that returns None skips it."""
        if not isinstance(optimizer, SharpnessAware):
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
            return
        if optimizer_closure._backward_fn is None:  # StochasticWeightAveraging renews BatchNorm statistics
            optimizer_closure()
            return
        watched = _Watched(self, optimizer_closure)
        with suppress(_Skipped):
            self._step(epoch, batch_idx, optimizer, watched)
        optimizer_closure._result = watched.result

    def log(self, *args: Any, **kwargs: Any) -> None:
        """Log in the pass that counts."""
        if self.counts:
            super().log(*args, **kwargs)

    def _step(self, epoch: int, batch_idx: int, optimizer: SharpnessAware, watched: _Watched) -> None:
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        if scaler is None:
            super().optimizer_step(epoch, batch_idx, optimizer, watched)
            return
        for p in optimizer.passes(scaler):
            p.record(watched())
        # The plugin runs a closure, unscales, clips, and steps: here the gradient is in place already.
        super().optimizer_step(epoch, batch_idx, optimizer, lambda: watched.loss)


class _Watched:
    """Lightning's closure; what it returned in the pass that counts is kept."""

    def __init__(self, module: SharpnessAwareMixin, closure: Callable[[], Tensor | None]) -> None:
        self.module = module
        self.closure: Any = closure
        self.result: Any = None
        self.loss: Tensor | None = None

    def __call__(self) -> Tensor:
        counts = self.module.counts = self.result is None and self.module.training
        try:
            loss = self.closure()
        finally:
            self.module.counts = True
        if counts:
            self.result, self.loss = self.closure._result, loss
        if loss is None:
            raise _Skipped
        return loss


class _Skipped(Exception):
    """`training_step` returned None."""
