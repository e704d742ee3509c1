"""Problem 21: at the size of a language model the logits blow up.

hessian-eigenthings PR #46 (78 GB for a model of 160 million parameters), backpack #346, Adam-mini #29. Tokens times vocabulary is
the largest tensor, and a Hessian-vector product keeps several of that size. `chunked_cross_entropy` never has more than a
chunk of it, at both orders of differentiation.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import flatwise as fw
from flatwise.curvature import chunked_cross_entropy

TOKENS, WIDTH, VOCABULARY = 256, 16, 4000


class LanguageModel(nn.Module):
    """The end of one: hidden states, and an output layer whose weights are those of the embedding."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, tokens):
        return torch.tanh(self.layer(self.embedding(tokens)))


def plain_loss(model, batch):
    logits = model(batch[:, :-1]) @ model.embedding.weight.T
    return F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())


def chunked_loss(model, batch):
    return chunked_cross_entropy(model(batch[:, :-1]), model.embedding.weight, batch[:, 1:], chunk=32)


def objectives():
    """The same loss in one piece and in chunks, weighted by tokens."""
    torch.manual_seed(1)
    batch = torch.randint(VOCABULARY, (2, TOKENS // 2 + 1))
    model = LanguageModel()
    return [
        fw.Objective(model, loss, [batch], mode="eval", weight=lambda b: b[:, 1:].numel())
        for loss in (plain_loss, chunked_loss)
    ]


def test_the_products_in_chunks_are_the_same():
    plain, chunked = objectives()
    torch.manual_seed(2)
    vector = [torch.randn_like(p) for p in plain.weights]
    torch.testing.assert_close(chunked.value(), plain.value())
    for a, b in zip(chunked.hvp(vector), plain.hvp(vector)):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


def test_no_tensor_of_the_size_of_the_logits_is_ever_made():
    """Counted where every operation passes, at both orders of differentiation."""
    plain, chunked = objectives()
    vector = [torch.ones_like(p) for p in plain.weights]
    whole, most = TOKENS * VOCABULARY, {}
    for name, objective in (("plain", plain), ("chunked", chunked)):
        objective.preflight()
        with Largest() as largest:
            objective.differentiated_twice(vector)
        most[name] = largest.size
    assert most["plain"] >= whole
    assert most["chunked"] <= max(32 * VOCABULARY, VOCABULARY * WIDTH)


def test_the_memory_is_told_before_and_is_a_fraction():
    plain, chunked = (objective.forecast().memory() for objective in objectives())
    assert plain > 4 * TOKENS * VOCABULARY  # bytes of one tensor of logits in float32
    assert chunked < plain / 5


def test_a_transformer_of_hugging_face_is_measured_through_it():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        n_layer=1, n_head=2, n_embd=16, vocab_size=300, n_positions=32, bos_token_id=0, eos_token_id=0
    )
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config)
    batches = [{"input_ids": torch.randint(300, (2, 17))} for _ in range(2)]

    def loss(model, batch):
        tokens = batch["input_ids"]
        hidden = model.transformer(tokens[:, :-1]).last_hidden_state
        return chunked_cross_entropy(hidden, model.lm_head.weight, tokens[:, 1:], chunk=8)

    def whole(model, batch):
        return model(**batch, labels=batch["input_ids"]).loss

    found = [
        fw.curvature.top_eigenpairs(fw.curvature.hessian(fw.Objective(model, f, batches, mode="eval")), tol=1e-3)
        for f in (loss, whole)
    ]
    assert abs(found[0].values[0] / found[1].values[0] - 1) < 1e-3


class Largest(torch.utils._python_dispatch.TorchDispatchMode):
    """The number of elements of the largest tensor that any operation makes."""

    def __init__(self):
        super().__init__()
        self.size = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for t in result if isinstance(result, tuple | list) else [result]:
            if isinstance(t, torch.Tensor):
                self.size = max(self.size, t.numel())
        return result
