"""Eigen-SAM's vector on networks, against the exact eigenvector of a float64 copy of the model when the probes are made."""

import copy
import itertools
import statistics

import pytest
import torch
import torch.nn.functional as F
from optim.problems import (
    assert_same,
    batches,
    build,
    count_evaluations,
    flat,
    loss_of,
    mlp,
    noisy_net,
    norm_net,
    seeded,
    snapshot,
    step_by_closure,
    step_by_passes,
    train,
)
from reference import transcriptions
from torch import nn

from flatwise.methods import EigenSAM


def exact_top(model, batch):
    """The largest eigenvalue of the evaluation-mode Hessian of this batch's loss, and its eigenvector."""
    exact = copy.deepcopy(model).double().eval()
    x, y = batch
    loss = lambda: F.cross_entropy(exact(x.double()), y)
    return transcriptions.top_eigenvector(loss, list(exact.parameters()))


def tracked(run):
    state = run.opt.state_dict()["state"]
    return flat([state[i]["flatwise.eigenvector"] for i in range(len(run.params))]).double()


@pytest.mark.parametrize("net", [mlp, norm_net, noisy_net])
def test_on_one_batch_it_converges(net):
    """Hardly any movement, always the same batch: |cos| above 0.99 and the Rayleigh quotient within 1 %."""
    run = build(EigenSAM(rho=0.05, every=1, iterations=5), lambda params: torch.optim.SGD(params, lr=1e-4), net)
    (batch,) = batches(1, size=32)
    for _ in range(40):  # long enough for running statistics to settle
        step_by_passes(run, batch)
    value, vector = exact_top(run.model, batch)
    assert (tracked(run) @ vector).abs().item() > 0.99
    assert run.opt.diagnostics["rayleigh_quotient"] == pytest.approx(value, rel=0.01)


class Saddle(nn.Module):
    """w'Hw/2 with a negative eigenvalue far larger than the largest positive one."""

    def __init__(self, spectrum):
        super().__init__()
        generator = torch.Generator().manual_seed(4)
        n = len(spectrum)
        q = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))[0]
        self.top = q[:, spectrum.index(max(spectrum))]
        self.h = (q @ torch.diag(torch.tensor(spectrum, dtype=torch.float64)) @ q.T).float()
        self.w = nn.Parameter(torch.randn(n, generator=generator))

    def forward(self):
        return 0.5 * self.w @ self.h @ self.w


@pytest.mark.parametrize("spectrum", [[-10.0, -4.0, -1.0, 0.0, 0.5, 1.0, 3.0], [-40.0, 0.1, 0.2, 1.0]])
def test_a_larger_negative_eigenvalue_is_not_followed(spectrum):
    import flatwise as fw

    model = Saddle(spectrum)
    opt = fw.SharpnessAware(torch.optim.SGD([model.w], lr=1e-6), EigenSAM(rho=0.05, every=2, iterations=5), model=model)

    def closure():
        loss = model()
        loss.backward()
        return loss

    for _ in range(60):
        opt.step(closure)
    v = opt.state_dict()["state"][0]["flatwise.eigenvector"].double()
    assert v.norm().item() == pytest.approx(1.0, rel=1e-5)
    assert abs(v @ model.top).item() > 0.98


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_it_has_unit_norm_after_every_step(dtype):
    run = build(EigenSAM(rho=0.05, every=3, iterations=2), dtype=dtype)
    for batch in batches(7, dtype=dtype):
        step_by_closure(run, batch)
        assert tracked(run).norm().item() == pytest.approx(1.0, rel=3 * torch.finfo(dtype).eps)


def test_the_schedule_counts_steps_and_the_base_probe_is_left_out_where_it_is_known():
    plain, normed = (build(EigenSAM(every=4, iterations=3), net=net) for net in (mlp, noisy_net))
    data = batches(9)
    assert [count_evaluations(plain, step_by_passes, batch) for batch in data] == [6, 2, 2, 2, 5, 2, 2, 2, 5]
    assert [count_evaluations(normed, step_by_passes, batch) for batch in data] == [6, 2, 2, 2, 6, 2, 2, 2, 6]


def test_the_vector_stays_between_refreshes():
    run = build(EigenSAM(rho=0.05, every=4, iterations=2))
    vectors = []
    for batch in batches(9):
        step_by_closure(run, batch)
        vectors.append(tracked(run))
    same = [torch.equal(a, b) for a, b in itertools.pairwise(vectors)]
    assert same == [True, True, True, False, True, True, True, False]


