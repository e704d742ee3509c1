"""Hugging Face Trainer: real trainings of tiny models, compared with a plain loop and with the plain Trainer."""

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from frameworks.language import distance, language_model, loss_of, models_own_loss, plain_loop, sequences, windows
from frameworks.trainers import classifier, make, sentences, steps_of
from optim.problems import assert_same, flat
from torch.utils.data import IterableDataset
from transformers import Trainer, TrainerCallback

import flatwise as fw
from flatwise.frameworks.hugging_face import SharpnessAwareMixin, SharpnessAwareTrainer
from flatwise.methods import SAM, SGD, EigenSAM, GradientNorm, ReverseSAM

METHODS = {"sam": SAM(rho=0.1), "reverse-sam": ReverseSAM(rho=0.1), "gradient-norm": GradientNorm(rho=0.01)}
EIGEN = EigenSAM(rho=0.1, every=2, iterations=2)
OURS = ("displacement_norm", "skipped_steps")


@pytest.fixture
def train(tmp_path):
    """Train a tiny model under a trainer class."""

    def run(cls=SharpnessAwareTrainer, model=None, data=None, resume=None, **settings):
        trainer = make(tmp_path, cls, model, data, **settings)
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    return run


def same_weights(one, other):
    return torch.equal(flat(one.model.parameters()), flat(other.model.parameters()))


# --- equal to a plain loop, and to the plain trainer ------------------------------------------------------------------


@pytest.mark.parametrize("accumulated", [1, 3])
@pytest.mark.parametrize("name", METHODS)
def test_a_training_equals_a_plain_loop(train, name, accumulated):
    """Also where micro-batches differ in their number of predictions, and the last window of an epoch is shorter."""
    trainer = train(method=METHODS[name], gradient_accumulation_steps=accumulated)
    model, records = plain_loop(METHODS[name], windows(sequences(), 4, accumulated, steps=6))
    assert distance(trainer.model, model) < 1e-6
    logged = [(entry["loss"], entry["grad_norm"], entry["learning_rate"]) for entry in steps_of(trainer)]
    torch.testing.assert_close(torch.tensor(logged), torch.tensor(records), rtol=1e-5, atol=1e-6)


def test_a_training_with_eigen_sam_equals_a_plain_loop(train):
    """Its eigenvector hangs on the last bits, and on the order of parameters: the trainer puts norms in a group of their own."""
    model = language_model()
    norms = [p for name, p in model.named_parameters() if "norm" in name]
    rest = [p for name, p in model.named_parameters() if "norm" not in name]
    base = lambda _: torch.optim.SGD([{"params": rest}, {"params": norms}], lr=0.1)
    steps = windows(sequences(), 4, 1, steps=6)
    plain_loop(EIGEN, steps, model=model, base=base, loss=models_own_loss)
    assert distance(train(method=EIGEN).model, model) < 1e-6


def test_a_training_with_adamw_and_clipping_equals_a_plain_loop(train):
    settings = {"optim": "adamw_torch", "learning_rate": 1e-2, "max_grad_norm": 0.2, "weight_decay": 0.0}
    trainer = train(method=SAM(rho=0.1), gradient_accumulation_steps=2, **settings)
    base = lambda parameters: torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.0)
    model, records = plain_loop(SAM(rho=0.1), windows(sequences(), 4, 2, steps=6), base=base, clip=0.2)
    assert min(norm for _, norm, _ in records) > 0.2
    assert distance(trainer.model, model) < 1e-6


@pytest.mark.parametrize("accumulated", [1, 3])
def test_with_sgd_it_is_the_plain_trainer_bitwise(train, accumulated):
    """Dropout on. The logged losses of a window are added in another order."""
    settings = {"data": sentences(), "gradient_accumulation_steps": accumulated, "train_sampling_strategy": "random"}
    ours = train(model=classifier(), method=SGD(), **settings)
    theirs = train(Trainer, model=classifier(), **settings)
    assert same_weights(ours, theirs)
    logs = [{k: v for k, v in entry.items() if k not in OURS} for entry in steps_of(ours)]
    assert [set(entry) for entry in logs] == [set(entry) for entry in steps_of(theirs)]
    for mine, plain in zip(logs, steps_of(theirs)):
        assert mine == pytest.approx(plain, rel=1e-6)


