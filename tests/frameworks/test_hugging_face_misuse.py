"""What people do wrong with the Hugging Face Trainer, and the sentence each of them gets. The recipe's table says the same."""

import copy
import random

import pytest
import torch
from accelerate import FullyShardedDataParallelPlugin
from accelerate.utils import DistributedType
from frameworks.language import language_model
from frameworks.misuse import assert_every_row_is_tested, assert_refused, assert_warned
from frameworks.trainers import classifier, make, sentences, steps_of
from optim.problems import flat
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainerCallback

import flatwise as fw
from flatwise.frameworks.hugging_face import SharpnessAwareMixin, SharpnessAwareTrainer
from flatwise.methods import SAM, SGD

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

PAGE = "hugging-face.md"
AGAIN = "this method evaluates the loss more than once a step"


def wrapped(model):
    return fw.SharpnessAware(torch.optim.SGD(model.parameters(), lr=0.1), SAM(), model=model)


class HalfPrecision(Trainer):
    def create_accelerator_and_postprocess(self):
        super().create_accelerator_and_postprocess()
        self.accelerator.scaler = torch.amp.GradScaler("cpu")


def under(engine):
    class Elsewhere(SharpnessAwareTrainer):
        def create_accelerator_and_postprocess(self):
            super().create_accelerator_and_postprocess()
            self.accelerator.state.distributed_type = engine
            self.accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(fsdp_version=1)

    return lambda folder: make(folder, Elsewhere, method=SAM())


def plain_trainer(folder, cls=Trainer):
    model = language_model()
    before = flat(model.parameters())
    try:
        make(folder, cls, model, optimizers=(wrapped(model), None)).train()
    finally:
        assert torch.equal(flat(model.parameters()), before)


def two_methods(folder):
    model = language_model()
    make(folder, model=model, method=SAM(), optimizers=(wrapped(model), None))


def the_mixin_last(_):
    class Last(Trainer, SharpnessAwareMixin):
        pass


def of_another_model(folder):
    model = language_model()
    make(folder, model=model, optimizers=(wrapped(copy.deepcopy(model)), None)).train()


def before_the_adapters(folder):
    model = language_model()
    optimizer = wrapped(model)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    make(folder, model=adapted, optimizers=(optimizer, None)).train()


class Zeroes(TrainerCallback):
    def on_pre_optimizer_step(self, *args, optimizer, **kwargs):
        optimizer.zero_grad()


class Mixes(SharpnessAwareTrainer):
    def compute_loss(self, *args, **kwargs):
        return random.betavariate(1, 1) * super().compute_loss(*args, **kwargs)


