"""Hugging Face `Trainer`: its loop gives the optimizer no closure, so here its training step drives the passes.

    trainer = SharpnessAwareTrainer(model, args, train_dataset=data, method=SAM(rho=0.05))
    trainer.train()

The other arguments are those of `transformers.Trainer`.
"""

from __future__ import annotations

import copy
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from transformers import Trainer

from flatwise.frameworks.accelerate import passes, refuse_engine
from flatwise.methods import Method
from flatwise.optim import SharpnessAware, checks, messages, unwrap
from flatwise.optim.imitations import real
from flatwise.optim.replicas import Perturb
from flatwise.optim.schedules import RhoSchedule

TWO_METHODS = (
    "optimizers=(SharpnessAware(...), ...) brings a method of its own: give method=... and its options there, or pass the plain "
    "optimizer and let the trainer wrap it"
)

NO_METHOD = (
    "this trainer needs a method, such as method=SAM(rho=0.05) from flatwise.methods, or a SharpnessAware in optimizers"
)

STEPS_IN_BACKWARD = (
    "optim={name!r} updates the weights during backward, so the second pass would start from other weights; "
    "use an optimizer that steps after backward, such as optim='adamw_torch'"
)

if TYPE_CHECKING:
    _AnyTrainer = Trainer
else:
    _AnyTrainer = object


@dataclass(frozen=True)
class _MicroBatch:
    """What the trainer's loop handed to one training step; `window` is the number of micro-batches it normalises by."""

    inputs: dict[str, Any]
    items: Tensor | int | None
    window: int


class SharpnessAwareMixin(_AnyTrainer):
    """Sharpness-aware steps for a `Trainer` of your own: `class MyTrainer(SharpnessAwareMixin, Trainer)`, the mixin first.

    The micro-batches of an accumulation window, which the trainer's loop has fetched together anyway, are kept until the last
    of them has arrived. Then every pass runs the trainer's own training step on each: loss, token weights (`num_items_in_batch`),
    label smoothing, autocast and accumulation are the trainer's. Clipping, scheduler, logs and checkpoints read as always;
    the training logs gain `displacement_norm` and `skipped_steps`.

    A training step has to compute the same loss when it is called again on the same inputs: trainers that generate their data
    within it (online reinforcement learning) cannot be had.

    Attributes:
        counts: whether the pass of the moment is the one whose loss is the step's (the first that is no probe), for metrics that
            `compute_loss` updates itself; `self.log` heeds it. True outside of passes.

    Args:
        *args, **kwargs: of the trainer.
        method: an instance from `flatwise.methods`; None where `optimizers=(SharpnessAware(...), ...)` brings one.
        perturb: "global", or "local" for a dialogue per rank under DistributedDataParallel (m-sharpness).
        fresh_noise: draw new dropout masks in later passes in place of replaying the first one's.
        rho_schedule: a factor on rho over the steps, one of `flatwise.schedules`.

    Raises:
        TypeError, ValueError: an argument is not what it should be, or the engine or optimizer cannot be had.
    """

    counts: bool = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse bases in the order in which nothing here would be called."""
        super().__init_subclass__(**kwargs)
        if any(base.__name__ == "Trainer" for base in cls.__mro__[: cls.__mro__.index(SharpnessAwareMixin)]):
            raise TypeError(f"class {cls.__name__}: SharpnessAwareMixin must stand before Trainer in the bases")

    def __init__(
        self,
        *args: Any,
        method: Method | None = None,
        perturb: Perturb = "global",
        fresh_noise: bool = False,
        rho_schedule: RhoSchedule | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._method = method
        self._perturb: Perturb = perturb
        self._fresh_noise = fresh_noise
        self._rho_schedule = rho_schedule
        self._held: list[_MicroBatch] = []
        refuse_engine(self.accelerator)
        self._check_method()

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As the trainer's own."""
        self._held = []
        return super().train(*args, **kwargs)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """The trainer's optimizer, wrapped in a `SharpnessAware` unless it is one."""
        base = super().create_optimizer(*args, **kwargs)
        if self._method is not None and not isinstance(real(base), SharpnessAware):
            optimizer = SharpnessAware(
                base, self._method, self.model, fresh_noise=self._fresh_noise, rho_schedule=self._rho_schedule
            )
            optimizer._perturb = self._perturb  # the DistributedDataParallel that "local" asks for is made after this
            self.optimizer = optimizer
        return self.optimizer

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Keep a micro-batch; at the last one of a window, run all passes.

        Returns:
            0 for a micro-batch that is kept, then the window's loss at the weights; 0-d.
        """
        self._held.append(_MicroBatch(inputs, num_items_in_batch, self.current_gradient_accumulation_steps))
        if not self.accelerator.sync_gradients:
            return torch.zeros((), device=self.args.device)
        window, self._held = self._held, []
        losses: dict[tuple[bool, bool], Tensor] = {}
        for p in passes(self.accelerator, model, self.optimizer):
            with self._counting(p.counts):
                loss = self._accumulated(model, window)
            p.record(loss)
            losses.setdefault((p.is_probe, not p.at_weights), loss)
        return losses[min(losses)]  # at the weights, or else the first that is no probe

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """As the trainer's own, once a step where a loss logs itself, with two numbers of ours beside the gradient's norm."""
        if not self.counts:
            return
        if "grad_norm" in logs:
            numbers = unwrap(self.optimizer).diagnostics
            logs |= {"displacement_norm": numbers["displacement_norm"], "skipped_steps": numbers["skipped"]}
        super().log(logs, *args, **kwargs)

    @contextmanager
    def _counting(self, counts: bool) -> Generator[None]:
        self.counts = counts
        try:
            yield
        finally:
            self.counts = True

    def _accumulated(self, model: nn.Module, window: list[_MicroBatch]) -> Tensor:
        """The trainer's own step on every micro-batch, its gradients added up in `.grad`; the sum of the losses."""
        losses: list[Tensor] = []
        for i, batch in enumerate(window):
            self.current_gradient_accumulation_steps = batch.window
            with self._synchronisation(model, is_last=i == len(window) - 1):
                losses.append(super().training_step(model, copy.copy(batch.inputs), batch.items))
        return torch.stack(losses).sum()

    def _synchronisation(self, model: nn.Module, is_last: bool) -> AbstractContextManager[None]:
        each = self.accelerator.gradient_state.plugin_kwargs.get("sync_each_batch", False)
        return nullcontext() if is_last or each else self.accelerator.no_sync(model)

    def _check_method(self) -> None:
        if isinstance(cast(Any, self.optimizer), SharpnessAware):
            if self._method or self._perturb != "global" or self._fresh_noise or self._rho_schedule:
                raise ValueError(TWO_METHODS)
            return
        if self._method is None:
            raise TypeError(NO_METHOD)
        checks.method(self._method)
        checks.perturb(self._perturb, self._method)
        checks.schedule(self._rho_schedule, self._method)
        if self._perturb == "local" and self.accelerator.num_processes == 1:
            raise ValueError(messages.LOCAL_NEEDS_DDP)
        if cast(Any, self.optimizer) is None and self.optimizer_cls_and_kwargs is None:
            _refuse_steps_in_backward(self.args.optim)


class SharpnessAwareTrainer(SharpnessAwareMixin, Trainer):
    """`transformers.Trainer` with sharpness-aware steps: its arguments, and `method=...` and the other options of the mixin."""


def _refuse_steps_in_backward(name: str) -> None:
    value = str(getattr(name, "value", name))
    if "lomo" in value or "layerwise" in value:
        raise ValueError(STEPS_IN_BACKWARD.format(name=value))
