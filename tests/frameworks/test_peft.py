"""LoRA adapters of PEFT: only they are displaced and trained, in a plain loop, under the Trainer and under Accelerate."""

import pytest
import torch
from accelerate import Accelerator
from frameworks.language import distance, language_model, loss_of, plain_loop, sequences, windows
from frameworks.trainers import make
from optim.problems import flat, seeded
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from reference import transcriptions

import flatwise as fw
from flatwise.frameworks.accelerate import passes
from flatwise.frameworks.hugging_face import SharpnessAwareTrainer
from flatwise.methods import SAM, EigenSAM

# PEFT asks transformers by an older name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

STEPS = windows(sequences(), 4, 1, steps=6)


def adapted(dropout=0.0):
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], lora_dropout=dropout)
    return seeded(lambda: get_peft_model(language_model(), config))


def split(model):
    """The adapters' parameters, and the frozen rest."""
    parameters = list(model.parameters())
    return [p for p in parameters if p.requires_grad], [p for p in parameters if not p.requires_grad]


class Watching(SharpnessAwareTrainer):
    """Notes at every evaluation how far the adapters are from where the step began, and every write to a frozen weight."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.start, self.lengths, self.writes = {}, [], set()

    def compute_loss(self, model, *args, **kwargs):
        here, rest = split(model)
        step = self.state.global_step
        self.start.setdefault(step, flat(here))
        self.lengths.append(float((flat(here) - self.start[step]).norm()))
        self.writes |= {p._version for p in rest}
        return super().compute_loss(model, *args, **kwargs)


@pytest.mark.parametrize("method", [SAM(rho=0.1), EigenSAM(rho=0.1, every=2, iterations=2)], ids=["sam", "eigen-sam"])
def test_only_adapters_are_displaced_and_frozen_weights_are_never_written(tmp_path, method):
    model = adapted()
    before = [p.clone() for p in split(model)[1]]
    versions = {p._version for p in split(model)[1]}
    trained = make(tmp_path, Watching, model, method=method)
    trained.train()
    assert all(torch.equal(p, b) for p, b in zip(split(model)[1], before))
    assert trained.writes <= versions
    assert max(trained.lengths) >= 0.0999
    if method == SAM(rho=0.1):
        assert trained.lengths == pytest.approx([0.0, 0.1] * 6, rel=1e-4)


def transcribed():
    """SAM on the adapters, written down plainly."""
    model = adapted()
    trained = split(model)[0]
    base = torch.optim.SGD(trained, lr=0.1)
    for i, samples in enumerate(STEPS):
        base.param_groups[0]["lr"] = 0.1 * (1 - i / len(STEPS))
        gradient = transcriptions.sam(lambda samples=samples: loss_of(model, samples), trained, 0.1)
        for p, g in zip(trained, gradient):
            p.grad = g
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        base.step()
    return model


def test_a_trainer_and_a_plain_loop_equal_a_transcription(tmp_path):
    expected = transcribed()
    looped, _ = plain_loop(SAM(rho=0.1), STEPS, model=adapted())
    trained = make(tmp_path, model=adapted(), method=SAM(rho=0.1))
    trained.train()
    assert distance(looped, expected) < 1e-6
    assert distance(trained.model, expected) < 1e-6
    assert distance(adapted(), expected) > 1e-3


def test_accelerate_equals_a_transcription():
    ours = Accelerator(cpu=True)
    model = adapted()
    base = torch.optim.SGD(split(model)[0], lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(base, lambda step: 1 - step / len(STEPS))
    model, optimizer, schedule = ours.prepare(model, fw.SharpnessAware(base, SAM(rho=0.1), model=model), schedule)
    for samples in STEPS:
        for p in passes(ours, model, optimizer):
            loss = loss_of(model, samples)
            ours.backward(loss)
            p.record(loss)
        ours.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    assert distance(model, transcribed()) < 1e-6


def test_a_resumed_training_continues_bitwise_and_saves_adapters_only(tmp_path):
    settings = {"method": EigenSAM(rho=0.1, every=2, iterations=2), "optim": "adamw_torch", "learning_rate": 1e-2}
    whole = make(tmp_path, model=adapted(dropout=0.1), save_strategy="steps", save_steps=3, **settings)
    whole.train()
    resumed = make(tmp_path, model=adapted(dropout=0.1), **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert torch.equal(flat(resumed.model.parameters()), flat(whole.model.parameters()))
    saved = torch.load(tmp_path / "checkpoint-3" / "optimizer.pt")
    assert len(saved["state"]) == len(get_peft_model_state_dict(whole.model)) == 4
