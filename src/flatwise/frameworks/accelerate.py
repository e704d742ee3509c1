"""Hugging Face Accelerate: the passes of a step, with its scaler, its wrapped model and its way to tell a skipped step.

    for p in passes(accelerator, model, optimizer):
        loss = loss_fn(model(inputs), targets)
        accelerator.backward(loss)
        p.record(loss)
    accelerator.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()

The rest of a training script reads as it does under Accelerate alone.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any
from weakref import WeakSet

from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import DistributedType
from torch import nn
from torch.optim import Optimizer

from flatwise.optim import Pass, Passes, SharpnessAware, checks, unwrap

NOT_PREPARED = (
    "passes() needs the optimizer that accelerator.prepare returned, got {kind}: "
    "model, optimizer = accelerator.prepare(model, optimizer)"
)

ACCUMULATES = """accumulation by Accelerate (gradient_accumulation_steps={steps}, accelerator.accumulate) cannot be had: it
divides losses and leaves out steps, while a sharpness-aware step needs all its micro-batches in each pass. Make the Accelerator
without gradient_accumulation_steps, and accumulate inside the pass:

    for p in passes(accelerator, model, optimizer):
        for i, batch in enumerate(batches):
            with accelerator.no_sync(model) if i < len(batches) - 1 else nullcontext():
                loss = loss_fn(model, batch)
                accelerator.backward(loss)
                p.record(loss)          # the gradient is the mean over the micro-batches
"""

NOT_ITS_MODEL = (
    "passes() needs the model whose parameters the optimizer trains, as accelerator.prepare returned it, got {kind}, which lacks "
    "{count} of them: passes(accelerator, model, optimizer); where an optimizer trains several modules, prepare one that holds "
    "them all"
)

NOT_SHARED = (
    "{count} processes train, but this model is not what accelerator.prepare returned, so its gradients would not be averaged: "
    "model, optimizer = accelerator.prepare(model, optimizer)"
)

ENGINE = (
    "sharpness-aware steps cannot be had under {engine}, which {why}. Use DistributedDataParallel (torchrun or accelerate launch "
    "without it), or FSDP with fsdp_version=2"
)

ENGINES = {
    DistributedType.DEEPSPEED: (
        "DeepSpeed",
        "keeps gradients and steps to itself: there is nothing to displace along in .grad",
    ),
    DistributedType.MEGATRON_LM: ("Megatron-LM", "runs forward and backward inside its own step"),
    DistributedType.XLA: (
        "XLA",
        "averages gradients over processes only in the optimizer's step, after the passes",
    ),
    DistributedType.FSDP: (
        "FSDP1",
        "flattens parameters into its own storage, which a displacement in place would not reach",
    ),
}

# FSDP2 shards the very module that the optimizer knows, so that the module alone does not tell whether it has been linked since.
_LINKED: WeakSet[SharpnessAware] = WeakSet()


def passes(
    accelerator: Accelerator, model: nn.Module, optimizer: Optimizer, *, parts: int | None = None, each: bool = False
) -> Passes:
    """The passes of one step under Accelerate; in each run forward, `accelerator.backward(loss)` and `p.record(loss)`.

    Afterwards `accelerator.clip_grad_norm_`, `optimizer.step()` and the scheduler read as always. A step with a loss or gradient
    that is not finite is skipped, also without a scaler, and `accelerator.optimizer_step_was_skipped` says so: a prepared
    scheduler then does not advance.

    Args:
        accelerator: it has prepared the model and the optimizer, in whichever order.
        model: as `accelerator.prepare` returned it: only so is it known how processes share the step.
        optimizer: what `accelerator.prepare` made of a `SharpnessAware`.
        parts: yield every evaluation once for each of so many parts of the batch (`p.part`), and take the mean.
        each: a dialogue of its own for each part, the directions averaged: m-sharpness.

    Raises:
        TypeError: the optimizer was not prepared, or is no SharpnessAware.
        ValueError: Accelerate accumulates; or its engine keeps gradients to itself; or the model is not the optimizer's, or not
            prepared where several processes train it; or parts and each do not fit.
    """
    refuse_engine(accelerator)
    if not isinstance(optimizer, AcceleratedOptimizer):
        raise TypeError(NOT_PREPARED.format(kind=type(optimizer).__name__))
    if accelerator.gradient_accumulation_steps != 1 or not accelerator.sync_gradients:
        raise ValueError(ACCUMULATES.format(steps=accelerator.gradient_accumulation_steps))
    inner = unwrap(optimizer)
    if inner not in _LINKED or inner.model is not model:
        _link(accelerator, model, inner)
    return Passes(_telling(accelerator, optimizer, inner.passes(accelerator.scaler, parts, each)))


def refuse_engine(accelerator: Accelerator) -> None:
    """Refuse engines that leave no gradient in `.grad`, or no weight where a displacement could move it.

    Raises:
        ValueError: the accelerator runs under one of them.
    """
    kind = accelerator.distributed_type
    if kind in ENGINES and not accelerator.is_fsdp2:
        engine, why = ENGINES[kind]
        raise ValueError(ENGINE.format(engine=engine, why=why))


def _link(accelerator: Accelerator, model: nn.Module, optimizer: SharpnessAware) -> None:
    """Let the optimizer know the model as the accelerator has wrapped it: DistributedDataParallel, FSDP2, compiled."""
    if lacking := checks.lacking(model, optimizer._parameters()):
        raise ValueError(NOT_ITS_MODEL.format(kind=type(model).__name__, count=lacking))
    optimizer.model = model
    if accelerator.num_processes > 1 and not optimizer._replicas.many:
        raise ValueError(NOT_SHARED.format(count=accelerator.num_processes))
    _LINKED.add(optimizer)


def _telling(accelerator: Accelerator, optimizer: AcceleratedOptimizer, inner: Passes) -> Generator[Pass]:
    """The passes; then say whether the step will be skipped, in the place where a scaler's skips are looked for."""
    yield from inner
    if accelerator.scaler is None:
        gradients: list[Any] = [p.grad for group in optimizer.param_groups for p in group["params"]]
        optimizer._is_overflow = all(g is None for g in gradients)
