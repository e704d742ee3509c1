"""The data an objective takes, and what it refuses."""

import math

import pytest
import torch
from test_objective import batches, cross_entropy, problem
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, TensorDataset

from flatwise import Objective
from flatwise.objective import samples

# --- the data ---------------------------------------------------------------------------------------------------------


def dataset():
    (inputs, targets), *_ = batches(13)
    return TensorDataset(inputs, targets)


def test_a_loader_in_order_is_used_as_it_is():
    loader = DataLoader(dataset(), batch_size=5)
    model, _, _ = problem("mlp")
    objective = Objective(model, cross_entropy, loader)
    assert objective.data is loader
    whole = Objective(model, cross_entropy, [dataset()[:]])
    torch.testing.assert_close(objective.value(), whole.value())


def test_a_shuffling_loader_is_frozen_with_a_warning():
    model, _, _ = problem("BatchNorm, training mode")
    (inputs, targets), *_ = batches(12, shape=(2, 4, 4))
    generator = torch.Generator().manual_seed(5)
    for extra in ({"shuffle": True}, {"shuffle": True, "generator": generator}, {"sampler": RandomSampler(inputs)}):
        loader = DataLoader(TensorDataset(inputs, targets), batch_size=4, **extra)
        random, own = torch.get_rng_state(), generator.get_state()
        with pytest.warns(UserWarning, match="shuffles: its batches are listed once") as caught:
            objective = Objective(model, cross_entropy, loader, mode="train")
        assert caught[0].filename == __file__
        assert torch.equal(torch.get_rng_state(), random)
        assert torch.equal(generator.get_state(), own)
        assert objective.value() == objective.value()
        assert sum(len(t) for _, t in objective.data) == 12


def test_going_through_a_loader_leaves_its_generator_alone():
    generator = torch.Generator().manual_seed(5)
    model, _, _ = problem("mlp")
    objective = Objective(model, cross_entropy, DataLoader(dataset(), batch_size=5, generator=generator))
    before = generator.get_state()
    objective.value()
    assert torch.equal(generator.get_state(), before)


def test_loaders_with_batches_of_the_users_own():
    model, _, _ = problem("mlp")
    in_order = DataLoader(dataset(), batch_sampler=[[0, 1, 2], [3, 4]])
    assert Objective(model, cross_entropy, in_order).data is in_order

    class Stream(IterableDataset):
        def __iter__(self):
            return iter(dataset())

    stream = DataLoader(Stream(), batch_size=4)
    whole = Objective(model, cross_entropy, [dataset()[:]])
    torch.testing.assert_close(Objective(model, cross_entropy, stream).value(), whole.value())


def test_samples_of_a_batch():
    x = torch.zeros(4, 2)
    assert samples(x) == samples((x, torch.zeros(9))) == samples([[None, {"ids": x}]]) == samples({"a": 1, "b": x}) == 4
    for batch in (None, "text", (1, 2), torch.tensor(3.0)):
        with pytest.raises(ValueError, match="pass weight="):
            samples(batch)


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make", [lambda d: (b for b in d), iter, lambda d: zip(d, d, strict=True), lambda d: map(id, d)]
)
def test_one_shot_iterators_are_refused(make):
    model, data, _ = problem("mlp")
    with pytest.raises(TypeError, match=r"one-shot iterator.*pass list\(data\)"):
        Objective(model, cross_entropy, make(data))


def test_arguments_of_the_wrong_kind_are_refused():
    model, data, _ = problem("mlp")
    for wrong in (None, 3, data[0][0], lambda: data):
        with pytest.raises(TypeError, match="data must be a list of batches"):
            Objective(model, cross_entropy, wrong)
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got type"):
        Objective(nn.Linear, cross_entropy, data)
    with pytest.raises(TypeError, match="loss_fn must be a function"):
        Objective(model, None, data)
    with pytest.raises(TypeError, match="weight must be a function of the batch, got int"):
        Objective(model, cross_entropy, data, weight=1)
    with pytest.raises(ValueError, match='mode must be "current", "eval" or "train", got \'evaluation\''):
        Objective(model, cross_entropy, data, mode="evaluation")
    with pytest.raises(ValueError, match="no parameter that requires grad"):
        Objective(nn.ReLU(), cross_entropy, data)


