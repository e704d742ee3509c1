"""The sentences that users meet when a step is driven in a way that cannot work."""

from __future__ import annotations

LOOPS = """Drive a step in one of three ways:

    def closure():
        loss = loss_fn(model(inputs), targets)
        loss.backward()
        return loss
    loss = optimizer.step(closure)

    for p in optimizer.passes():
        p.backward(loss_fn(model(inputs), targets))
    optimizer.step()

    train_step = fw.two_pass(optimizer, model, loss_fn)             # once, before the loop
    loss = train_step(inputs, targets)
"""

NEEDS_PASSES = f"""this method evaluates the loss more than once a step, so step() alone cannot do it.
{LOOPS}
Where a trainer owns the loop, an adapter of flatwise.frameworks drives the passes: hugging_face.SharpnessAwareTrainer,
accelerate.passes, lightning.SharpnessAwareMixin.
"""

UNFINISHED = f"step() was called while its passes were unfinished; the weights were restored.\n{LOOPS}"

NO_MODEL = (
    "SharpnessAware was made without model=...: the parameters are exact, but nobody looks after BatchNorm statistics and other "
    "buffers (they advance in every pass), evaluation mode for measuring passes, DistributedDataParallel and FSDP2. "
    "Pass model=model to switch that on."
)

NOT_IN_MODEL = (
    "{count} of the optimizer's {all} parameters are not in the model that it was given (a {kind}), so nobody looks after the "
    "buffers (BatchNorm statistics advance in every pass), modes and replicas of the module that has them. Pass the model that "
    "the optimizer trains; where it trains several modules, or a loss with parameters, model=nn.ModuleList([a, b]). A parameter "
    "p that is of no module goes in as nn.ModuleList([a, nn.ParameterList([p])])"
)

NO_GRADIENT = (
    "no parameter received a gradient in this pass: call p.backward(loss), or loss.backward() in the closure, on a loss "
    "that depends on the parameters of this optimizer"
)

USED_UP = (
    ". An earlier pass of this step had one: was the iterator of micro-batches used up by the first pass? Make a list of them, "
    "once, before the loop over passes"
)

NOT_RECORDED = (
    "backward ran in this pass, but the pass was not told its loss: call p.record(loss) after it (after accelerator.backward, "
    "fabric.backward, self.manual_backward), or p.backward(loss) in its place"
)

NO_LOSS = "the closure returned {value!r}; it must call backward() and return the loss, a tensor with one element"

STALE_GRAPH = (
    "backward failed, probably because this loss was computed before the weights moved: every pass needs a forward of its own. "
    "Compute the loss inside the loop over passes (or inside the closure)."
)

LAZY = (
    "the model has lazy modules whose parameters or buffers have no shape yet: run one batch through it "
    "before an optimizer gets them"
)

META = (
    "parameters on the meta device have no values to displace: give them some first (model.to_empty(device=...), then load or "
    "initialise them) before an optimizer gets them"
)

SPARSE = "sparse gradients are not supported: use nn.Embedding(..., sparse=False), or leave those parameters to another optimizer"

LOCAL_NEEDS_DDP = (
    "perturb='local' needs model to be a DistributedDataParallel: only there is a gradient per rank to be had before "
    "it is averaged. FSDP2 averages in backward, but groups of its ranks can be apart: shard over one dimension of a mesh, "
    "fully_shard(module, mesh=mesh['shard']), and pass perturb=mesh['replicate']. Or use perturb='global'."
)

LOCAL_STATIC_GRAPH = (
    "perturb='local' cannot be had with static_graph=True: DistributedDataParallel then cannot leave a backward unsynchronised. "
    "Make it without static_graph, or use perturb='global'."
)

STATIC_GRAPH = (
    "DistributedDataParallel with static_graph=True cannot leave its first backward unsynchronised: run the first step without "
    "no_sync, or make it without static_graph."
)

FLATTENED = (
    "FullyShardedDataParallel (FSDP1) flattens parameters into pieces whose norms cannot be told: shard the model with "
    "torch.distributed.fsdp.fully_shard (FSDP2), before the optimizer is made"
)

AVERAGED_ALREADY = (
    "perturb is a mesh of replicas that are to be apart, but the model averages gradients over them itself. Let it average over "
    "the other dimension only: fully_shard(module, mesh=mesh['shard']), or "
    "DistributedDataParallel(module, process_group=mesh['shard'].get_group()), and pass perturb=mesh['replicate']"
)

UNEQUAL_REPLICAS = (
    "the replicas along the mesh given as perturb start from different weights, and would stay different: give all of them the "
    "same ones first (the same seed, the same checkpoint, or torch.distributed.broadcast from one of them)"
)

JOINED = (
    "the model is in DistributedDataParallel's join() context (or was, and torch leaves it switched on): ranks without data take "
    "no step there, so momentum and the method's state would part from the other ranks'. Let every rank take as many steps: one "
    "without data runs any batch with p.backward(loss, weight=0), and the step is the mean over the others"
)

UNEQUAL_RECORDED = (
    "p.record was given weights that differ between ranks, but the gradients were averaged over ranks before they could be "
    "weighted; use p.backward(loss, weight), which weights the loss first, or the same weights on all ranks"
)

NO_WEIGHT = "the weights of this pass's micro-batches sum to 0; only one rank among others may be without data"

UNEQUAL_WAITING = (
    "micro-batches under no_sync add up before they can be weighted, so p.record needs the same weight for all of them; "
    "use p.backward(loss, weight), which weights the loss first"
)

