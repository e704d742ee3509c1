"""Problem 22: operations without second derivatives.

pytorch #116350, #116348, #128971 (fused attention), #181177 (on the CPU too); #5261, #25315, #134901 (cuDNN's recurrent layers);
higher #23 asks for automatic handling. curvlinops and PyHessian fail on a Transformer layer; others switch fused attention
off for the whole process. Here a trial on a few samples finds out, switches locally, and writes down what was used.
"""

import pytest
import torch
from torch import nn
from torch.autograd.function import once_differentiable

import flatwise as fw


class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.TransformerEncoderLayer(4, 2, dim_feedforward=6, dropout=0.0, batch_first=True)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.layer(x).mean(1))


class FusedSquare(torch.autograd.Function):
    """Somebody's own operation, with a backward that cannot be differentiated."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return 2 * x * gradient


class Fused(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 2)

    def forward(self, x):
        return FusedSquare.apply(self.layer(x.mean(1)))


class Unfused(Fused):
    def forward(self, x):
        return self.layer(x.mean(1)) ** 2


def loss_of(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def data():
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(6, 3, 4, generator=generator), torch.randint(2, (6,), generator=generator)) for _ in range(2)]


def objective(model):
    return fw.Objective(model, loss_of, data(), mode="train")


def brute_force(model):
    """The Hessian in float64, column by column, by differences of gradients."""
    wide = type(model)().double()
    batches = [(x.double(), y) for x, y in data()]
    parameters = list(wide.parameters())

    def gradient(flat):
        torch.nn.utils.vector_to_parameters(flat, parameters)
        loss = sum(loss_of(wide, batch) for batch in batches) / len(batches)
        return torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, parameters)])

    here = torch.nn.utils.parameters_to_vector(parameters).detach()
    steps = 1e-5 * torch.eye(len(here), dtype=torch.float64)
    return torch.stack([(gradient(here + e) - gradient(here - e)) / 2e-5 for e in steps])


def test_attention_is_differentiated_twice_and_the_record_says_how():
    hessian = fw.curvature.hessian(objective(Attending()))
    assert hessian.engine == "double"
    assert "attention by its formula" in hessian.reason
    exact = torch.linalg.eigvalsh(brute_force(Attending()))[-1].item()
    pairs = fw.curvature.top_eigenpairs(hessian, tol=1e-4)
    assert pairs.values[0] == pytest.approx(exact, rel=1e-4)
    assert pairs.record.reason == hessian.reason


def test_fused_attention_is_switched_off_locally_and_not_for_the_process():
    switches = lambda: (
        torch.backends.cuda.flash_sdp_enabled(),
        torch.backends.cuda.mem_efficient_sdp_enabled(),
        torch.backends.cuda.math_sdp_enabled(),
        torch.backends.cudnn.enabled,
    )
    before, seen = switches(), []
    model = Attending()
    model.head.register_forward_hook(lambda *_: seen.append(switches()))
    fw.curvature.top_eigenpairs(fw.curvature.hessian(objective(model)), tol=1e-2)
    assert switches() == before
    assert any(during != before for during in seen)


def test_an_operation_of_somebodys_own_is_measured_by_differences():
    """`autograd.grad` does not notice that its second derivative is missing, and would be silently wrong."""
    hessian = fw.curvature.hessian(objective(Fused()))
    assert hessian.engine == "differences"
    assert "FusedSquare has no right second derivative" in hessian.reason
    exact = torch.linalg.eigvalsh(brute_force(Unfused()))[-1].item()
    assert fw.curvature.top_eigenpairs(hessian, tol=1e-2).values[0] == pytest.approx(exact, rel=1e-2)


def test_asking_for_exact_products_where_there_are_none_is_answered_with_the_reason():
    with pytest.raises(RuntimeError, match=r'FusedSquare.*engine="differences" is'):
        fw.curvature.hessian(objective(Fused()), engine="double")
