"""A tiny language model, ragged sequences, and the plain loop that the trainers are compared with."""

import torch
import torch.nn.functional as F
from optim.problems import flat, seeded
from transformers import LlamaConfig, LlamaForCausalLM

import flatwise as fw

VOCABULARY, LENGTH = 20, 6


def language_model(dropout=0.0):
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        attention_dropout=dropout,
    )
    return seeded(lambda: LlamaForCausalLM(config))


def sequences(count=20, seed=1):
    """Of one length, but with labels on 2 to 6 of their tokens: micro-batches have unequal numbers of predictions."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        ids = torch.randint(VOCABULARY, (LENGTH,), generator=generator)
        labels = ids.clone()
        labels[int(torch.randint(2, LENGTH + 1, (), generator=generator)) :] = -100
        found.append({"input_ids": ids, "labels": labels})
    return found


def windows(data, size, micro_batches, steps):
    """The samples of each optimizer step: `micro_batches` of `size`; the last step of an epoch takes what is left."""
    each = size * micro_batches
    epoch = [data[i : i + each] for i in range(0, len(data), each)]
    return [epoch[i % len(epoch)] for i in range(steps)]


def loss_of(model, samples):
    """The mean over all predictions of the samples, in one forward."""
    ids, labels = stacked(samples)
    logits = model(input_ids=ids).logits[:, :-1]
    return F.cross_entropy(logits.reshape(-1, VOCABULARY).float(), labels[:, 1:].reshape(-1))


def models_own_loss(model, samples):
    """The same, by the arithmetic of transformers: bitwise what a trainer computes."""
    ids, labels = stacked(samples)
    return model(input_ids=ids, labels=labels, num_items_in_batch=labels[:, 1:].ne(-100).sum()).loss


def stacked(samples):
    return tuple(torch.stack([sample[name] for sample in samples]) for name in ("input_ids", "labels"))


def plain_loop(method, steps, *, model=None, base=None, clip=1.0, loss=loss_of, precision=None, scaler=None):
    """Our optimizer in a loop of one's own: each step sees its whole window at once; the learning rate falls linearly to 0.

    Returns the trained model, and for every step its loss, gradient norm and learning rate.
    """
    model = model or language_model()
    trained = [p for p in model.parameters() if p.requires_grad]
    inner = base(trained) if base else torch.optim.SGD(trained, lr=0.1)
    optimizer = fw.SharpnessAware(inner, method, model=model)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / len(steps))
    records = []
    for samples in steps:
        for p in optimizer.passes(scaler):
            with torch.autocast("cpu", precision, enabled=precision is not None):
                value = loss(model, samples)
            p.backward(value)
        if scaler:
            scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(trained, clip)
        records.append((optimizer.diagnostics["loss"], float(norm), schedule.get_last_lr()[0]))
        if scaler:
            scaler.step(optimizer)
            scaler.update()
        else:
            optimizer.step()
        schedule.step()
    return model, records


def distance(model, other):
    return float((flat(model.parameters()) - flat(other.parameters())).abs().max())