class Stream(IterableDataset):
    def __iter__(self):
        yield from sentences(18)


class Divided(Trainer):
    """Its losses are divided by the number of micro-batches that a window has."""

    loss_is_scaled_for_ga = False


class SharpnessAwareDivided(SharpnessAwareMixin, Divided):
    pass


def test_micro_batches_left_over_at_an_epochs_end_are_treated_as_by_the_plain_trainer(train):
    """Of data without a length the trainer steps at full windows only. What is left joins the next, divided by its own number."""
    settings = {"data": Stream(), "gradient_accumulation_steps": 2}
    ours = train(SharpnessAwareDivided, classifier(dropout=0.0), method=SGD(), **settings)
    assert same_weights(ours, train(Divided, classifier(dropout=0.0), **settings))


# --- what surrounds a step --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [SAM(rho=0.1), EIGEN], ids=["sam", "eigen-sam"])
def test_a_resumed_training_continues_bitwise(train, tmp_path, method):
    """At a step at which the eigenvector is old: it comes from optimizer.pt."""
    settings = {"method": method, "optim": "adamw_torch", "learning_rate": 1e-2, "data": sentences()}
    whole = train(model=classifier(), save_strategy="steps", save_steps=3, **settings)
    resumed = train(model=classifier(), resume=str(tmp_path / "checkpoint-3"), **settings)
    assert same_weights(whole, resumed)
    assert_same(resumed.optimizer.state_dict(), whole.optimizer.state_dict())


class Poisoned(SharpnessAwareTrainer):
    """Its loss is not a number at the third step, in the second pass only."""

    def compute_loss(self, *args, **kwargs):
        loss = super().compute_loss(*args, **kwargs)
        return loss * float("nan") if self.state.global_step == 2 and not self.counts else loss


class Watch(TrainerCallback):
    """The weights after each step, and how often each event came."""

    def __init__(self):
        self.weights = []
        self.events = Counter()

    def on_step_begin(self, *args, **kwargs):
        self.events["begin"] += 1

    def on_substep_end(self, *args, **kwargs):
        self.events["substep"] += 1

    def on_pre_optimizer_step(self, *args, **kwargs):
        self.events["before"] += 1

    def on_step_end(self, *args, model, **kwargs):
        self.events["end"] += 1
        self.weights.append(flat(model.parameters()))


def test_a_step_that_is_not_finite_is_skipped_counted_and_not_scheduled(train):
    watch = Watch()
    trainer = train(Poisoned, method=SAM(rho=0.1), callbacks=[watch])
    assert torch.equal(watch.weights[2], watch.weights[1])
    assert not torch.equal(watch.weights[3], watch.weights[2])
    assert [entry["skipped_steps"] for entry in steps_of(trainer)] == [0, 0, 1, 1, 1, 1]
    rates = [entry["learning_rate"] for entry in steps_of(trainer)]
    assert rates == pytest.approx([0.1 * (1 - step / 6) for step in (0, 1, 2, 2, 3, 4)])


class Float16(SharpnessAwareTrainer):
    """As fp16=True does on a GPU: float16 autocast, and a gradient scaler that steps the optimizer."""

    scale = 2.0**16

    def create_accelerator_and_postprocess(self):
        super().create_accelerator_and_postprocess()
        self.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=self.scale)
        self.accelerator.native_amp = True
        self.accelerator.state._mixed_precision = "fp16"

    def train(self, *args, **kwargs):
        try:
            return super().train(*args, **kwargs)
        finally:
            self.accelerator.state._mixed_precision = "no"


class Overflowing(Float16):
    scale = 2.0**40


def test_float16_with_a_gradient_scaler_equals_a_plain_loop_with_one(train):
    trainer = train(Float16, method=SAM(rho=0.1), max_grad_norm=0.2)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    steps = windows(sequences(), 4, 1, steps=6)
    settings = {"loss": models_own_loss, "precision": torch.float16, "scaler": scaler}
    model, records = plain_loop(SAM(rho=0.1), steps, clip=0.2, **settings)
    assert distance(trainer.model, model) < 1e-6
    assert [entry["grad_norm"] for entry in steps_of(trainer)] == pytest.approx(
        [norm for _, norm, _ in records], rel=1e-4
    )
    assert trainer.accelerator.scaler.get_scale() == 2.0**16


