"""Hugging Face trainers of tiny models, with the settings that all tests share."""

import torch
from frameworks.language import language_model, sequences
from optim.problems import seeded
from transformers import BertConfig, BertForSequenceClassification, PrinterCallback, TrainingArguments

from flatwise.frameworks.hugging_face import SharpnessAwareTrainer

OF_TRAINER = {
    "method",
    "perturb",
    "fresh_noise",
    "rho_schedule",
    "optimizers",
    "optimizer_cls_and_kwargs",
    "callbacks",
    "model_init",
    "eval_dataset",
}


def make(folder, cls=SharpnessAwareTrainer, model=None, data=None, **settings):
    """A trainer; keywords of it and of its arguments are told apart by name."""
    given = {name: settings.pop(name) for name in OF_TRAINER & settings.keys()}
    if model is None and "model_init" not in given:
        model = language_model()
    trainer = cls(model, arguments(folder, **settings), train_dataset=data or sequences(), **given)
    trainer.remove_callback(PrinterCallback)
    return trainer


def arguments(folder, **settings):
    chosen = {
        "per_device_train_batch_size": 4,
        "max_steps": 6,
        "learning_rate": 0.1,
        "optim": "sgd",
        "train_sampling_strategy": "sequential",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return TrainingArguments(str(folder), **(chosen | settings))


def steps_of(trainer):
    """The entries of the log that belong to steps."""
    return [entry for entry in trainer.state.log_history if "grad_norm" in entry]


def classifier(dropout=0.1):
    config = BertConfig(
        vocab_size=20,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=8,
        num_labels=3,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    return seeded(lambda: BertForSequenceClassification(config))


def sentences(count=20):
    generator = torch.Generator().manual_seed(2)
    draw = lambda: torch.randint(20, (6,), generator=generator)
    return [{"input_ids": draw(), "labels": torch.randint(3, (), generator=generator)} for _ in range(count)]
