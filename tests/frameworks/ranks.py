"""What each of two gloo processes does under Hugging Face's Trainer and under Accelerate.

A module of its own, so that spawned processes can import it by name. Every scenario returns plain tensors and numbers.
"""

import os
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import Accelerator, FullyShardedDataParallelPlugin, PartialState
from accelerate.utils import DistributedType
from frameworks.language import sequences
from frameworks.trainers import make, steps_of
from optim.problems import batches, flat, loss_of, mlp, norm_net, seeded

import flatwise as fw
from flatwise.frameworks.accelerate import passes
from flatwise.frameworks.hugging_face import SharpnessAwareTrainer
from flatwise.methods import SAM, EigenSAM

METHODS = {"sam": SAM(rho=0.1), "eigen-sam": EigenSAM(rho=0.1, every=2, iterations=2)}
STEPS = 4
REFUSED_ON_TWO = {
    "not prepared": "this model is not what accelerator.prepare returned, so its gradients would not be averaged",
    "fsdp2 unequal": "so p.record needs the same weight for all of them",
}


# --- the trainer ------------------------------------------------------------------------------------------------------


class Poisoned(SharpnessAwareTrainer):
    """On the second rank, the loss is not a number in the second pass of the third step."""

    def compute_loss(self, *args, **kwargs):
        loss = super().compute_loss(*args, **kwargs)
        poison = self.args.process_index == 1 and self.state.global_step == 2 and not self.counts
        return loss * float("nan") if poison else loss


def trained(folder, cls=SharpnessAwareTrainer, **settings):
    data = sequences(4 * STEPS * settings.get("gradient_accumulation_steps", 1))
    settings |= {"max_steps": STEPS, "per_device_train_batch_size": 2, "method": METHODS["sam"]}
    trainer = make(folder, cls, data=data, **settings)
    trainer.train()
    return {
        "weights": flat(trainer.model.parameters()),
        "loss": [entry["loss"] for entry in steps_of(trainer)],
        "skipped": steps_of(trainer)[-1]["skipped_steps"],
        "model": type(fw.unwrap(trainer.optimizer).model).__name__,
    }


# --- accelerate -------------------------------------------------------------------------------------------------------


def share(batch, rank):
    return tuple(t.chunk(2)[rank] for t in batch)


def unprepared(net, method=METHODS["sam"], **options):
    model = seeded(net)
    base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return model, fw.SharpnessAware(base, method, model=model, **options)


def accelerated(ours, model, optimizer, weights=(1.0, 1.0)):
    """Each rank has half of a batch, and takes it in two micro-batches, of which only the last is synchronised."""
    for batch in batches(STEPS):
        pieces = [t.chunk(2) for t in share(batch, ours.process_index)]
        for p in passes(ours, model, optimizer):
            for i, piece in enumerate(zip(*pieces)):
                with ours.no_sync(model) if i == 0 else nullcontext():
                    loss = loss_of(model, piece)
                    ours.backward(loss)
                    p.record(loss, weights[i])
        ours.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
    whole = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in model.parameters()]
    return flat(whole)


def sharded():
    """An accelerator as `accelerate launch` configures it for FSDP2, which it would not do for the CPU by itself."""
    ours = Accelerator(cpu=True)
    ours.state.fsdp_plugin = FullyShardedDataParallelPlugin(fsdp_version=2, reshard_after_forward=True)
    for state in (ours.state, PartialState()):
        state._shared_state["distributed_type"] = DistributedType.FSDP
    return ours


def released(ours):
    """Whatever kind of accelerator it was, the next one is plain."""
    for state in (ours.state, PartialState()):
        state._shared_state["distributed_type"] = DistributedType.MULTI_CPU
    ours.state.fsdp_plugin = None


def ddp(method, optimizer_first=False):
    ours = Accelerator(cpu=True)
    model, optimizer = unprepared(mlp, method)
    if optimizer_first:
        optimizer, model = ours.prepare(optimizer, model)
    else:
        model, optimizer = ours.prepare(model, optimizer)
    return accelerated(ours, model, optimizer)


def fsdp2(method, weights=(1.0, 1.0)):
    ours = sharded()
    try:
        return accelerated(ours, *ours.prepare(*unprepared(mlp, method)), weights)
    finally:
        released(ours)


def local():
    """Each rank displaced along its own gradient: the optimizer is made with the prepared model."""
    ours = Accelerator(cpu=True)
    model = ours.prepare(seeded(norm_net))
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = ours.prepare(fw.SharpnessAware(base, METHODS["sam"], model=model, perturb="local"))
    for batch in batches(1):
        for p in passes(ours, model, optimizer):
            loss = loss_of(model, share(batch, ours.process_index))
            ours.backward(loss)
            p.record(loss)
        optimizer.step()
    return flat(model.parameters())


def not_prepared():
    ours = Accelerator(cpu=True)
    model, optimizer = unprepared(mlp)
    passes(ours, model, ours.prepare(optimizer))


def message(scenario, *args):
    try:
        scenario(*args)
    except (ValueError, RuntimeError) as error:
        return str(error)
    return "no error"


def run(rank, folder):
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}
    os.environ["MASTER_PORT"] = "0"  # for Accelerate to see that there is one; the processes meet in a file
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    found = {
        "trainer": trained(folder, gradient_accumulation_steps=2),
        "trainer, apart": trained(folder, perturb="local"),
        "trainer, poisoned": trained(folder, Poisoned),
        "not prepared": message(not_prepared),
        "local": local(),
        "ddp, optimizer first": ddp(METHODS["sam"], optimizer_first=True),
    }
    for name, method in METHODS.items():
        found |= {f"ddp {name}": ddp(method), f"fsdp2 {name}": fsdp2(method)}
    found["fsdp2 unequal"] = message(fsdp2, METHODS["sam"], (1.0, 2.0))
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()