@pytest.mark.parametrize("one", [tuple, list, lambda batch: {"x": batch[0], "y": batch[1]}])
def test_one_batch_in_place_of_a_list_of_them_is_refused(one):
    model, data, _ = problem("mlp")
    with pytest.raises(
        TypeError, match=r"data must be a list of batches, but this is one batch; pass \[batch\], such as"
    ):
        Objective(model, cross_entropy, one(data[0]))


def test_two_bare_tensors_of_other_shapes_may_be_two_batches():
    model, squares = nn.Linear(3, 1), lambda model, x: model(x).square().mean()
    assert Objective(model, squares, [torch.randn(4, 3), torch.randn(5, 2, 3)]).value() > 0
    assert Objective(model, squares, [torch.randn(4, 3), torch.randn(4, 2, 3)]).value() > 0


def test_batches_may_be_bare_tensors_and_where_the_loss_fails_on_them_a_note_says_that_they_may_be_one_batch():
    model, data, _ = problem("mlp")
    squares = lambda model, x: model(x).square().mean()
    (x, _), *_ = data
    assert Objective(model, squares, x.split(2)).samples == len(x)
    assert Objective(model, squares, x.split(2)).value() > 0
    with pytest.raises(ValueError, match="unpack") as raised:
        Objective(model, cross_entropy, (x, x)).value()
    assert raised.value.__notes__[0].endswith("If all of it is one batch, pass [data]")


@pytest.mark.parametrize("criterion", [nn.CrossEntropyLoss(), nn.functional.mse_loss])
def test_a_loss_of_outputs_and_targets_is_refused_and_the_way_out_shown(criterion):
    model, data, _ = problem("mlp")
    with pytest.raises(TypeError, match=r"takes outputs and targets; wrap it: lambda model, batch: loss_fn\(model"):
        Objective(model, criterion, data)

    class Own(nn.CrossEntropyLoss):
        def forward(self, model, batch):
            return super().forward(model(batch[0]), batch[1])

    assert Objective(model, Own(), data).value() == Objective(model, cross_entropy, data).value()


@pytest.mark.parametrize(
    ("loss_fn", "error", "message"),
    [
        (lambda m, b: None, TypeError, "must return the mean loss as a scalar tensor, got NoneType"),
        (lambda m, b: 0.5, TypeError, "got float"),
        (lambda m, b: m(b[0]), ValueError, r"must return one real number, got torch.float64 of shape \(7, 3\)"),
        (lambda m, b: cross_entropy(m, b).detach(), ValueError, "does not depend on any parameter"),
    ],
)
def test_losses_that_cannot_be_right_are_refused(loss_fn, error, message):
    model, data, _ = problem("mlp")
    objective = Objective(model, loss_fn, data)
    for evaluate in (objective.value, objective.gradient, lambda: objective.hvp(objective.weights)):
        with pytest.raises(error, match=message):
            evaluate()


def test_data_without_samples_is_refused():
    model, data, _ = problem("mlp")
    empty = data[0][0][:0], data[0][1][:0]
    for nothing in ([], [empty], DataLoader(TensorDataset(*empty), batch_size=2)):
        with pytest.raises(ValueError, match="the data holds no samples"):
            Objective(model, cross_entropy, nothing).value()
    for weight in (-1, math.nan, math.inf):
        with pytest.raises(ValueError, match="the weight of a batch must be a finite number >= 0"):
            Objective(model, cross_entropy, data, weight=lambda batch, weight=weight: weight).value()


def test_vectors_of_another_shape_are_refused():
    model, data, _ = problem("mlp")
    objective = Objective(model, cross_entropy, data)
    with pytest.raises(ValueError, match="the vector has 1 entries, the model 4 parameters"):
        objective.hvp([torch.zeros(3)])
    with pytest.raises(ValueError, match=r"entry 1 of the vector has shape \(5,\), its parameter \(6,\)"):
        objective.hvp([None, torch.zeros(5), None, None])
