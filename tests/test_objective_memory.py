"""Cutting batches, and what is forecast of time and memory."""

from collections import OrderedDict, UserDict, namedtuple

import pytest
import torch
from optim.test_memory import peak_bytes
from test_objective import batches, cross_entropy, flat, mlp, problem
from torch import nn

from flatwise import Objective
from flatwise import vectors as V
from flatwise.curvature import hessian
from flatwise.objective.batches import slices
from flatwise.objective.forecast import Allocated

# --- cutting batches --------------------------------------------------------------------------------------------------


def test_slices_of_nested_batches():
    Pair = namedtuple("Pair", "x y")
    x, y = torch.arange(10.0).view(5, 2), torch.arange(5)
    batch = OrderedDict(
        pair=Pair(x, y), mask=[x, None], text=["a", "b", "c", "d", "e"], scale=torch.tensor(3.0), table=x.T
    )
    parts = list(slices(batch, 2))
    assert [len(part["pair"].x) for part in parts] == [2, 2, 1]
    assert torch.equal(torch.cat([part["mask"][0] for part in parts]), x)
    assert [part["text"] for part in parts] == [["a", "b"], ["c", "d"], ["e"]]
    assert all(part["scale"] == 3 and part["table"].shape == (2, 5) and part["mask"][1] is None for part in parts)
    assert all(type(part) is OrderedDict and type(part["pair"]) is Pair for part in parts)
    assert len(batch["pair"].x) == 5
    assert type(next(slices(UserDict(x=x), 2))) is UserDict
    assert next(slices(batch, 5)) is batch


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_micro_batches_give_the_same_numbers(size):
    model, data, _ = problem("mlp")
    sizes = []
    counting = lambda model, batch: sizes.append(len(batch[1])) or cross_entropy(model, batch)
    whole, cut = Objective(model, cross_entropy, data), Objective(model, counting, data, micro_batch=size)
    vector = V.random_like(whole.weights, 0)
    cut.value()
    sizes.clear()
    torch.testing.assert_close(cut.value(), whole.value(), rtol=1e-12, atol=0)
    assert max(sizes) <= size
    assert sum(sizes) == 13
    torch.testing.assert_close(flat(cut.gradient()), flat(whole.gradient()), rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(flat(cut.hvp(vector)), flat(whole.hvp(vector)), rtol=1e-10, atol=1e-14)


def token_mean(model, batch):
    return nn.functional.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten())


def tokens():
    """Sequences of which some are mostly padding."""
    x, y = torch.randn(6, 4, 5, dtype=torch.float64), torch.randint(3, (6, 4))
    y[:3, 1:] = -100
    return [(x, y)]


def test_a_loss_per_token_is_cut_only_if_tokens_are_counted():
    torch.manual_seed(0)
    model, data = mlp().double(), tokens()
    with pytest.raises(ValueError, match=r"is not the mean over its parts, .*tokens. then weight=... must count them"):
        Objective(model, token_mean, data, micro_batch=2).value()
    counted = Objective(model, token_mean, data, micro_batch=2, weight=lambda b: int((b[1] >= 0).sum()))
    torch.testing.assert_close(counted.value(), Objective(model, token_mean, data).value())


def test_batches_that_batchnorm_mixes_are_not_cut():
    model, data, _ = problem("BatchNorm, training mode")
    with pytest.raises(ValueError, match="BatchNorm in training mode mixes the samples"):
        Objective(model, cross_entropy, data, mode="train", micro_batch=2).value()
    whole = Objective(model, cross_entropy, data, mode="eval").value()
    torch.testing.assert_close(Objective(model, cross_entropy, data, mode="eval", micro_batch=2).value(), whole)


def test_dropout_does_not_keep_batches_from_being_cut():
    model, data, _ = problem("dropout, training mode")
    Objective(model, cross_entropy, data, mode="train", micro_batch=2).value()


def test_limits_out_of_range_are_refused():
    model, data, _ = problem("mlp")
    for wrong in (0, -1, 2.5):
        with pytest.raises(ValueError, match="micro_batch must be an integer >= 1"):
            Objective(model, cross_entropy, data, micro_batch=wrong)
    with pytest.raises(ValueError, match="max_memory must be a number of bytes > 0"):
        Objective(model, cross_entropy, data, max_memory=0)
    with pytest.raises(ValueError, match="give micro_batch or max_memory, not both"):
        Objective(model, cross_entropy, data, max_memory=1e6, micro_batch=2)
    with pytest.raises(ValueError, match="max_memory is 10 bytes, but one sample takes"):
        Objective(model, cross_entropy, data, max_memory=10).value()