def test_a_skipped_refresh_is_made_up_for():
    """The schedule counts steps taken: the step after a skipped refresh refreshes."""
    run = build(EigenSAM(every=4, iterations=3))
    good, (x, y) = batches(2)
    step_by_closure(run, (x * float("nan"), y))
    assert count_evaluations(run, step_by_closure, good) == 6


def test_the_diagnostics_satisfy_the_closed_forms():
    rho, alpha = 0.1, 0.5
    run = build(EigenSAM(rho=rho, alpha=alpha, every=3, iterations=2), dtype=torch.float64)
    for batch in batches(6, dtype=torch.float64):
        g = flat(transcriptions.gradient(lambda batch=batch: loss_of(run.model, batch), run.params))
        step_by_closure(run, batch)
        seen = run.opt.diagnostics
        c = (g @ tracked(run) / g.norm()).abs().item()
        assert abs(seen["alignment_gradient_tracked"]) == pytest.approx(c, rel=1e-5)
        assert seen["gradient_norm"] == pytest.approx(g.norm().item(), rel=1e-5)
        assert seen["displacement_norm"] == pytest.approx(transcriptions.eigen_sam_length(rho, alpha, c), rel=1e-5)
        alignment = transcriptions.eigen_sam_alignment(alpha, c)
        assert abs(seen["alignment_displacement_tracked"]) == pytest.approx(alignment, rel=1e-5)


@pytest.mark.parametrize(("source", "without"), [("lanczos", 4), ("free", 1), ("ritz", 0)])
def test_before_there_is_a_vector_nothing_is_aligned(source, without):
    """The displacement is SAM's until then, and the diagnostics say so."""
    run = build(EigenSAM(rho=0.1, alpha=0.5, source=source))
    names = ("alignment_gradient_tracked", "alignment_displacement_tracked")
    for step, batch in enumerate(batches(6)):
        step_by_closure(run, batch)
        seen = [run.opt.diagnostics[name] for name in names]
        assert seen == [0.0, 0.0] if step < without else min(seen) > 0, step


def test_probes_leave_no_trace():
    """With alpha 0 the vector has no effect: the run is SAM's, bitwise, buffers and random numbers included."""
    from flatwise.methods import SAM

    def final(method):
        torch.manual_seed(7)
        run = build(method, net=noisy_net)
        train(run, batches(8))
        taken = snapshot(run)
        return taken["model"], taken["modes"], taken["base"]

    assert_same(final(EigenSAM(rho=0.1, alpha=0.0, every=2, iterations=2)), final(SAM(rho=0.1)))


def aligned_under_autocast(dtype, seed):
    run = build(EigenSAM(rho=0.05, every=1, iterations=5), lambda params: torch.optim.SGD(params, lr=1e-4))
    (batch,) = batches(1, size=64, seed=seed)

    def closure():
        with torch.autocast("cpu", dtype=dtype):
            loss = loss_of(run.model, batch)
        loss.backward()
        return loss

    for _ in range(15):
        run.opt.step(closure)
    assert run.opt.diagnostics["skipped"] == 0
    return (tracked(run) @ exact_top(run.model, batch)[1]).abs().item()


@pytest.mark.parametrize(("dtype", "least"), [(torch.float16, 0.95), (torch.bfloat16, 0.7)])
def test_closures_under_autocast(dtype, least):
    """The difference of two rounded gradients must not drown: the vector still points at the top eigenvector."""
    assert statistics.median(aligned_under_autocast(dtype, seed) for seed in range(5)) > least


class Attention(nn.Module):
    """scaled_dot_product_attention has no second derivative in its fast kernels."""

    def __init__(self):
        super().__init__()
        self.inputs, self.attend = nn.Linear(6, 8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.outputs = nn.Linear(8, 3)

    def forward(self, x):
        tokens = self.inputs(x).view(4, -1, 8)
        return self.outputs(self.attend(tokens, tokens, tokens, need_weights=False)[0]).reshape(len(x), 3)


def test_attention_layers():
    run = build(EigenSAM(rho=0.05, every=2, iterations=3), net=lambda dtype: seeded(Attention))
    (batch,) = batches(1)
    losses = [float(step_by_closure(run, batch)) for _ in range(31)]
    assert losses[-1] < losses[0] - 0.1
    assert tracked(run).norm().item() == pytest.approx(1.0, rel=1e-5)
    assert run.opt.diagnostics["rayleigh_quotient"] > 0  # of the refresh in the last step
