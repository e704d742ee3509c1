"""Hugging Face's causal language models on batches as they come: padded, with labels on some of their tokens."""

import functools

import pytest
import torch
from optim.test_memory import peak_bytes
from test_objective import autograd_hessian, flat
from torch import nn
from torch.func import functional_call
from transformers import (
    BatchEncoding,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

import flatwise as fw
from flatwise import Objective
from flatwise import vectors as V
from flatwise.curvature import causal_lm_loss, hessian, top_eigenpairs
from flatwise.objective import tokens

VOCABULARY, LENGTH, WIDTH = 11, 6, 4


def gpt2(dropout=0.0, vocabulary=VOCABULARY):
    """Its output layer is tied to the embedding."""
    drops = dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), dropout)
    sizes = {"n_embd": WIDTH, "n_head": 2, "n_layer": 1, "n_inner": 4, "n_positions": 64}
    return GPT2LMHeadModel(GPT2Config(vocab_size=vocabulary, **sizes, **drops))


def llama_config(kind=LlamaConfig, **settings):
    sizes = {"hidden_size": WIDTH, "intermediate_size": 4, "num_hidden_layers": 1, "num_attention_heads": 2}
    return kind(vocab_size=VOCABULARY, num_key_value_heads=2, pad_token_id=0, **sizes, **settings)


def llama(tied=False):
    return LlamaForCausalLM(llama_config(tie_word_embeddings=tied))


MODELS = {"GPT-2": gpt2, "Llama": llama, "Llama, tied": functools.partial(llama, tied=True)}


def batches(seed=0):
    """Unequal batches of sequences of unequal length, padded to the longest of each batch."""
    generator = torch.Generator().manual_seed(seed)
    return [padded(lengths, generator) for lengths in ((6, 3, 5), (2, 4), (6, 6, 2, 3))]


def padded(lengths, generator):
    mask = torch.tensor([[int(i < n) for i in range(max(lengths))] for n in lengths])
    ids = torch.randint(1, VOCABULARY, mask.shape, generator=generator) * mask
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


def models_own_loss(model, batch):
    return model(**batch).loss


LOSSES = {"the model's own": models_own_loss, "in chunks": causal_lm_loss(chunk=5)}


def network(name, dtype=torch.float32):
    torch.manual_seed(0)
    model = MODELS[name]()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(8 if p.ndim > 1 else 1)  # far from the flat logits of its initialisation
    return model.to(dtype)


@functools.cache
def brute_force(name):
    """The Hessian of the mean over all predicted tokens, in float64, by torch."""
    model = network(name, torch.float64)
    parameters = dict(model.named_parameters())

    def loss(point):
        pieces = point.split([p.numel() for p in parameters.values()])
        weights = {n: piece.view_as(p) for (n, p), piece in zip(parameters.items(), pieces, strict=True)}
        total, count = 0.0, 0
        for batch in batches():
            inputs = {n: batch[n] for n in ("input_ids", "attention_mask")}
            logits = functional_call(model, weights, (), inputs).logits[:, :-1].flatten(0, 1)
            labels = batch["labels"][:, 1:].flatten()
            total = total + nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum")
            count += int((labels != -100).sum())
        return total / count

    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        return autograd_hessian(loss, torch.cat([p.detach().flatten() for p in parameters.values()]))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", MODELS)
def test_eigenpairs_equal_brute_force(name, loss):
    H = hessian(Objective(network(name), LOSSES[loss], batches(), weight=fw.objective.tokens))
    assert H.engine == "double"
    assert H.record.samples == sum((batch["labels"][:, 1:] != -100).sum().item() for batch in batches()) == 28
    values, vectors = torch.linalg.eigh(brute_force(name))
    pairs = top_eigenpairs(H, 2, tol=1e-4)
    assert pairs.values == pytest.approx(values[-2:].flip(0).tolist(), rel=1e-4)
    assert abs(flat(pairs.vectors[0]).double() @ vectors[:, -1]) > 1 - 1e-6


def test_a_mean_over_samples_is_another_loss():
    """The trap: without a weight, batches count by their sequences."""
    model = network("Llama")
    right = Objective(model, models_own_loss, batches(), weight=tokens).value()
    wrong = Objective(model, models_own_loss, batches()).value()
    assert abs(right - wrong) > 5e-4 * right


@pytest.mark.parametrize("loss", LOSSES)
def test_batches_are_cut_by_their_tokens(loss):
    """Also where a part of a batch predicts nothing."""
    model, data = network("Llama"), batches()
    data[0]["labels"][1] = -100
    objective = Objective(model, LOSSES[loss], data, weight=tokens)
    for size in (1, 2):
        cut = Objective(model, LOSSES[loss], data, weight=tokens, micro_batch=size)
        torch.testing.assert_close(cut.value(), objective.value())
        vector = V.random_like(objective.weights, 0)
        torch.testing.assert_close(flat(cut.hvp(vector)), flat(objective.hvp(vector)), rtol=1e-3, atol=1e-4)
        assert cut.samples == objective.samples
    with pytest.raises(ValueError, match=r"is not the mean over its parts.*tokens\? then weight=... must count them"):
        Objective(model, LOSSES[loss], data, micro_batch=1).value()


