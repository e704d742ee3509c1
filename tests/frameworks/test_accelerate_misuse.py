"""What people do wrong with Accelerate and SAM, and the sentence that each of them gets, as in the recipe's table.

The rows that need several processes are tested in `test_accelerate_processes`.
"""

import copy

import pytest
import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.utils import DistributedType
from frameworks.misuse import assert_every_row_is_tested, assert_refused
from frameworks.ranks import REFUSED_ON_TWO
from optim.problems import BASES, batches, flat, loss_of, norm_net

import flatwise as fw
from flatwise.frameworks.accelerate import passes
from flatwise.methods import SAM

PAGE = "accelerate.md"
AGAIN = "this method evaluates the loss more than once a step, so step() alone cannot do it"
BATCH = batches(1)[0]


class Setting:
    """A prepared model and optimizer, and the steps that can go wrong with them."""

    def __init__(self, scaled=False, **settings):
        self.accelerator = Accelerator(cpu=True, **settings)
        if scaled:
            self.accelerator.scaler = torch.amp.GradScaler("cpu")
            self.accelerator.native_amp = True
            self.accelerator.state._mixed_precision = "fp16"
        model = norm_net()
        self.model, self.optimizer = self.accelerator.prepare(model, wrapped(model))

    def backward(self):
        loss = loss_of(self.model, BATCH)
        self.accelerator.backward(loss)
        return loss

    def passes(self, model=None, optimizer=None):
        return passes(self.accelerator, model or self.model, optimizer or self.optimizer)


def wrapped(model):
    return fw.SharpnessAware(BASES["sgd"](model.parameters()), SAM(rho=0.1), model=model)


def loop_as_it_was(setting):
    setting.backward()
    setting.optimizer.step()


def closure(setting):
    with setting.accelerator.accumulate(setting.model):
        setting.optimizer.step(setting.backward)
    with setting.accelerator.accumulate(setting.model):
        setting.optimizer.step(setting.backward)


def backward_and_closure(setting):
    setting.backward()
    setting.optimizer.step(setting.backward)


def plain_optimizer(setting):
    model = norm_net()
    setting.passes(*setting.accelerator.prepare(model, BASES["sgd"](model.parameters())))


def prepared_before_it_was_wrapped(setting):
    fw.SharpnessAware(setting.accelerator.prepare(BASES["sgd"](setting.model.parameters())), SAM(), model=setting.model)


def no_record(setting):
    for _ in setting.passes():
        setting.backward()


def forward_before_the_loop(setting):
    loss = loss_of(setting.model, BATCH)
    for p in setting.passes():
        setting.accelerator.backward(loss)
        p.record(loss)


def step_inside(setting):
    for p in setting.passes():
        p.record(setting.backward())
        setting.optimizer.step()


def zero_grad_after(setting):
    for p in setting.passes():
        p.record(setting.backward())
    setting.optimizer.zero_grad()
    setting.optimizer.step()


def clipped_inside(setting):
    for p in setting.passes():
        loss = setting.backward()
        setting.accelerator.clip_grad_norm_(setting.model.parameters(), 1.0)
        p.record(loss)


def under(engine):
    def use(setting):
        setting.accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(fsdp_version=1)
        setting.accelerator.state.distributed_type = engine
        setting.passes()

    return use


REFUSED = {
    "the loop as it was": ({}, loop_as_it_was, RuntimeError, AGAIN),
    "the loop as it was, in float16": (
        {"scaled": True},
        loop_as_it_was,
        RuntimeError,
        "a GradScaler steps this optimizer, whose method evaluates the loss more than once a step",
    ),
    "accumulation": (
        {"gradient_accumulation_steps": 2},
        lambda setting: setting.passes(),
        ValueError,
        "accumulation by Accelerate (gradient_accumulation_steps=2, accelerator.accumulate) cannot be had",
    ),
    "accumulation with closures": (
        {"gradient_accumulation_steps": 2},
        closure,
        RuntimeError,
        "it would run the closure for the last of them only, with its loss divided",
    ),
    "closures in float16": (
        {"scaled": True},
        backward_and_closure,
        RuntimeError,
        "scaler.step(optimizer, closure) cannot be had",
    ),
    "no passes": (
        {},
        lambda setting: setting.optimizer.passes(),
        AttributeError,
        "'AcceleratedOptimizer' object has no attribute 'passes'",
    ),
    "not prepared": (
        {},
        lambda setting: setting.passes(optimizer=wrapped(setting.model)),
        TypeError,
        "needs the optimizer that accelerator.prepare returned",
    ),
    "a plain optimizer": (
        {},
        plain_optimizer,
        TypeError,
        "there is no SharpnessAware inside this AcceleratedOptimizer",
    ),
    "prepared before it was wrapped": (
        {},
        prepared_before_it_was_wrapped,
        TypeError,
        "base_optimizer is what accelerator.prepare returned: wrap the plain optimizer, then prepare the SharpnessAware",
    ),
    "another model": (
        {},
        lambda setting: setting.passes(copy.deepcopy(setting.model)),
        ValueError,
        "needs the model whose parameters the optimizer trains",
    ),
    "no record": ({}, no_record, ValueError, "backward ran in this pass, but the pass was not told its loss"),
    "the forward before the loop": (
        {},
        forward_before_the_loop,
        RuntimeError,
        "Trying to backward through the graph a second time",
    ),
    "a step in the loop": (
        {},
        step_inside,
        RuntimeError,
        "step() was called while its passes were unfinished; the weights were restored",
    ),
    "zeroed before the step": (
        {},
        zero_grad_after,
        RuntimeError,
        "this method evaluates the loss more than once a step",
    ),
    "clipped in the loop": (
        {"scaled": True},
        clipped_inside,
        RuntimeError,
        "scaler.unscale_ was called on this optimizer before its passes were over",
    ),
    "deepspeed": (
        {},
        under(DistributedType.DEEPSPEED),
        ValueError,
        "sharpness-aware steps cannot be had under DeepSpeed",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_use_is_refused_and_moves_no_weight(name):
    settings, use, error, sentence = REFUSED[name]
    setting = Setting(**settings)
    before = flat(setting.model.parameters())
    assert_refused(PAGE, lambda: use(setting), error, sentence)
    assert torch.equal(flat(setting.model.parameters()), before)


@pytest.mark.parametrize("scaled", [False, True])
def test_whoever_has_the_loop_as_it_was_learns_the_name_of_ours(scaled):
    with pytest.raises(RuntimeError, match=r"accelerate\.passes"):
        loop_as_it_was(Setting(scaled))


@pytest.mark.parametrize("engine", ["FSDP", "MEGATRON_LM", "XLA"])
def test_other_engines_are_refused_as_well(engine):
    with pytest.raises(ValueError, match="sharpness-aware steps cannot be had under"):
        under(DistributedType[engine])(Setting())


def test_every_row_of_the_table_is_tested():
    assert_every_row_is_tested(PAGE, [*(sentence for *_, sentence in REFUSED.values()), *REFUSED_ON_TWO.values()])
