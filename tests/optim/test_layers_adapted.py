"""Adapters, reparametrised and shared weights, embeddings, layers that are frozen and thawed on the way."""

import pytest
import torch
import torch.nn.functional as F
from methods.cases import every_method, every_transcribed_method
from optim.problems import BASES, batches, build, every_base, flat, loss_of, mlp, seeded, train, weights
from reference import transcriptions
from torch import nn
from torch.nn.utils import parametrizations

import flatwise as fw


class Adapted(nn.Module):
    """A frozen layer and a low-rank correction, zero at the start (LoRA, arXiv 2106.09685)."""

    def __init__(self, layer, rank=2):
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(rank, layer.in_features) * 0.3)
        self.up = nn.Parameter(torch.zeros(layer.out_features, rank))

    def forward(self, x):
        low = self.layer.weight.dtype
        return self.layer(x.to(low)).to(x.dtype) + x @ self.down.t() @ self.up.t()

    def merged(self):
        return self.layer.weight + self.up @ self.down


def adapted(frozen=None):
    def make(dtype=torch.float32):
        model = seeded(lambda: nn.Sequential(Adapted(nn.Linear(6, 10)), nn.Tanh(), Adapted(nn.Linear(10, 3)))).to(dtype)
        for adapter in (model[0], model[2]):
            adapter.layer.to(frozen)
        return model

    return make


def trained(model):
    return [p for p in model.parameters() if p.requires_grad]


@every_base
@every_transcribed_method
def test_adapters_follow_the_papers_rule(case, base):
    """The optimizer holds all parameters, also the frozen ones; norms are over the adapters."""
    run, model = build(case.method, base, adapted(), torch.float64), adapted()(torch.float64)
    reference = BASES[base](trained(model))
    for batch in batches(10, dtype=torch.float64):
        run.opt.step(closure(run, batch))
        loss = lambda batch=batch: loss_of(model, batch)
        transcriptions.take_step(reference, trained(model), case.transcription(loss, trained(model)))
    torch.testing.assert_close(flat(trained(run.model)), flat(trained(model)), rtol=0, atol=case.double_tolerance)


def closure(run, batch):
    def evaluate():
        loss = loss_of(run.model, batch)
        loss.backward()
        return loss

    return evaluate


@pytest.mark.parametrize("frozen", [torch.float32, torch.bfloat16, torch.float16])
@every_base
@every_method
def test_what_an_adapter_is_attached_to_is_never_touched(case, base, frozen):
    run = build(case.method, base, adapted(frozen))
    layers = [p for p in run.params if not p.requires_grad]
    before, versions = [p.clone() for p in layers], [p._version for p in layers]
    losses = [float(loss) for loss in train(run, batches(1) * 8)]
    assert losses[-1] < losses[0]
    assert all(torch.equal(p, old) for p, old in zip(layers, before))
    assert [p._version for p in layers] == versions, "not even written into and put back"
    x = torch.randn(4, 6)
    if frozen is torch.float32:
        first = run.model[0]
        torch.testing.assert_close(first(x), F.linear(x, first.merged(), first.layer.bias))


class ByHand(nn.Module):
    """Weight normalisation in plain operations: torch's fused one has wrong second derivatives."""

    def __init__(self, linear):
        super().__init__()
        self.bias, weight = linear.bias, linear.weight.detach()
        self.length, self.direction = nn.Parameter(weight.norm(dim=1, keepdim=True)), nn.Parameter(weight.clone())

    def forward(self, x):
        return F.linear(x, self.length * self.direction / self.direction.norm(dim=1, keepdim=True), self.bias)


def reparametrised(weight_norm):
    layers = lambda: nn.Sequential(
        weight_norm(nn.Linear(6, 10)), nn.Tanh(), parametrizations.orthogonal(nn.Linear(10, 3))
    )
    return lambda dtype: seeded(layers).to(dtype)


class Shared(nn.Module):
    """A small language model whose embedding is its output layer."""

    def __init__(self, **options):
        super().__init__()
        self.embedding = nn.Embedding(7, 6, **options)
        self.mix, self.out = nn.Linear(6, 6), nn.Linear(6, 7, bias=False)
        self.out.weight = self.embedding.weight

    def forward(self, tokens):
        return self.out(torch.tanh(self.mix(self.embedding(tokens).mean(1))))


def sentences(count, seed=1):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda high: torch.randint(high, (16, 4), generator=generator)
    return [(draw(5), draw(5)[:, 0]) for _ in range(count)]


