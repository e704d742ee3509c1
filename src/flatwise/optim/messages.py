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