# --- forecasts --------------------------------------------------------------------------------------------------------


def wide():
    """Activations outweigh the weights by far."""
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 16, 3, padding=1), nn.GELU(), nn.Conv2d(16, 16, 3, padding=1), nn.GELU()
    return nn.Sequential(*conv, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3))


def pictures(*sizes):
    return batches(*sizes, shape=(3, 16, 16), dtype=torch.float32)


def test_what_is_alive_at_once_is_counted_exactly():
    weight, x = torch.randn(4, 4, requires_grad=True), torch.randn(6, 4)
    with Allocated() as allocated:
        y = torch.tanh(x @ weight)  # 96 bytes each; the product is gone when the output is there
        y.add_(1.0)
        view = y.view(-1)[:3]
    assert allocated.most == 2 * 96
    with Allocated() as allocated:
        for _ in range(3):
            torch.tanh(view)
            x.add_(0.0)
    assert allocated.most == 12
    with Allocated() as allocated:
        (x @ weight).square().sum().backward()
    assert 2 * 96 + 64 <= allocated.most <= 4 * 96 + 2 * 64 + 16


@pytest.mark.parametrize("engine", ["gradient", "product"])
def test_forecast_memory_is_what_an_evaluation_takes(engine):
    objective = Objective(wide(), cross_entropy, pictures(64))
    forecast = objective.forecast()
    vector = V.random_like(objective.weights, 0)
    action = objective.gradient if engine == "gradient" else lambda: objective.hvp(vector)
    cost = getattr(forecast, engine)
    expected = cost.memory[0] + 64 * cost.memory[1]
    assert 0.6 < expected / peak_bytes(action) < 1.1


def test_a_forecast_in_words_and_numbers():
    objective = Objective(wide(), cross_entropy, pictures(32, 8))
    forecast = objective.forecast()
    assert (forecast.samples, forecast.batches, forecast.largest) == (40, 2, 32)
    assert forecast.parameters == 2819
    assert forecast.vector == 4 * 2819
    assert forecast.memory() > forecast.memory(8) > 0
    assert forecast.seconds(10, 5) == pytest.approx(10 * forecast.seconds() + 5 * forecast.seconds(0, 1))
    assert str(forecast).startswith(
        "40 samples in 2 batches of up to 32; 2,819 parameters (11.3 kB a vector). A gradient takes"
    )


def test_no_samples_cost_nothing():
    assert Objective(wide(), cross_entropy, []).forecast().memory() == 0


def test_a_product_is_two_gradients_where_it_cannot_be_exact():
    from curvature.networks import problem

    model, data, _ = problem("reentrant checkpointed block")
    forecast = Objective(model, cross_entropy, data).forecast()
    assert forecast.product is None
    assert forecast.seconds(1, 3) == pytest.approx(7 * forecast.seconds())
    assert "a product two gradients" in str(forecast)


def test_memory_is_bounded_by_cutting_batches():
    data = pictures(64)
    whole = Objective(wide(), cross_entropy, data)
    vector = V.random_like(whole.weights, 0)
    bound = whole.forecast().memory() / 4
    cut = Objective(wide(), cross_entropy, data, max_memory=bound)
    torch.testing.assert_close(flat(cut.hvp(vector)), flat(whole.hvp(vector)), rtol=1e-4, atol=1e-5)
    assert peak_bytes(lambda: cut.hvp(vector)) < 0.4 * peak_bytes(lambda: whole.hvp(vector))
    roomy = Objective(wide(), cross_entropy, data, max_memory=8 * bound)
    assert torch.equal(flat(roomy.hvp(vector)), flat(whole.hvp(vector)))


def test_differences_need_the_memory_of_a_gradient():
    objective = Objective(wide(), cross_entropy, pictures(64))
    vector = V.random_like(objective.weights, 0)
    plain = peak_bytes(objective.gradient)
    double, differences = hessian(objective), hessian(objective, "differences")
    assert peak_bytes(lambda: differences(vector)) < 1.1 * plain
    assert peak_bytes(lambda: double(vector)) > 1.7 * plain


@pytest.mark.parametrize("evaluate", [lambda o: o.gradient(), lambda o: hessian(o, check=False)])
def test_where_memory_runs_out_the_error_names_what_takes_less(evaluate):
    """A loss raises it as the allocator of a GPU does."""

    def too_large(model, batch):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    with pytest.raises(torch.OutOfMemoryError, match="Tried to allocate") as raised:
        evaluate(Objective(mlp(), too_large, batches(4)))
    (note,) = raised.value.__notes__
    assert "micro_batch=" in note
    assert "max_memory=" in note