class Fourier(nn.Module):
    """Complex numbers between real weights; one weight is complex in effect, held as two real numbers."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 10), nn.Linear(10, 3)
        self.filter = nn.Parameter(torch.randn(6, 2))

    def forward(self, x):
        spectrum = torch.fft.rfft(torch.tanh(self.first(x))) * torch.view_as_complex(self.filter)
        return self.last(torch.fft.irfft(spectrum, n=10))


def in_float64(make):
    return lambda dtype: seeded(make).to(dtype)


# What is trained, what the paper's rule is applied to, the data.
NETS = {
    "reparametrised": (reparametrised(parametrizations.weight_norm), reparametrised(ByHand), batches),
    "shared embedding": (in_float64(Shared), in_float64(Shared), lambda count, dtype: sentences(count)),
    "fourier": (in_float64(Fourier), in_float64(Fourier), batches),
}


@pytest.mark.parametrize("net", NETS)
@every_transcribed_method
def test_unusual_weights_follow_the_papers_rule(case, net):
    trained, reference, data = NETS[net]
    run, model = build(case.method, net=trained, dtype=torch.float64), reference(torch.float64)
    params = list(model.parameters())
    base = BASES["sgd"](params)
    for batch in data(10, dtype=torch.float64):
        run.opt.step(closure(run, batch))
        loss = lambda batch=batch: loss_of(model, batch)
        transcriptions.take_step(base, params, case.transcription(loss, params))
    torch.testing.assert_close(flat(run.params), flat(params), rtol=0, atol=case.double_tolerance)


@every_method
def test_rows_of_tokens_that_never_occur_stay(case):
    untied = lambda dtype: seeded(
        lambda: nn.Sequential(nn.Embedding(7, 6, padding_idx=0), nn.Flatten(), nn.Linear(24, 7))
    )
    run = build(case.method, lambda params: torch.optim.SGD(params, lr=0.1), untied)
    before = run.model[0].weight.detach().clone()
    train(run, sentences(5))
    same = (run.model[0].weight == before).all(dim=1).tolist()
    assert same == [True, False, False, False, False, True, True]


@every_method
def test_an_embedding_that_shortens_its_rows_in_the_forward_does_so_once(case):
    """`max_norm` writes into the weights. They are as after one plain pass, not as after one at displaced weights."""
    capped = lambda dtype: seeded(lambda: Shared(max_norm=1.5))
    run, plain = build(case.method, lambda params: torch.optim.SGD(params, lr=0.1), capped), capped(None)
    for batch in sentences(4):
        plain.load_state_dict(run.model.state_dict())
        plain(batch[0])
        for p in run.opt.passes():
            p.backward(loss_of(run.model, batch))
        torch.testing.assert_close(flat(run.params), flat(plain.parameters()), rtol=0, atol=3e-7)  # one more rounding
        run.opt.step()


@every_base
@every_method
def test_layers_can_be_frozen_and_thawed_on_the_way(case, base):
    run = build(case.method, base)
    for i, batch in enumerate(batches(9)):
        run.model[0].requires_grad_(i % 3 == 0)
        before = weights(run)
        train(run, [batch])
        moved = [not torch.equal(p, old) for p, old in zip(run.params, before)]
        assert moved == [i % 3 == 0] * 2 + [True] * 2
    assert torch.isfinite(flat(run.params)).all()


@every_method
def test_layers_that_join_later_are_displaced_and_trained(case):
    """`add_param_group` with the iterator that `parameters()` is."""
    run = build(case.method, groups=lambda model: list(model[0].parameters()))
    whole = build(case.method, net=mlp)
    run.opt.add_param_group({"params": run.model[2].parameters()})
    assert len(run.opt.param_groups[1]["params"]) == 2
    data = batches(5)
    train(run, data)
    train(whole, data)
    assert torch.equal(flat(run.params), flat(whole.params))


@every_method
def test_two_optimizers_share_a_model(case):
    """Each displaces and steps its own half, and leaves the other where it is."""
    first = build(case.method, groups=lambda model: list(model[0].parameters()))
    second = fw.SharpnessAware(BASES["adamw"](list(first.model[2].parameters())), case.method, model=first.model)
    for batch in batches(4):
        for opt, own in ((first.opt, first.params[:2]), (second, first.params[2:])):
            before = weights(first)
            opt.step(closure(first, batch))
            opt.zero_grad()
            first.model.zero_grad()
            for p, old in zip(first.params, before):
                assert torch.equal(p, old) == all(p is not q for q in own)
