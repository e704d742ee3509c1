"""What speaks for a method: a slow transcription of its paper, and a check that the same hand did not write.

The entries are in `evidence_one` and `evidence_two`, by the name of the method, or by "name, variant".
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from optim.problems import BASES, batches, build, flat, mlp

STEPS = 50


def by_samples(run, batch):
    """One step, in which every pass shows the loss of each sample."""
    for p in run.opt.passes():
        losses = F.cross_entropy(run.model(batch[0]), batch[1], reduction="none")
        p.backward(p.chosen(losses).mean())
    run.opt.step()


@dataclass(frozen=True)
class Evidence:
    """
    Args:
        method: an instance, with hyper-parameters that make a mistake show.
        transcription: takes all steps itself, as `(params, base, losses)`: the parameters of `mlp`, a plain torch optimizer
            around them, and for each step a function that evaluates its batch's loss at the current values of the parameters:
            the mean without arguments, each sample's with `reduction="none"`, those of a slice of the batch with `some=`.
        label: what the independent check is, for the table of methods.
        independent: the largest difference that this check finds.
        tolerance: of the difference from the transcription after 50 steps in float64.
        independent_tolerance: of the independent check.
        step: drives one step of `SharpnessAware`, as `(run, batch)`.
    """

    method: object
    transcription: Callable
    label: str
    independent: Callable[[], float]
    tolerance: float = 1e-10
    independent_tolerance: float = 1e-10
    step: Callable = by_samples


def every_evidence():
    """All entries by name."""
    from methods import evidence_one, evidence_two  # they are made of what is above

    return {**evidence_one.EVIDENCE, **evidence_two.EVIDENCE}


def difference_from_transcription(name):
    """The largest difference of any weight after 50 steps in float64, SGD with momentum and weight decay on mini-batches."""
    return largest_difference(trained(every_evidence()[name]), _transcribed(name))


def difference_from_the_base(name):
    """The same between the transcription and the base optimizer alone: how much a difference from the former could show."""
    return largest_difference(_transcribed(name), _alone())


@functools.cache
def _transcribed(name):
    return transcribed(every_evidence()[name].transcription)


@functools.cache
def _alone():
    return transcribed(alone)


def trained(evidence):
    """The weights after a run of `SharpnessAware`."""
    run = build(evidence.method, dtype=torch.float64)
    for batch in batches(STEPS, dtype=torch.float64):
        evidence.step(run, batch)
    return flat(run.params)


def transcribed(transcription):
    """The weights after a run of a transcription."""
    model = mlp(torch.float64)
    params = list(model.parameters())
    data = batches(STEPS, dtype=torch.float64)
    transcription(params, BASES["sgd"](params), [loss_on(model, batch) for batch in data])
    return flat(params)


def loss_on(model, batch):
    return lambda reduction="mean", some=slice(None): F.cross_entropy(
        model(batch[0][some]), batch[1][some], reduction=reduction
    )


def alone(params, base, losses):
    """The base optimizer without a method."""
    for loss in losses:
        for p, g in zip(params, torch.autograd.grad(loss(), params)):
            p.grad = g
        base.step()


def largest_difference(a, b):
    """Of any entry of two flat vectors."""
    return (a - b).abs().max().item()
