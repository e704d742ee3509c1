"""What each of two gloo processes does under Fabric and under Lightning. A module of its own, so that they can import it."""

import logging
import os
import socket
import warnings
from pathlib import Path

import torch
from frameworks.lightning_modules import Module, fit
from frameworks.loops import DATA
from lightning.fabric import Fabric
from methods.cases import CASES
from optim.problems import BASES, flat, loss_of, mlp

import flatwise as fw
from flatwise.methods import SAM

METHODS = {case.name: case.method for case in CASES if case.name in ("sgd", "sam", "eigen-sam", "gradient-norm")}


def share(batch, rank):
    """This rank's half."""
    return batch[0].chunk(2)[rank], batch[1].chunk(2)[rank]


def set_up(fabric, method, link=True):
    model = mlp()
    optimizer = fw.SharpnessAware(BASES["sgd"](model.parameters()), method, model=model)
    model, optimizer = fabric.setup(model, optimizer)
    if link:
        optimizer.model = model
    return model, optimizer


def micro_batches(fabric, model, p, batch, synchronised=True):
    """Halves of this rank's share; all but the last without communication."""
    for i, part in enumerate(zip(batch[0].chunk(2), batch[1].chunk(2))):
        with fabric.no_backward_sync(model, enabled=i == 0 or not synchronised):
            loss = loss_of(model, part)
            fabric.backward(loss)
            p.record(loss)


def train(fabric, method, accumulated=False):
    model, optimizer = set_up(fabric, method)
    for batch in DATA:
        own = share(batch, fabric.global_rank)
        for p in optimizer.passes():
            if accumulated:
                micro_batches(fabric, model, p, own)
            else:
                loss = loss_of(model, own)
                fabric.backward(loss)
                p.record(loss)
        optimizer.step()
    return flat(model.parameters()).detach()


def told(act):
    """The sentences of what it warns of and raises."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            act()
        except Exception as error:
            return [str(error)]
    return [str(w.message) for w in caught]


def never_synchronises(fabric):
    model, optimizer = set_up(fabric, SAM())
    for p in optimizer.passes():
        micro_batches(fabric, model, p, share(DATA[0], fabric.global_rank), synchronised=False)


def does_not_tell_the_model(fabric):
    model, optimizer = set_up(fabric, SAM(), link=False)
    for p in optimizer.passes():
        micro_batches(fabric, model, p, share(DATA[0], fabric.global_rank))


class Parallel(Module):
    """Without BatchNorm and dropout, which differ between one process and two."""

    def __init__(self, method):
        super().__init__(method)
        self.net = mlp()


def under_lightning(rank, method):
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    module = Parallel(method)
    own = [share(batch, rank) for batch in DATA]
    trainer = fit(module, epochs=1, data=own, strategy="ddp", devices=2, use_distributed_sampler=False)
    return flat(module.net.parameters()).detach(), type(trainer.optimizers[0].model).__name__


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def run(rank, folder, port):
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": str(rank), "NODE_RANK": "0"}
    fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp")
    fabric.launch()
    results = {f"fabric {name}": train(fabric, method) for name, method in METHODS.items()}
    results |= {f"accumulated {name}": train(fabric, method, True) for name, method in METHODS.items()}
    results["never synchronised"] = told(lambda: never_synchronises(fabric))
    results["unaware"] = told(lambda: does_not_tell_the_model(fabric))
    results |= {f"lightning {name}": under_lightning(rank, METHODS[name]) for name in ("sam", "eigen-sam")}
    torch.save(results, Path(folder) / f"{rank}.pt")
