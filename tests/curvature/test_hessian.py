"""Which engine a model gets, why, and what is recorded of a measurement."""

import math

import pytest
import torch
from curvature.networks import Checkpointed, mlp, problem
from test_objective import Attention, batches, cross_entropy, dense, flat, loss_of_flat_weights
from torch import nn
from torch.utils.checkpoint import checkpoint

from flatwise import Objective
from flatwise import vectors as V
from flatwise.curvature import (
    chunked_cross_entropy,
    hessian,
    top_eigenpairs,
)

# --- operations without a right second derivative ---------------------------------------------------------------------


class Marked(torch.autograd.Function):
    """Its backward says that it is differentiable once; `autograd.grad` does not notice."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, along):
        return along * ctx.saved_tensors[0].cos()


class Cut(torch.autograd.Function):
    """Its backward computes where autograd does not see it."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, along):
        return along * ctx.saved_tensors[0].detach().cos()


class Right(Cut):
    @staticmethod
    def backward(ctx, along):
        return along * ctx.saved_tensors[0].cos()


class Custom(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.first, self.last = nn.Linear(5, 4), nn.Linear(4, 3)
        self.function = torch.sin if function is None else function.apply

    def forward(self, x):
        return self.last(self.function(self.first(x)))


def custom(function, dtype=torch.float64):
    torch.manual_seed(0)
    return Objective(Custom(function).to(dtype), cross_entropy, batches(7, 4, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("function", [Marked, Cut])
def test_a_wrong_second_derivative_is_not_believed(function, dtype):
    H = hessian(custom(function, dtype))
    assert H.engine == "differences"
    assert f"{function.__name__} has no right second derivative: " in H.reason
    vector = V.random_like(H.like, 0)
    expected = flat(custom(None, dtype).hvp(vector))
    assert (flat(H(vector)) - expected).norm() < (1e-8 if dtype is torch.float64 else 1e-3) * expected.norm()
    with pytest.raises(RuntimeError, match=f"no exact product: the autograd function {function.__name__} has no right"):
        custom(function, dtype).hvp(vector)
    with pytest.raises(RuntimeError, match=f'engine="double" is not possible: .*{function.__name__}.*"differences" is'):
        hessian(custom(function, dtype), "double")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_right_one_is(dtype):
    assert hessian(custom(Right, dtype)).engine == "double"


@torch.no_grad()
def filtered(gradient):
    return torch.nan_to_num(gradient)


def hooked(model, place):
    """A loss with a hook on gradients that leaves autograd: of a weight, of an activation, or of a layer."""
    if place == "weight":
        model[0].weight.register_hook(filtered)
    if place == "all weights":
        for p in model.parameters():
            p.register_hook(filtered)
    if place == "layer":
        model[1].register_full_backward_hook(lambda m, inner, outer: tuple(g.detach() for g in inner))

    def loss_of(model, batch):
        inner = model[1](model[0](batch[0]))
        if place == "activation":
            inner.register_hook(lambda g: g.detach())
        return nn.functional.cross_entropy(model[2](inner), batch[1])

    return loss_of


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
@pytest.mark.parametrize("place", ["weight", "all weights", "activation", "layer"])
def test_a_hook_that_leaves_autograd_is_not_believed(place, activation):
    """Through it the top eigenvalue came out as 0.0, converged."""
    torch.manual_seed(0)
    model, data = nn.Sequential(nn.Linear(5, 4), activation(), nn.Linear(4, 3)).double(), batches(7, 4)
    exact = top_eigenpairs(hessian(Objective(model, cross_entropy, data)), tol=1e-6).values[0]
    H = hessian(Objective(model, hooked(model, place), data))
    assert H.engine == "differences"
    assert ("BackwardHook" if place == "layer" else "a hook on a gradient computes without a graph") in H.reason
    assert top_eigenpairs(H, tol=1e-3).values[0] == pytest.approx(exact, rel=1e-3)


def test_hooks_that_only_look_or_stay_within_autograd_are_believed_and_still_there():
    torch.manual_seed(0)
    model, data, seen = (
        nn.Sequential(nn.Linear(5, 40), nn.ReLU(), nn.Linear(40, 3)),
        batches(7, dtype=torch.float32),
        [],
    )
    model[0].weight.register_hook(lambda g: seen.append(g.norm()))
    model[2].weight.register_hook(lambda g: g.clamp(-1, 1))
    model[2].bias.register_hook(torch.zeros_like)  # a way to freeze it
    assert hessian(Objective(model, cross_entropy, data)).engine == "double"
    seen.clear()
    cross_entropy(model, data[0]).backward()
    assert len(seen) == 1


class Hidden(nn.Module):
    """Reentrant checkpointing of the first layer: `autograd.grad` takes its weights for unused."""

    def __init__(self, hides=True):
        super().__init__()
        self.first, self.last, self.hides = nn.Linear(5, 4), nn.Linear(4, 3), hides

    def forward(self, x):
        block = lambda t: torch.tanh(self.first(t))
        return self.last(checkpoint(block, x.clone().requires_grad_(), use_reentrant=True) if self.hides else block(x))


def test_weights_that_reentrant_checkpointing_hides_are_found():
    def objective(hides):
        torch.manual_seed(0)
        return Objective(Hidden(hides).double(), cross_entropy, batches(7, 4))

    hidden, plain = objective(True), objective(False)
    torch.testing.assert_close(flat(hidden.gradient()), flat(plain.gradient()), rtol=1e-12, atol=0)
    H = hessian(hidden)
    assert H.engine == "differences"
    vector = V.random_like(H.like, 0)
    torch.testing.assert_close(flat(H(vector)), flat(plain.hvp(vector)), rtol=0, atol=1e-8)


def test_a_hook_that_would_step_inside_backward_is_refused():
    objective = Objective(Checkpointed(True).double(), cross_entropy, batches(7, 4))
    steps = []
    handle = objective.model.last.weight.register_post_accumulate_grad_hook(steps.append)
    with pytest.raises(RuntimeError, match=r"a hook that runs when its .grad is accumulated"):
        objective.gradient()
    assert not steps
    handle.remove()
    objective.gradient()


# --- wrappers, kernels ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["whole", "in place", "a part"])
def test_compiled_models_are_differentiated_as_they_are_written(how):
    model, data, _ = problem("mlp")
    expected = dense(Objective(mlp_like(model), cross_entropy, data))
    if how == "whole":
        model = torch.compile(model, backend="aot_eager")
    elif how == "in place":
        model.compile(backend="aot_eager")
    else:
        model = nn.Sequential(torch.compile(model[0], backend="aot_eager"), model[1], model[2])
    objective = Objective(model, cross_entropy, data)
    assert hessian(objective).engine == "double"
    torch.testing.assert_close(dense(objective), expected, rtol=1e-10, atol=1e-12)


def mlp_like(model):
    twin = mlp().double()
    twin.load_state_dict(model.state_dict())
    return twin


def test_fused_attention_is_replaced_only_while_measuring():
    torch.manual_seed(0)
    model, data = Attention().double(), batches(7, 4, shape=(3, 4))
    before = torch.backends.cuda.flash_sdp_enabled()
    H = hessian(Objective(model, cross_entropy, data))
    assert H.engine == "double"
    assert H.reason == "differentiated twice; attention by its formula in place of the fused kernel"
    matrix = loss_of_flat_weights(model, data, "current")[2]
    vector = V.random_like(H.like, 0)
    torch.testing.assert_close(flat(H(vector)), matrix @ flat(vector), rtol=1e-9, atol=1e-12)
    assert torch.backends.cuda.flash_sdp_enabled() == before


def test_a_loss_that_will_not_have_two_samples_is_tried_on_the_whole_batch():
    model, data, _ = problem("mlp")

    def contrastive(model, batch):
        if len(batch[1]) < 4:
            raise AssertionError("too few")
        return cross_entropy(model, batch)

    assert hessian(Objective(model, contrastive, data)).engine == "double"


# --- arguments --------------------------------------------------------------------------------------------------------


def test_an_unknown_engine_is_refused():
    objective = custom(None)
    with pytest.raises(ValueError, match=r'engine must be "auto", "double", .* got \'finite\''):
        hessian(objective, "finite")


def test_a_model_in_place_of_an_objective_is_refused():
    with pytest.raises(TypeError, match=r"must be a flatwise\.Objective\(model, loss_fn, batches\), got Sequential"):
        hessian(mlp())


# --- what it costs ----------------------------------------------------------------------------------------------------


def test_what_is_found_out_once_for_an_objective_is_not_found_out_again():
    model, data, _ = problem("mlp", torch.float32)
    calls = []
    objective = Objective(model, lambda m, b: calls.append(1) or cross_entropy(m, b), data)
    for engine in ("double", "differences", "one-sided"):
        hessian(objective, engine)
        calls.clear()
        hessian(objective, engine)
        assert not calls


@pytest.mark.parametrize(
    ("engine", "evaluations"), [("double", 0), ("forward", 1), ("differences", 2), ("one-sided", 1)]
)
def test_how_often_a_product_evaluates_the_loss(engine, evaluations):
    model, data, _ = problem("mlp", torch.float32)
    calls = []
    H = hessian(Objective(model, lambda m, b: calls.append(1) or cross_entropy(m, b), data[:1]), engine)
    vector = V.random_like(H.like, 0)
    H(vector)
    calls.clear()
    H(vector)
    assert len(calls) == evaluations


def test_a_loss_that_is_nan_is_told_by_the_eigenpairs_not_by_the_check():
    model, data, _ = problem("mlp")
    H = hessian(Objective(model, lambda m, b: cross_entropy(m, b) * math.nan, data))
    with pytest.raises(ValueError, match="product 1 with the operator is NaN or infinite"):
        top_eigenpairs(H)


# --- the loss of language models --------------------------------------------------------------------------------------


def test_chunked_cross_entropy_is_differentiated_twice():
    """The operator checks it, as any autograd function that is not torch's."""
    torch.manual_seed(0)
    body, head = nn.Linear(4, 3).double(), nn.Linear(3, 11).double()
    model, data = nn.ModuleList([body, head]), batches(7, shape=(4,))

    def chunked(model, batch):
        return chunked_cross_entropy(torch.tanh(body(batch[0])), head.weight, batch[1], head.bias, chunk=3)

    def plain(model, batch):
        return nn.functional.cross_entropy(head(torch.tanh(body(batch[0]))), batch[1])

    H = hessian(Objective(model, chunked, data))
    assert H.engine == "double"
    vector = V.random_like(H.like, 0)
    torch.testing.assert_close(flat(H(vector)), flat(Objective(model, plain, data).hvp(vector)), rtol=1e-9, atol=1e-12)
