"""The sentences that users meet when a step is driven in a way that cannot work."""

from __future__ import annotations

LOOPS = """Drive a step in one of two ways:

    loss = optimizer.step(closure)              # closure: zero_grad, forward, backward, return the loss

    for p in optimizer.passes():
        p.backward(loss_fn(model(inputs), targets))
    optimizer.step()
"""

NEEDS_PASSES = f"this method evaluates the loss more than once a step, so step() alone cannot do it.\n{LOOPS}"

UNFINISHED = f"step() was called while its passes were unfinished; the weights were restored.\n{LOOPS}"

NO_MODEL = (
    "SharpnessAware was made without model=...: the parameters are exact, but nobody looks after BatchNorm statistics and other "
    "buffers (they advance in every pass), evaluation mode for measuring passes, DistributedDataParallel and FSDP2. "
    "Pass model=model to switch that on."
)

NO_GRADIENT = (
    "no parameter received a gradient in this pass: call p.backward(loss), or loss.backward() in the closure, on a loss "
    "that depends on the parameters of this optimizer"
)

NO_LOSS = "the closure returned {value!r}; it must call backward() and return the loss, a tensor with one element"

STALE_GRAPH = (
    "backward failed, probably because this loss was computed before the weights moved: every pass needs a forward of its own. "
    "Compute the loss inside the loop over passes (or inside the closure)."
)

SPARSE = "sparse gradients are not supported: use nn.Embedding(..., sparse=False), or leave those parameters to another optimizer"

LOCAL_NEEDS_DDP = (
    "perturb='local' needs model to be a DistributedDataParallel: only there is a gradient per rank to be had before "
    "it is averaged. Use perturb='global', or wrap the model in DistributedDataParallel."
)

UNEQUAL_WAITING = (
    "micro-batches under no_sync add up in .grad before they can be weighted, so p.record needs the same weight for all of them; "
    "use p.backward(loss, weight), which weights the loss first"
)

NEVER_SYNCHRONISED = (
    "the last micro-batch of this pass ran under no_sync, so its gradient was never averaged over ranks: "
    "run the last one outside no_sync"
)

CLOSURE_WITHOUT_SYNC = (
    "a closure in a list ran under no_sync: the next one may zero its gradient before it was averaged over ranks. "
    "Let every closure synchronise, or drive the step by passes() and p.backward."
)

SCALER_WITH_CLOSURE = """scaler.step(optimizer, closure) cannot be had: the closure runs several times, and each of its gradients
has to be unscaled with the same scale and checked. Let the optimizer know the scaler:

    for p in optimizer.passes(scaler):
        p.backward(loss_fn(model(inputs), targets))     # scales the loss itself
    scaler.step(optimizer)
    scaler.update()
"""

LEFT_OVER = (
    "at the start of this step .grad holds gradients from a backward outside of it. They are dropped: every pass starts with "
    "cleared gradients. To accumulate micro-batches, run all of them in each pass (several p.backward calls, or "
    "step([closure, ...])); a backward before step(closure), as older SAM scripts have it, is not needed. To silence this, call "
    "optimizer.zero_grad() first."
)

LIGHTNING_ACCUMULATES = (
    "Lightning accumulates micro-batches outside of this step (accumulate_grad_batches > 1), and its closure runs only the last "
    "of them: the others would be lost. Set accumulate_grad_batches=1 and use larger batches, or automatic_optimization = False "
    "and run all micro-batches in each pass: for p in self.optimizers().passes(): for batch in batches: "
    "loss = ...; self.manual_backward(loss); p.record(loss)"
)