REFUSED = {
    "the plain trainer": (plain_trainer, RuntimeError, AGAIN),
    "the plain trainer in float16": (
        lambda folder: plain_trainer(folder, HalfPrecision),
        RuntimeError,
        "a GradScaler steps this optimizer, whose method evaluates the loss more than once a step",
    ),
    "no method": (make, TypeError, "this trainer needs a method, such as method=SAM(rho=0.05)"),
    "a class for a method": (
        lambda folder: make(folder, method=SAM),
        TypeError,
        "method must be an instance, got the class SAM: pass SAM()",
    ),
    "a name for a method": (
        lambda folder: make(folder, method="sam"),
        TypeError,
        "method must be one of flatwise.methods",
    ),
    "two methods": (two_methods, ValueError, "brings a method of its own: give method=... and its options there"),
    "our class for the base": (
        lambda folder: make(
            folder, method=SAM(), optimizer_cls_and_kwargs=(fw.SharpnessAware, {"method": SAM()})
        ).train(),
        TypeError,
        "base_optimizer must be a torch.optim.Optimizer, got a list: make one first",
    ),
    "the mixin last": (the_mixin_last, TypeError, "SharpnessAwareMixin must stand before Trainer in the bases"),
    "a lomo": (
        lambda folder: make(folder, method=SAM(), optim="lomo"),
        ValueError,
        "updates the weights during backward, so the second pass would start from other weights",
    ),
    "a layerwise optimizer": (
        lambda folder: make(folder, method=SAM(), optim="galore_adamw_layerwise", optim_target_modules=["q_proj"]),
        ValueError,
        "updates the weights during backward, so the second pass would start from other weights",
    ),
    "deepspeed": (
        under(DistributedType.DEEPSPEED),
        ValueError,
        "sharpness-aware steps cannot be had under DeepSpeed",
    ),
    "local on one process": (
        lambda folder: make(folder, method=SAM(), perturb="local"),
        ValueError,
        "perturb='local' needs model to be a DistributedDataParallel",
    ),
    "a schedule without rho": (
        lambda folder: make(folder, method=SGD(), rho_schedule=fw.schedules.Linear(0.0, 1.0, 5)),
        ValueError,
        "rho_schedule has no effect",
    ),
    "another model": (of_another_model, ValueError, "needs the model whose parameters the optimizer trains"),
    "adapters afterwards": (before_the_adapters, ValueError, "no parameter received a gradient in this pass"),
    "zeroes in a callback": (
        lambda folder: make(folder, method=SAM(), callbacks=[Zeroes()]).train(),
        RuntimeError,
        AGAIN,
    ),
}
WARNED = {
    "mixup": (
        lambda folder: make(folder, Mixes, method=SAM()).train(),
        "random numbers were drawn from Python's or numpy's global generator",
    ),
}
NOTHING_TO_TELL = "loss_is_scaled_for_ga = False"


@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_use_is_refused(name, tmp_path):
    use, error, sentence = REFUSED[name]
    assert_refused(PAGE, lambda: use(tmp_path), error, sentence)


@pytest.mark.parametrize("name", WARNED)
def test_a_bad_use_is_warned_of(name, tmp_path):
    use, sentence = WARNED[name]
    assert_warned(PAGE, lambda: use(tmp_path), sentence)


@pytest.mark.parametrize("cls", [Trainer, HalfPrecision])
def test_whoever_has_the_plain_trainer_learns_the_name_of_ours(cls, tmp_path):
    with pytest.raises(RuntimeError, match=r"hugging_face\.SharpnessAwareTrainer"):
        plain_trainer(tmp_path, cls)


@pytest.mark.parametrize("engine", ["FSDP", "MEGATRON_LM", "XLA"])
def test_other_engines_are_refused_as_well(engine, tmp_path):
    with pytest.raises(ValueError, match="sharpness-aware steps cannot be had under"):
        under(DistributedType[engine])(tmp_path)


@pytest.mark.parametrize("name", ["lomo", "adalomo", "apollo_adamw_layerwise", "galore_adafactor_layerwise"])
def test_every_optimizer_that_steps_in_backward_is_refused(name, tmp_path):
    with pytest.raises(ValueError, match=f"optim='{name}'"):
        make(tmp_path, method=SAM(), optim=name, optim_target_modules=["q_proj"])


def test_losses_that_ignore_the_number_of_items_are_added_up_as_by_the_plain_trainer(tmp_path):
    """Bert's does. The trainer's own switch divides them."""
    first = []
    for cls, divided in ((Trainer, False), (SharpnessAwareTrainer, False), (SharpnessAwareTrainer, True)):
        settings = {"method": SAM()} if cls is SharpnessAwareTrainer else {}
        trainer = make(
            tmp_path, cls, classifier(dropout=0.0), sentences(), gradient_accumulation_steps=2, max_steps=1, **settings
        )
        if divided:
            trainer.loss_is_scaled_for_ga = False
        trainer.train()
        first.append(steps_of(trainer)[0]["loss"])
    assert first[1] == pytest.approx(first[0])
    assert first[2] == pytest.approx(first[0] / 2)


def test_every_row_of_the_table_is_tested():
    sentences = [use[-1] for use in [*REFUSED.values(), *WARNED.values()]]
    assert_every_row_is_tested(PAGE, [*sentences, NOTHING_TO_TELL])
