"""Functions that keep nothing, and the loss of a language model that never holds all its logits."""

import pytest
import torch
from optim.test_memory import peak_bytes
from torch import nn
from torch.nn.functional import cross_entropy

from flatwise import Objective
from flatwise import vectors as V
from flatwise.curvature import chunked_cross_entropy, hessian, recomputed


def inputs(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, dtype=dtype, generator=generator).requires_grad_()
    targets = torch.randint(11, (3, 5), generator=generator)
    targets[1, 2:] = -100
    return draw(3, 5, 4), draw(11, 4), draw(11), targets


def plain(hidden, weight, bias, targets):
    logits = nn.functional.linear(hidden, weight, bias)
    return cross_entropy(logits.flatten(0, 1), targets.flatten())


@pytest.mark.parametrize("chunk", [1, 4, 15, 100])
def test_chunks_give_the_loss_of_the_whole_and_its_derivatives_to_third_order(chunk):
    *leaves, targets = inputs()

    def derivatives(loss):
        found = [loss]
        for _ in range(3):
            gradient = torch.autograd.grad(found[-1], leaves, create_graph=True)
            found += [*gradient, sum((g * g.detach().cos()).sum() for g in gradient)]
        return found

    hidden, weight, bias = leaves
    chunked = chunked_cross_entropy(hidden, weight, targets, bias, chunk=chunk)
    torch.testing.assert_close(derivatives(chunked), derivatives(plain(*leaves, targets)), rtol=1e-9, atol=1e-12)


def test_numerical_derivatives_agree():
    hidden, weight, _, targets = inputs()
    loss = lambda h, w: chunked_cross_entropy(h, w, targets, chunk=4)
    assert torch.autograd.gradcheck(loss, (hidden, weight))
    assert torch.autograd.gradgradcheck(loss, (hidden, weight))


def test_only_what_requires_grad_is_differentiated():
    hidden, weight, bias, targets = inputs()
    loss = chunked_cross_entropy(hidden, weight.detach(), targets, bias.detach(), chunk=4)
    (found,) = torch.autograd.grad(loss, hidden)
    torch.testing.assert_close(found, torch.autograd.grad(plain(hidden, weight, bias, targets), hidden)[0])
    with torch.no_grad():
        assert not chunked_cross_entropy(hidden, weight, targets, bias).requires_grad


def test_a_linear_function_has_no_second_derivative():
    x = torch.randn(3, requires_grad=True)
    (slope,) = torch.autograd.grad(recomputed(lambda t: 3 * t.sum(), x), x, create_graph=True)
    assert torch.equal(slope, torch.full((3,), 3.0))
    assert torch.equal(torch.autograd.grad(slope.sum(), x)[0], torch.zeros(3))


def test_autocast_of_the_forward_holds_in_the_backward():
    hidden, weight, bias, targets = inputs(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss = chunked_cross_entropy(hidden, weight, targets, bias, chunk=4)
        expected = plain(hidden, weight, bias, targets)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=1e-2, atol=0)
    for found, reference in zip(
        torch.autograd.grad(loss, [hidden, weight, bias]),
        torch.autograd.grad(expected, [hidden, weight, bias]),
        strict=True,
    ):
        assert found.dtype == torch.float32
        assert (found - reference).norm() < 0.02 * reference.norm()


def test_half_precision_logits_are_summed_in_float32():
    hidden, weight, bias, targets = inputs(torch.float32)
    low = chunked_cross_entropy(hidden.bfloat16(), weight.bfloat16(), targets, bias.bfloat16(), chunk=4)
    assert low.dtype == torch.float32


def test_targets_that_are_all_ignored_give_nan_as_torch_does():
    hidden, weight, _, targets = inputs()
    assert chunked_cross_entropy(hidden, weight, torch.full_like(targets, -100)).isnan()


@pytest.mark.parametrize(
    "change", [{"chunk": 0}, {"targets": torch.zeros(3, 4, dtype=torch.int64)}, {"weight": torch.zeros(11, 5)}]
)
def test_shapes_that_do_not_fit_are_refused(change):
    hidden, weight, _, targets = inputs()
    with pytest.raises(ValueError, match=r"must be of shapes \(..., width\), \(vocabulary, width\) and \(...\)"):
        chunked_cross_entropy(**{"hidden": hidden, "weight": weight, "targets": targets} | change)


# --- memory -----------------------------------------------------------------------------------------------------------

TOKENS, VOCABULARY, WIDTH, CHUNK = 256, 4000, 8, 16
LOGITS = 4 * TOKENS * VOCABULARY
"""Bytes of all logits: 4 MB, and 32 times the weights of the output layer."""


class LanguageModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.body = nn.TransformerEncoderLayer(WIDTH, 2, 16, dropout=0.0, activation="gelu", batch_first=True)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        return self.body(self.embedding(tokens))


def whole_loss(model, tokens):
    logits = model.head(model(tokens[:, :-1]))
    return cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def chunked_loss(model, tokens):
    return chunked_cross_entropy(model(tokens[:, :-1]), model.head.weight, tokens[:, 1:], chunk=CHUNK)


def language_model():
    torch.manual_seed(0)
    return LanguageModel(), [torch.randint(VOCABULARY, (TOKENS // 32, 33))]


def test_the_hessian_of_a_language_model_needs_no_second_set_of_logits():
    """In multiples of all logits: what a gradient and a product take at their peak, of the whole loss and of the chunked one."""
    model, data = language_model()
    whole, chunked = (hessian(Objective(model, loss, data), keep_graph=False) for loss in (whole_loss, chunked_loss))
    differences = hessian(Objective(model, whole_loss, data), "differences")
    vector = V.unit(V.random_like(whole.like, 0))
    expected = whole(vector)
    assert V.norm(V.add(chunked(vector), expected, -1.0)) < 1e-4 * V.norm(expected)
    gradient = peak_bytes(Objective(model, whole_loss, data).gradient)
    assert gradient > 2.9 * LOGITS
    assert peak_bytes(lambda: whole(vector)) > 6 * LOGITS
    assert peak_bytes(lambda: differences(vector)) < 1.1 * gradient
    assert peak_bytes(lambda: chunked(vector)) < 0.8 * LOGITS


def test_activation_checkpointing_alone_does_not_help_the_second_derivative():
    """Why there is a function for it."""
    from torch.utils.checkpoint import checkpoint

    model, data = language_model()

    def checkpointed(model, tokens):
        chunks = zip(
            model(tokens[:, :-1]).flatten(0, 1).split(CHUNK), tokens[:, 1:].flatten().split(CHUNK), strict=True
        )
        some = lambda h, t: cross_entropy(model.head(h), t, reduction="sum")
        return sum(checkpoint(some, h, t, use_reentrant=False) for h, t in chunks) / (TOKENS)

    objective = Objective(model, checkpointed, data)
    vector = V.random_like(objective.weights, 0)
    assert peak_bytes(objective.gradient) < 0.5 * LOGITS
    assert peak_bytes(lambda: objective.hvp(vector)) > 1.5 * LOGITS