def test_an_overflow_backs_the_scale_off_once_a_step_and_moves_nothing(train):
    trainer = train(Overflowing, method=SAM(rho=0.1), max_steps=3)
    assert torch.equal(flat(trainer.model.parameters()), flat(language_model().parameters()))
    assert trainer.accelerator.scaler.get_scale() == 2.0**37
    assert [entry["skipped_steps"] for entry in steps_of(trainer)] == [1, 2, 3]
    assert {entry["learning_rate"] for entry in steps_of(trainer)} == {0.1}


def test_bfloat16_autocast_equals_a_plain_loop_under_autocast(train):
    trainer = train(method=SAM(rho=0.1), bf16=True)
    steps = windows(sequences(), 4, 1, steps=6)
    model, _ = plain_loop(SAM(rho=0.1), steps, loss=models_own_loss, precision=torch.bfloat16)
    assert distance(trainer.model, model) < 1e-6
    assert distance(trainer.model, train(method=SAM(rho=0.1)).model) > 1e-5


@pytest.mark.parametrize(
    "settings",
    [
        {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": True}},
        {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": False}},
        {"torch_compile": True, "torch_compile_backend": "eager"},
    ],
    ids=["reentrant-checkpointing", "checkpointing", "compiled"],
)
def test_what_must_not_change_the_result_does_not(train, settings):
    assert distance(train(method=SAM(rho=0.1), **settings).model, train(method=SAM(rho=0.1)).model) < 1e-7


def test_label_smoothing_equals_torchs_own(train):
    data = sentences()
    trainer = train(model=classifier(dropout=0.0), data=data, method=SAM(rho=0.1), label_smoothing_factor=0.1)
    model = classifier(dropout=0.0)
    optimizer = fw.SharpnessAware(torch.optim.SGD(model.parameters(), lr=0.1), SAM(rho=0.1), model=model)
    for i, samples in enumerate(windows(data, 4, 1, steps=6)):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - i / 6)
        for p in optimizer.passes():
            logits = model(input_ids=torch.stack([s["input_ids"] for s in samples])).logits
            p.backward(F.cross_entropy(logits, torch.stack([s["labels"] for s in samples]), label_smoothing=0.1))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    assert distance(trainer.model, model) < 1e-6


class Recorder(SharpnessAwareTrainer):
    """Writes down the mode and a random number of every forward, and logs from its loss as users do."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.seen = []

    def compute_loss(self, model, *args, **kwargs):
        self.seen.append((self.state.global_step, model.training, float(torch.rand(()))))
        self.log({"mine": 1.0})
        return super().compute_loss(model, *args, **kwargs)


def test_probes_run_in_evaluation_mode_although_the_trainer_calls_train(train):
    trainer = train(Recorder, method=EigenSAM(rho=0.1, every=2, iterations=2), model=language_model(dropout=0.1))
    modes = [[training for step, training, _ in trainer.seen if step == i] for i in range(2)]
    assert modes == [[True, False, False, False, True], [True, True]]
    assert trainer.model.training


def test_passes_see_the_same_random_numbers_unless_fresh_noise_is_asked_for(train):
    replayed, fresh = train(Recorder, method=SAM()), train(Recorder, method=SAM(), fresh_noise=True)
    assert len({number for *_, number in replayed.seen}) == 6
    assert len({number for *_, number in fresh.seen}) == 12


def test_a_loss_that_logs_itself_does_so_once_a_step(train):
    trainer = train(Recorder, method=SAM())
    assert sum("mine" in entry for entry in trainer.state.log_history) == 6


def test_callbacks_come_as_often_as_under_the_plain_trainer(train):
    ours, theirs = Watch(), Watch()
    train(method=SAM(), callbacks=[ours], gradient_accumulation_steps=2)
    train(Trainer, callbacks=[theirs], gradient_accumulation_steps=2)
    assert ours.events == theirs.events


def test_evaluation_in_between_changes_nothing_and_sees_the_weights(train):
    trainer = train(method=SAM(rho=0.1), eval_strategy="steps", eval_steps=1, eval_dataset=sequences(4, seed=5))
    assert same_weights(trainer, train(method=SAM(rho=0.1)))
    last = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry][-1]
    with torch.no_grad():
        assert last == pytest.approx(float(loss_of(trainer.model, sequences(4, seed=5))), rel=1e-5)


def test_a_schedule_of_rho_reaches_the_optimizer(train):
    trainer = train(method=SAM(rho=0.1), rho_schedule=fw.schedules.Linear(0.5, 1.0, 5))
    lengths = [entry["displacement_norm"] for entry in steps_of(trainer)]
    assert lengths == pytest.approx([0.05, 0.06, 0.07, 0.08, 0.09, 0.1], rel=1e-5)


# --- where optimizer and model come from ------------------------------------------------------------------------------


def test_an_optimizer_that_was_wrapped_by_the_user_serves_as_well(train):
    model = language_model()
    groups = fw.parameter_groups(model)
    own = fw.SharpnessAware(torch.optim.SGD(groups, lr=0.1), SAM(rho=0.1), model=model)
    trainer = train(model=model, optimizers=(own, None))
    assert fw.unwrap(trainer.optimizer) is own
    assert steps_of(trainer)[-1]["displacement_norm"] == pytest.approx(0.1, rel=1e-5)
    assert not same_weights(trainer, train(method=SAM(rho=0.1)))


@pytest.mark.parametrize("how", ["class", "instance"])
def test_an_optimizer_of_the_users_choice_is_wrapped(train, how):
    model = language_model()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    chosen = {
        "class": {"optimizer_cls_and_kwargs": (torch.optim.SGD, {"lr": 0.1})},
        "instance": {"optimizers": (sgd, None)},
    }
    trainer = train(model=model, method=SAM(rho=0.1), **chosen[how])
    assert same_weights(trainer, train(method=SAM(rho=0.1)))


def test_a_model_from_a_function_starts_anew_with_each_training(tmp_path):
    trainer = make(tmp_path, model_init=lambda: language_model(), method=SAM(rho=0.1))
    trainer.train()
    first = flat(trainer.model.parameters())
    trainer.train()
    assert torch.equal(flat(trainer.model.parameters()), first)


def test_a_second_training_goes_on_with_the_same_optimizer(tmp_path):
    trainer = make(tmp_path, method=SAM(rho=0.1), max_steps=3)
    trainer.train()
    first = fw.unwrap(trainer.optimizer)
    trainer.train()
    assert fw.unwrap(trainer.optimizer) is first


class Small(SharpnessAwareTrainer):
    """Memory is out in the second pass of the second step, unless batches are small."""

    def compute_loss(self, model, inputs, *args, **kwargs):
        if self.state.global_step == 1 and not self.counts and len(inputs["input_ids"]) > 7:
            raise RuntimeError("CUDA out of memory.")
        return super().compute_loss(model, inputs, *args, **kwargs)


def test_a_batch_that_does_not_fit_is_tried_again_smaller_and_from_restored_weights(tmp_path):
    trainer = make(tmp_path, Small, method=SAM(rho=0.1), per_device_train_batch_size=8, auto_find_batch_size=True)
    trainer.train()
    assert trainer._train_batch_size == 7
    assert steps_of(trainer)[-1]["displacement_norm"] == pytest.approx(0.1, rel=1e-5)


class Own(Trainer):
    def training_step(self, model, inputs, *args, **kwargs):
        inputs.pop("note")  # as users do: the next pass must find it again
        return super().training_step(model, inputs, *args, **kwargs)


class SharpnessAwareOwn(SharpnessAwareMixin, Own):
    pass


def test_the_mixin_serves_a_trainer_with_a_training_step_of_its_own(train):
    data = [{**sample, "note": torch.tensor(0)} for sample in sequences()]
    trainer = train(SharpnessAwareOwn, data=data, method=SAM(rho=0.1), remove_unused_columns=False)
    assert same_weights(trainer, train(method=SAM(rho=0.1)))