def test_first_samples_that_predict_nothing_do_not_stand_for_the_others():
    """Prompts without an answer: trials take the first samples that count."""
    model, data = network("Llama"), batches()
    data[0]["labels"][:2] = -100
    objective = Objective(model, causal_lm_loss(chunk=3), data, weight=tokens)
    assert objective.forecast().memory() > 0
    assert hessian(objective).engine == "double"
    bounded = Objective(
        model, causal_lm_loss(chunk=3), data, weight=tokens, max_memory=0.7 * objective.forecast().memory()
    )
    torch.testing.assert_close(bounded.value(), objective.value())


def test_dictionaries_of_a_tokenizer_and_more_than_the_model_knows_by_heart():
    model, data = network("GPT-2"), batches()
    expected = Objective(model, models_own_loss, data, weight=tokens).value()
    encoded = [BatchEncoding(batch) for batch in data]
    for loss in LOSSES.values():
        assert Objective(model, loss, encoded, weight=tokens, micro_batch=2).value() == pytest.approx(float(expected))


def test_without_labels_the_inputs_are_predicted():
    model, data = network("Llama"), batches()
    plain = [{name: batch[name] for name in ("input_ids", "attention_mask")} for batch in data]
    assert [tokens(b) for b in plain] == [tokens(b) for b in data] == [11.0, 4.0, 13.0]
    found, expected = (Objective(model, causal_lm_loss(), b, weight=tokens).value() for b in (plain, data))
    assert found == expected


def test_tokens_are_counted_as_the_loss_counts_them():
    batch = {
        "labels": torch.tensor([[7, -100, 3, 3], [-100, -100, -100, 5]]),
        "targets": torch.tensor([[0, 1], [1, 0]]),
    }
    assert tokens(batch) == 3.0
    assert tokens(batch, shift=False) == 4.0
    assert tokens(batch, labels="targets", shift=False, ignore_index=0) == 2.0
    assert tokens({"input_ids": torch.ones(2, 5, dtype=torch.int64)}) == 8.0
    with pytest.raises(TypeError, match=r"batch must be a mapping with labels or input_ids, .*, got tuple"):
        tokens((batch["labels"],))
    with pytest.raises(ValueError, match="the batch has neither 'labels' nor 'input_ids', but 'targets'"):
        tokens({"targets": batch["targets"]})


# --- memory -----------------------------------------------------------------------------------------------------------


def test_a_product_needs_a_fraction_of_the_logits():
    """Bytes at the peak of a product, in multiples of all logits: 7.2 as the model computes its loss, 0.65 in chunks."""
    vocabulary, length = 4000, 64
    torch.manual_seed(0)
    model = gpt2(vocabulary=vocabulary)
    data = [{"input_ids": torch.randint(vocabulary, (4, length))} for _ in range(2)]
    with_labels = [batch | {"labels": batch["input_ids"]} for batch in data]
    logits = 4 * 4 * length * vocabulary
    whole, chunked = (
        hessian(Objective(model, loss, d, weight=tokens))
        for loss, d in ((models_own_loss, with_labels), (causal_lm_loss(chunk=16), data))
    )
    vector = V.unit(V.random_like(whole.like, 0))
    expected = whole(vector)
    assert V.norm(V.add(chunked(vector), expected, -1.0)) < 1e-3 * V.norm(expected)
    assert peak_bytes(lambda: chunked(vector)) < 1.0 * logits
    assert peak_bytes(lambda: whole(vector)) > 5 * logits


# --- what it is compared with, and what it refuses --------------------------------------------------------------------


def test_the_comparison_changes_nothing():
    """With dropout the first evaluation sees the same masks as all others; no hook stays."""
    torch.manual_seed(0)
    model = gpt2(dropout=0.3).train()
    objective = Objective(model, causal_lm_loss(chunk=3), batches(), weight=tokens)
    assert objective.value() == objective.value()
    assert objective.preflight().draws
    assert not any(m._forward_hooks for m in model.modules())


@pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)  # between peft and transformers
def test_adapters_of_peft_are_looked_through():
    peft = pytest.importorskip("peft")
    base = network("Llama")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = peft.get_peft_model(base, config)
    own, chunked = (Objective(model, loss, batches(), weight=tokens) for loss in LOSSES.values())
    assert V.size(own.weights) == 32
    torch.testing.assert_close(chunked.value(), own.value())
    vector = V.random_like(own.weights, 0)
    torch.testing.assert_close(flat(chunked.hvp(vector)), flat(own.hvp(vector)), rtol=1e-3, atol=1e-5)


def test_models_that_make_their_logits_otherwise_are_refused():
    torch.manual_seed(0)
    capped = Gemma2ForCausalLM(llama_config(Gemma2Config, head_dim=2, final_logit_softcapping=5.0))
    with pytest.raises(
        ValueError, match=r"how Gemma2ForCausalLM makes its loss .*: its logits are not the output layer's"
    ):
        causal_lm_loss()(capped, batches()[0])
    assert not any(m._forward_hooks for m in capped.modules())
    plain = Gemma2ForCausalLM(llama_config(Gemma2Config, head_dim=2, final_logit_softcapping=None))
    torch.testing.assert_close(causal_lm_loss()(plain, batches()[0]), plain(**batches()[0]).loss)
    with pytest.raises(ValueError, match=r"how Linear makes its loss .*: it has no body with one linear layer"):
        causal_lm_loss()(nn.Linear(3, 3), batches()[0])
    with pytest.raises(ValueError, match="how LlamaModel makes its loss"):
        causal_lm_loss()(network("Llama").model, batches()[0])
    with pytest.raises(ValueError, match="chunk must be at least 1, got 0"):
        causal_lm_loss(chunk=0)