NEVER_SYNCHRONISED = (
    "the last micro-batch of this pass ran under no_sync, so its gradient was never averaged over ranks: "
    "run the last one outside no_sync (under FSDP2 after set_requires_gradient_sync(True))"
)

CLOSURE_WITHOUT_SYNC = (
    "a closure in a list ran under no_sync: the next one may zero its gradient before it was averaged over ranks. "
    "Let every closure synchronise, or drive the step by passes() and p.backward."
)

SCALED_LOOP = """
    for p in optimizer.passes(scaler):
        p.backward(loss_fn(model(inputs), targets))     # scales the loss itself
    scaler.step(optimizer)
    scaler.update()
"""

SCALER_WITH_CLOSURE = f"""scaler.step(optimizer, closure) cannot be had: the closure runs several times, and each of its gradients
has to be unscaled with the same scale and checked. Let the optimizer know the scaler:
{SCALED_LOOP}"""

SCALER_NEEDS_PASSES = f"""a GradScaler steps this optimizer, whose method evaluates the loss more than once a step.
Every pass has to know the scaler:
{SCALED_LOOP}
Where a trainer owns the loop, an adapter does that: flatwise.frameworks.hugging_face.SharpnessAwareTrainer,
flatwise.frameworks.accelerate.passes; for Lightning's precision="16-mixed" derive the module from
flatwise.frameworks.lightning.SharpnessAwareMixin.
"""

SCALER_UNKNOWN = f"""a GradScaler steps this optimizer, but its passes did not know it, so an overflow could not be told:
{SCALED_LOOP}"""

SCALER_LEFT_OUT = f"""these passes had a GradScaler, so the gradients are scaled, but step() did not come from it:
{SCALED_LOOP}"""

UNSCALED_TOO_EARLY = """scaler.unscale_ was called on this optimizer before its passes were over, and would not come again.
Each pass unscales its own gradient; unscale_, and the clipping, come once, after the loop over passes:

    for p in optimizer.passes(scaler):
        p.backward(loss_fn(model(inputs), targets))
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    scaler.step(optimizer)
    scaler.update()

Where a step is given up after unscale_, as here, call scaler.update() before the next one.
"""

SCALED_BY_HAND = (
    "p.backward was given a loss that the scaler has scaled already, and would scale it again: the passes know the scaler, so "
    "write p.backward(loss), not p.backward(scaler.scale(loss))"
)

NOTHING_BUT_SKIPS = (
    "{count} steps in a row were skipped because a loss or gradient is not finite; the weights have not moved since. Look for "
    "NaN in the batches, and in the loss at these weights: torch.autograd.set_detect_anomaly(True) names the operation. "
    "A run that came here by itself wants a lower learning rate or rho, or clipping, from an earlier checkpoint on."
)

FOREIGN_NOISE = (
    "within the passes of this step, random numbers were drawn from Python's or numpy's global generator. Only torch's are "
    "replayed, so every pass saw another loss. Do what draws them (mixup, augmentation) once, before the loop over passes."
)

CHANGED_IN_A_PASS = (
    "gradients were changed within a pass, between backward and its end (clipping?). That is one evaluation's gradient, not yet "
    "the direction of the step: change it after the loop over passes, before step()"
)

RATE_CHANGED = (
    "the learning rate changed within the passes of this step: a schedule that steps in every pass runs too fast. Step it once a "
    "step, after optimizer.step()"
)

UNAWARE = (
    "torch.distributed runs {count} processes, but the optimizer's model is neither a DistributedDataParallel nor sharded: the "
    "processes do not agree on losses and overflows, and micro-batches under no_sync are lost. If the model was wrapped after "
    "the optimizer was made, tell it: optimizer.model = model"
)

LIGHTNING_LOGS = (
    "Lightning runs training_step in every pass of a step, so that self.log and the outputs of on_train_batch_end mix the passes "
    "(the weights are exact). Put flatwise.frameworks.lightning.SharpnessAwareMixin before LightningModule in the bases of the "
    "module: it lets one pass count"
)

LEFT_OVER = (
    "at the start of this step .grad holds gradients from a backward outside of it. They are dropped: every pass starts with "
    "cleared gradients. To accumulate micro-batches, run all of them in each pass (several p.backward calls, or "
    "step([closure, ...])); a backward before step(closure), as older SAM scripts have it, is not needed. To silence this, call "
    "optimizer.zero_grad() first."
)

UNUSED = (
    "the passes before these ended with a direction that no step() has used, so the weights have not moved: call "
    "optimizer.step() (with a scaler: scaler.step(optimizer)) after the loop over passes. To drop a direction on purpose, "
    "call optimizer.zero_grad()."
)

LIGHTNING_ACCUMULATES = (
    "Lightning accumulates micro-batches outside of this step (accumulate_grad_batches > 1), and its closure runs only the last "
    "of them: the others would be lost. Set accumulate_grad_batches=1 and use larger batches, or automatic_optimization = False "
    "and run all micro-batches in each pass: for p in self.optimizers().passes(): for batch in batches: "
    "loss = ...; self.manual_backward(loss); p.record(loss)"
)

ACCELERATE_ACCUMULATES = (
    "Accelerate accumulates micro-batches outside of this step (gradient_accumulation_steps > 1): it would run the closure for "
    "the last of them only, with its loss divided. Make the Accelerator without gradient_accumulation_steps, and run all "
    "micro-batches in each pass: for p in flatwise.frameworks.accelerate.passes(accelerator, model, optimizer): "
    "for batch in batches: loss = ...; accelerator.backward(loss); p.record(loss)"
)
