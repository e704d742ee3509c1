import gc

import pytest
import torch
from torch import nn
from torch.autograd.functional import hessian as autograd_hessian
from torch.autograd.functional import jacobian as autograd_jacobian
from torch.func import functional_call

from flatwise import Objective
from flatwise import vectors as V


def cross_entropy(model, batch):
    inputs, targets = batch
    return nn.functional.cross_entropy(model(inputs), targets)


def batches(*sizes, shape=(5,), dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(n, *shape, generator=generator, dtype=dtype), torch.randint(3, (n,), generator=generator))
        for n in sizes
    ]


class Tied(nn.Module):
    """Its two layers share a weight, and it owns a parameter that it does not use."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 3)
        self.second.weight = self.first.weight
        self.unused = nn.Parameter(torch.ones(2))

    def forward(self, x):
        return self.last(torch.tanh(self.second(torch.tanh(self.first(x)))))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.inward, self.outward = nn.Linear(4, 12), nn.Linear(4, 3)

    def forward(self, x):
        q, k, v = self.inward(x)[:, None].chunk(
            3, dim=-1
        )  # one head; without this dimension torch 2.9 has no fused kernel
        return self.outward(nn.functional.scaled_dot_product_attention(q, k, v).squeeze(1).mean(1))


def mlp():
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))


def frozen_mlp():
    model = mlp()
    model[0].weight.requires_grad_(False)
    return model


def convolutional():
    conv = nn.Conv2d(2, 3, 3, bias=False), nn.BatchNorm2d(3), nn.ReLU()
    return nn.Sequential(*conv, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(3, 3))


def dropping():
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Dropout(0.5), nn.Linear(6, 3))


CASES = {
    "mlp": (mlp, (5,), "current"),
    "tied weights and an unused parameter": (Tied, (5,), "current"),
    "frozen parameter": (frozen_mlp, (5,), "current"),
    "BatchNorm, training mode": (convolutional, (2, 4, 4), "train"),
    "BatchNorm, evaluation mode": (convolutional, (2, 4, 4), "eval"),
    "dropout, training mode": (dropping, (5,), "train"),
    "attention": (Attention, (3, 4), "current"),
}


def problem(name, sizes=(7, 4, 2)):
    make, shape, mode = CASES[name]
    torch.manual_seed(0)
    model = make().double()
    data = batches(*sizes, shape=shape)
    with torch.no_grad():
        for _ in range(2):
            model(data[0][0])  # running statistics that are not the initial ones
    return model, data, mode


def loss_of_flat_weights(model, data, mode):
    """An independent transcription: the loss over all samples as a function of one flat tensor of weights."""
    free = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}

    def loss(flat):
        pieces = flat.split([p.numel() for p in free.values()])
        weights = {name: piece.view_as(p) for (name, p), piece in zip(free.items(), pieces, strict=True)}
        torch.manual_seed(0)
        total = 0.0
        for inputs, targets in data:
            outputs = functional_call(model, weights, (inputs,))
            total = total + nn.functional.cross_entropy(outputs, targets, reduction="sum")
        return total / sum(len(targets) for _, targets in data)

    if mode != "current":
        model.train(mode == "train")
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        flat = torch.cat([p.reshape(-1) for p in free.values()])
        return loss(flat), autograd_jacobian(loss, flat), autograd_hessian(loss, flat)


def flat(vector):
    return torch.cat([t.reshape(-1) for t in vector])


def unflat(flat, like):
    return [piece.view_as(t) for piece, t in zip(flat.split([t.numel() for t in like]), like, strict=True)]


def dense(objective):
    like = objective.weights
    unit_vectors = torch.eye(V.size(like), dtype=like[0].dtype)
    return torch.stack([flat(objective.hvp(unflat(e, like))) for e in unit_vectors], dim=1)


# --- the numbers are right --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_value_gradient_and_hessian_equal_brute_force(name):
    model, data, mode = problem(name)
    objective = Objective(model, cross_entropy, data, mode=mode)
    value, gradient = objective.value_and_gradient()
    matrix = dense(objective)
    expected = loss_of_flat_weights(model, data, mode)
    torch.testing.assert_close(value, expected[0], rtol=1e-12, atol=0)
    torch.testing.assert_close(flat(gradient), expected[1], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(matrix, expected[2], rtol=1e-9, atol=1e-12)
    assert matrix.abs().max() > 0.01


@pytest.mark.filterwarnings(
    "ignore:`torch.jit.script` is deprecated:FutureWarning"
)  # by curvlinops, also when imported
@pytest.mark.parametrize("name", ["mlp", "frozen parameter", "BatchNorm, evaluation mode"])
def test_hessian_products_equal_curvlinops(name):
    from curvlinops import HessianLinearOperator

    model, data, mode = problem(name, sizes=(6, 6))  # it wants every batch to count the same
    objective = Objective(model, cross_entropy, data, mode=mode)
    vector = V.random_like(objective.weights, 3)
    product = objective.hvp(vector)
    model.train(mode == "train")
    free = [p for p in model.parameters() if p.requires_grad]
    reference = HessianLinearOperator(model, nn.CrossEntropyLoss(), free, data)
    torch.testing.assert_close(product, list(reference @ vector), rtol=1e-10, atol=1e-14)


def test_unequal_batches_count_by_their_samples():
    model, (big, small), _ = problem("mlp", sizes=(9, 2))
    objective = Objective(model, cross_entropy, [big, small])
    parts = [Objective(model, cross_entropy, [batch]).gradient() for batch in (big, small)]
    expected = V.add(V.scale(parts[0], 9 / 11), parts[1], 2 / 11)
    torch.testing.assert_close(objective.gradient(), expected)
    equal = Objective(model, cross_entropy, [big, small], weight=lambda batch: 1)
    torch.testing.assert_close(equal.gradient(), V.scale(V.add(*parts), 0.5))
    one = Objective(model, cross_entropy, [big, small], weight=lambda batch: float(len(batch[1]) > 2))
    assert torch.equal(flat(one.gradient()), flat(parts[0]))


def test_gradients_that_share_storage_are_averaged_once_each():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))

        def forward(self, x):
            return ((self.a + self.b) * x).sum(1).mean()

    data = [torch.full((1, 3), 1.0), torch.full((3, 3), 5.0)]
    objective = Objective(Sum(), lambda model, batch: model(batch), data)
    assert [g.tolist() for g in objective.gradient()] == [[4.0] * 3] * 2


def test_empty_batches_are_left_out():
    model, data, _ = problem("mlp")
    empty = data[0][0][:0], data[0][1][:0]
    with_empty = Objective(model, cross_entropy, [empty, *data, empty]).value()
    assert with_empty == Objective(model, cross_entropy, data).value()


def test_a_single_batch_gives_exactly_what_backward_gives():
    model, data, _ = problem("mlp", sizes=(7,))
    value, gradient = Objective(model, cross_entropy, data).value_and_gradient()
    loss = cross_entropy(model, data[0])
    loss.backward()
    assert torch.equal(value, loss.detach())
    for computed, p in zip(gradient, model.parameters(), strict=True):
        assert torch.equal(computed, p.grad)


def test_half_precision_is_averaged_in_float32():
    model, data, _ = problem("mlp", sizes=(4,) * 64)
    exact = Objective(model, cross_entropy, data)
    value, gradient = exact.value(), exact.gradient()
    low = [(x.bfloat16(), y) for x, y in data]
    objective = Objective(model.bfloat16(), cross_entropy, low)
    assert objective.value().dtype == torch.float32
    assert objective.value().item() == pytest.approx(value.item(), rel=3e-3)
    assert {g.dtype for g in objective.gradient()} == {torch.bfloat16}
    assert V.cosine(objective.gradient(), V.scale(gradient, 1.0)) > 0.999


def test_unused_parameters_and_nones_count_as_zero():
    model, data, _ = problem("tied weights and an unused parameter")
    objective = Objective(model, cross_entropy, data)
    place = [name for name, _ in model.named_parameters()].index("unused")
    vector = V.random_like(objective.weights, 0)
    assert torch.equal(objective.gradient()[place], torch.zeros(2, dtype=torch.float64))
    assert torch.equal(objective.hvp(vector)[place], torch.zeros(2, dtype=torch.float64))
    vector[place] = None
    assert all(t is not None for t in objective.hvp(vector))
    assert V.norm(objective.hvp([None] * len(vector))) == 0


def test_a_loss_that_is_linear_in_the_weights_has_no_curvature():
    torch.manual_seed(0)
    model = nn.Linear(5, 3)
    objective = Objective(model, lambda m, batch: m(batch).mean(), [torch.ones(4, 5)])
    assert V.norm(objective.hvp(V.random_like(objective.weights, 0))) == 0
    assert V.norm(objective.gradient()) > 0


def test_the_loss_may_differentiate_inside():
    model, data, _ = problem("mlp")

    def slope(model, batch):
        x = batch[0].clone().requires_grad_()
        return torch.autograd.grad(model(x).sum(), x, create_graph=True)[0].square().mean()

    objective = Objective(model, slope, data)
    assert objective.value() == objective.value_and_gradient()[0]
    assert V.norm(objective.hvp(V.random_like(objective.weights, 0))) > 0


def test_weights_are_live_and_follow_requires_grad():
    model, data, _ = problem("mlp")
    objective = Objective(model, cross_entropy, data)
    before = objective.value()
    with torch.no_grad():
        model[0].weight.zero_()
    assert objective.weights[0].abs().sum() == 0
    assert not any(w.requires_grad for w in objective.weights)
    assert objective.value() != before
    model[0].weight.requires_grad_(False)
    assert len(objective.weights) == len(objective.gradient()) == 3


# --- measuring changes nothing ----------------------------------------------------------------------------------------


def everything(model):
    return (
        [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        [p.detach().clone() for p in model.parameters()],
        [b.clone() for b in model.buffers()],
        [m.training for m in model.modules()],
        torch.get_rng_state(),
    )


def measure_all(objective):
    objective.value()
    objective.gradient()
    objective.hvp(objective.weights)


@pytest.mark.parametrize("name", ["BatchNorm, training mode", "BatchNorm, evaluation mode", "dropout, training mode"])
def test_nothing_is_touched(name):
    model, data, mode = problem(name)
    model[1].train(not model[1].training)  # modes that model.train() and model.eval() could not give back
    cross_entropy(model, data[0]).backward()
    before = everything(model)
    measure_all(Objective(model, cross_entropy, data, mode=mode))
    torch.testing.assert_close(everything(model), before, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["BatchNorm, training mode", "dropout, training mode"])
def test_nothing_is_touched_when_the_loss_raises(name):
    model, data, mode = problem(name)
    model.eval()
    before = everything(model)

    def fails_late(model, batch):
        if len(batch[1]) == 2:
            raise KeyError("the third batch")
        return cross_entropy(model, batch)

    objective = Objective(model, fails_late, data, mode=mode)
    for evaluate in (objective.value, objective.gradient, lambda: objective.hvp(objective.weights)):
        with pytest.raises(KeyError, match="the third batch"):
            evaluate()
        torch.testing.assert_close(everything(model), before, rtol=0, atol=0)


def test_dropout_is_the_same_at_every_call_and_differs_from_batch_to_batch():
    model, data, mode = problem("dropout, training mode")
    objective = Objective(model, cross_entropy, data, mode=mode)
    first = objective.value()
    torch.rand(7)
    assert objective.value() == first == objective.value_and_gradient()[0]
    assert Objective(model, cross_entropy, data, mode=mode, seed=1).value() != first
    twice = Objective(model, cross_entropy, [data[0], data[0]], mode=mode).value()
    assert twice != Objective(model, cross_entropy, data[:1], mode=mode).value()


def test_no_graph_is_kept():
    model, data, _ = problem("mlp")
    objective = Objective(model, cross_entropy, data)

    def graphs():
        gc.collect()
        return sum(issubclass(type(o), torch.Tensor) and o.grad_fn is not None for o in gc.get_objects())

    before = graphs()
    kept = [objective.value(), *objective.gradient(), *objective.hvp(objective.weights)]
    assert graphs() == before
    assert not any(t.requires_grad for t in kept)


def test_it_works_where_the_caller_has_switched_gradients_off():
    model, data, _ = problem("mlp")
    objective = Objective(model, cross_entropy, data)
    expected = objective.hvp(objective.weights)
    for off in (torch.no_grad, torch.inference_mode):
        with off():
            torch.testing.assert_close(objective.hvp(objective.weights), expected, rtol=0, atol=0)
            assert not torch.is_grad_enabled()


def test_wrappers_are_looked_through():
    model, data, _ = problem("mlp")
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        wrapped = torch.compile(nn.parallel.DistributedDataParallel(model))
        objective = Objective(wrapped, cross_entropy, data)
        assert objective.model is model
        torch.testing.assert_close(dense(objective), dense(Objective(model, cross_entropy, data)), rtol=0, atol=0)
    finally:
        torch.distributed.destroy_process_group()
