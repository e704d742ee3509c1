"""Seams of frameworks: twelve steps in float32 of the small network with BatchNorm and dropout, against a plain loop.

The Hugging Face trainer trains a language model with Llama's layers for six steps.
"""

import logging
import tempfile
import warnings
from functools import cache

import torch
from accelerate import Accelerator
from frameworks.language import language_model, models_own_loss, plain_loop, sequences, windows
from frameworks.lightning_modules import Manual, Module, fit
from frameworks.loops import DATA, EPOCHS, plain
from frameworks.trainers import make
from lightning.fabric import Fabric
from optim.problems import build, flat, loss_of, noisy_net
from seams.seam import Seam
from skorch import NeuralNetClassifier
from torch import nn

from flatwise.frameworks.accelerate import passes
from flatwise.frameworks.skorch import SharpnessAwareMixin

KIND = "frameworks, float32, twelve steps"


def flat_weights(model):
    return flat(model.parameters())


@cache
def in_a_plain_loop(case):
    return flat_weights(plain(case.method)[0].model)


class Quiet(Manual):
    """Its `training_step` returns no loss to take note of."""

    def on_train_batch_end(self, *_):
        pass


def under_lightning(module_class):
    def weights(case):
        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
        module = module_class(case.method)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fit(module)
        return flat_weights(module.net)

    return weights


def stepwise(prepare):
    """`prepare(setup)` returns what runs one step on a batch."""

    def weights(case):
        setup = build(case.method, net=noisy_net)
        step = prepare(setup)
        for number, batch in enumerate(DATA * EPOCHS):
            torch.manual_seed(number)
            step(batch)
        return flat_weights(setup.model)

    return weights


def fabric(setup):
    runner = Fabric(accelerator="cpu", devices=1)
    model, optimizer = runner.setup(setup.model, setup.opt)

    def step(batch):
        for p in optimizer.passes():
            loss = loss_of(model, batch)
            runner.backward(loss)
            p.record(loss)
        optimizer.step()

    return step


def accelerated(setup):
    runner = Accelerator(cpu=True)
    model, optimizer = runner.prepare(setup.model, setup.opt)

    def step(batch):
        for p in passes(runner, model, optimizer):
            loss = loss_of(model, batch)
            runner.backward(loss)
            p.record(loss)
        optimizer.step()

    return step


class Classifier(SharpnessAwareMixin, NeuralNetClassifier):
    """A network as a scikit-learn estimator."""


def under_skorch(case):
    settings = {
        "optimizer__momentum": 0.9,
        "optimizer__weight_decay": 1e-2,
        "lr": 0.1,
        "verbose": 0,
        "train_split": None,
    }
    net = Classifier(
        noisy_net(),
        method=case.method,
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.SGD,
        batch_size=16,
        **settings,
    ).initialize()
    for number, (x, y) in enumerate(DATA * EPOCHS):
        torch.manual_seed(number)
        net.train_step((x, y))
    return flat_weights(net.module_)


def of_a_language_model(case):
    with tempfile.TemporaryDirectory() as folder:
        trainer = make(folder, method=case.method)
        trainer.train()
        return flat_weights(trainer.model)


def of_a_language_model_in_a_loop(case):
    """In the trainer's groups: norms last. Eigen-SAM's vector hangs on the last bits, and so on the order."""
    model = language_model()
    is_norm = {p: "norm" in name for name, p in model.named_parameters()}
    groups = [{"params": [p for p, norm in is_norm.items() if norm == wanted]} for wanted in (False, True)]
    base = lambda _: torch.optim.SGD(groups, lr=0.1)
    plain_loop(case.method, windows(sequences(), 4, 1, steps=6), model=model, base=base, loss=models_own_loss)
    return flat_weights(model)


def row(name, weights):
    return Seam(name, weights, KIND, tolerance=1e-6, reference=in_a_plain_loop)


FRAMEWORKS = [
    row("Lightning, automatic", under_lightning(Module)),
    row("Lightning, manual", under_lightning(Quiet)),
    row("Fabric", stepwise(fabric)),
    row("Accelerate", stepwise(accelerated)),
    row("skorch", under_skorch),
    Seam(
        "Hugging Face Trainer",
        of_a_language_model,
        KIND,
        tolerance=1e-6,
        reference=of_a_language_model_in_a_loop,
        note="6 steps, Llama's layers, SGD without momentum",
        has_momentum=False,
    ),
]
