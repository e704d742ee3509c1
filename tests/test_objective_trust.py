"""Whether an objective is one function, and what is said if it is not; moving the weights and coming back."""

import collections
import itertools
import math
import random

import numpy as np
import pytest
import torch
from test_objective import batches, cross_entropy, dropping, flat, mlp, problem
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from flatwise import Objective
from flatwise import vectors as V
from flatwise.curvature import hessian


class Reordered:
    """Data that come in another order at every pass, drawn from a generator of their own."""

    def __init__(self, batch, size):
        self.batch, self.size, self.generator = batch, size, np.random.default_rng(0)

    def __iter__(self):
        order = torch.from_numpy(self.generator.permutation(len(self.batch[1])))
        return zip(*(t[order].split(self.size) for t in self.batch), strict=True)


class Augmented(Reordered):
    def __iter__(self):
        for x, y in zip(*(t.split(self.size) for t in self.batch), strict=True):
            yield x + torch.from_numpy(self.generator.normal(size=x.shape)), y


def drawing_from_globals():
    """An augmentation as people write it, with Python's and NumPy's global generators."""
    (x, y), *_ = batches(12)
    return DataLoader(
        [(a, b) for a, b in zip(x, y, strict=True)],
        batch_size=5,
        collate_fn=lambda s: (
            torch.stack([a * np.random.uniform(0.5, 2) + random.random() for a, _ in s]),
            torch.stack([b for _, b in s]),
        ),
    )


def normalising():
    return nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3)).double()


def test_another_order_is_named_where_it_matters_and_only_there():
    (whole,) = batches(13)
    torch.manual_seed(0)
    hessian(Objective(mlp().double(), cross_entropy, Reordered(whole, 5)))
    with pytest.raises(RuntimeError) as raised:
        hessian(Objective(normalising(), cross_entropy, Reordered(whole, 5), mode="train"))
    assert "the data come in another order at every pass and BatchNorm in training mode makes" in str(raised.value)
    hessian(Objective(normalising(), cross_entropy, Reordered(whole, 5), mode="eval"))


def test_augmentation_that_draws_from_a_generator_of_its_own_is_named():
    objective = Objective(mlp().double(), cross_entropy, Augmented(batches(13)[0], 5))
    with pytest.raises(RuntimeError, match=r"gave .* and .*: the samples differ from pass to pass: augmentation"):
        hessian(objective)
    assert hessian(objective, check=False).record.checked is False
    hessian(Objective(mlp().double(), cross_entropy, list(Augmented(batches(13)[0], 5))))


def test_a_model_that_draws_from_a_generator_of_its_own_is_named():
    own = torch.Generator().manual_seed(0)
    noisy = lambda model, b: cross_entropy(model, (b[0] + torch.randn(b[0].shape, generator=own), b[1]))
    with pytest.raises(RuntimeError, match="on one and the same batch they differ too"):
        Objective(mlp().double(), noisy, batches(7, 4)).check()


def test_a_model_that_remembers_its_calls_is_named():
    calls = []
    growing = lambda model, b: calls.append(1) or cross_entropy(model, b) * len(calls)
    with pytest.raises(RuntimeError, match="remembers its calls outside of its buffers"):
        Objective(mlp().double(), growing, batches(7, 4)).check()


def test_global_random_numbers_of_python_and_numpy_are_the_same_at_every_evaluation_and_left_as_they_were():
    objective = Objective(mlp().double(), cross_entropy, drawing_from_globals())
    random.seed(5), np.random.seed(5)
    expected = random.random(), np.random.uniform()
    random.seed(5), np.random.seed(5)
    first = objective.value()
    objective.check()
    assert (random.random(), np.random.uniform()) == expected
    assert objective.value() == first
    assert Objective(objective.model, cross_entropy, objective.data, seed=1).value() != first


def test_freezing_a_shuffling_loader_leaves_python_and_numpy_alone():
    states = random.getstate(), np.random.get_state()[1].tolist()
    data = drawing_from_globals()
    loader = DataLoader(data.dataset, batch_size=5, shuffle=True, collate_fn=data.collate_fn)
    with pytest.warns(UserWarning, match="shuffles"):
        Objective(mlp().double(), cross_entropy, loader)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states


def test_dropout_is_one_function_and_the_record_says_that_it_draws():
    torch.manual_seed(0)
    model = dropping().double()
    assert hessian(Objective(model, cross_entropy, batches(7, 4), mode="train")).record.draws
    assert not hessian(Objective(model, cross_entropy, batches(7, 4), mode="eval")).record.draws


def test_what_may_change_is_looked_at_again():
    torch.manual_seed(0)
    model = dropping().double()
    objective = Objective(model, cross_entropy, batches(7, 4))
    found = [objective.preflight().draws]
    model.eval()
    found.append(objective.preflight().draws)
    model.train()
    found.append(objective.preflight().draws)
    assert found == [True, False, True]


def test_a_check_costs_two_evaluations_once():
    calls = []
    objective = Objective(mlp().double(), lambda m, b: calls.append(1) or cross_entropy(m, b), batches(7, 4))
    objective.check()
    objective.check()
    assert len(calls) == 4
    assert objective.is_checked
    assert not objective.on(batches(3)).is_checked


def test_a_loss_that_is_not_finite_agrees_with_itself():
    Objective(mlp().double(), lambda m, b: cross_entropy(m, b) * math.nan, batches(7, 4)).check()


# --- other data, other places -----------------------------------------------------------------------------------------


def test_samples_are_counted_without_the_model():
    calls = []
    fails = lambda model, b: calls.append(1)
    model, data, _ = problem("mlp")
    assert Objective(model, fails, data).samples == 13
    assert Objective(model, fails, data, weight=lambda b: 0.5).samples == 1.5
    assert not calls


def test_an_objective_on_other_data():
    model, data, _ = problem("mlp")
    objective = Objective(model, cross_entropy, data)
    assert objective.samples == 13
    some = objective.on(data[:1])
    assert some.samples == 7
    assert some.value() == Objective(model, cross_entropy, data[:1]).value()
    assert len(objective.data) == 3


def test_displaced_weights_give_the_loss_there_and_come_back():
    model, data, _ = problem("mlp")
    objective = Objective(model, cross_entropy, data)
    before, places = V.clone(objective.weights), [p.data_ptr() for p in model.parameters()]
    vector = V.random_like(before, 0)
    twin = mlp().double()
    with objective.displaced() as place:
        for length in (0.5, -1.0):
            place.to(vector, length)
            twin.load_state_dict(dict(zip(twin.state_dict(), V.add(before, vector, length), strict=True)))
            assert objective.value() == Objective(twin, cross_entropy, data).value()
        place.to([None, *vector[1:]], 1.0)
        assert torch.equal(model[0].weight, before[0])
        place.back()
        assert torch.equal(flat(objective.weights), flat(before))
        place.to(vector, 1e30)
    assert torch.equal(flat(objective.weights), flat(before))
    assert [p.data_ptr() for p in model.parameters()] == places


def test_complex_and_flattened_parameters_are_refused():
    class Complex(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(2, dtype=torch.complex64))

    with pytest.raises(ValueError, match=r"complex parameters are not supported; hold them as torch.view_as_real"):
        Objective(Complex(), cross_entropy, batches(3))
    Flattened = type("FullyShardedDataParallel", (nn.Linear,), {})
    with pytest.raises(TypeError, match=r"use fully_shard \(FSDP2\)"):
        Objective(nn.Sequential(Flattened(5, 3)), cross_entropy, batches(3))
    with pytest.raises(ValueError, match="group must be a process group, \"auto\" or None, got 'world'"):
        Objective(mlp(), cross_entropy, batches(3), group="world")


def test_sparse_gradients_are_made_dense():
    torch.manual_seed(0)
    sparse = nn.Sequential(nn.Embedding(9, 4, sparse=True), nn.Flatten(), nn.Linear(8, 3)).double()
    dense = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(8, 3)).double()
    dense.load_state_dict(sparse.state_dict())
    data = [(torch.randint(9, (6, 2)), torch.randint(3, (6,)))]
    found, expected = (Objective(m, cross_entropy, data) for m in (sparse, dense))
    torch.testing.assert_close(flat(found.gradient()), flat(expected.gradient()))
    H, vector = hessian(found), V.random_like(found.weights, 0)
    torch.testing.assert_close(flat(H(vector)), flat(expected.hvp(vector)), rtol=0, atol=1e-7)


def test_a_loader_of_a_dataset_is_gone_through_again_and_again():
    (x, y), *_ = batches(13)
    objective = Objective(mlp().double(), cross_entropy, DataLoader(TensorDataset(x, y), batch_size=4))
    assert objective.samples == objective.on(list(objective.data)).samples == 13


# --- fixed subsets ----------------------------------------------------------------------------------------------------


def numbered(*sizes):
    """Batches whose samples are their own numbers."""
    ends = np.cumsum([0, *sizes])
    return [
        (torch.arange(a, b).double()[:, None].expand(-1, 5), torch.arange(a, b) % 3)
        for a, b in itertools.pairwise(ends)
    ]


def numbers(objective):
    return [int(x) for inputs, _ in objective.data for x in inputs[:, 0]]


def test_a_subset_is_fixed_random_and_as_large_as_asked_for():
    objective = Objective(mlp().double(), cross_entropy, numbered(20, 20, 20, 7))
    some = objective.subset(15, seed=4)
    assert numbers(some) == sorted(set(numbers(some))) == numbers(objective.subset(15, seed=4))
    assert some.samples == 15
    assert numbers(objective.subset(15, seed=5)) != numbers(some)
    assert numbers(objective.subset(67)) == list(range(67))
    assert [len(y) for _, y in some.data] == [15]
    assert [len(y) <= 20 for _, y in objective.subset(50).data] == [True] * 3
    targets = torch.cat([y for _, y in some.data])
    assert targets.tolist() == [n % 3 for n in numbers(some)]


def test_every_sample_is_drawn_equally_often():
    """Wherever it stands: in the first batch or a small last one."""
    objective = Objective(mlp().double(), cross_entropy, numbered(20, 20, 5))
    counts = torch.zeros(45)
    for seed in range(600):
        counts[numbers(objective.subset(9, seed))] += 1
    assert float((counts - 120).abs().max()) < 4.5 * math.sqrt(600 * 0.2 * 0.8)


def test_the_loss_on_a_subset_is_the_mean_over_it_and_the_record_names_it():
    model, data, _ = problem("mlp")
    some = Objective(model, cross_entropy, data).subset(6, seed=2)
    alone = Objective(
        model, cross_entropy, [(x[None], y[None]) for xs, ys in some.data for x, y in zip(xs, ys, strict=True)]
    )
    torch.testing.assert_close(some.value(), alone.value())
    assert hessian(some).record.subset == "6 of 13 samples, drawn by seed 2"
    assert hessian(some).record.samples == 6
    assert hessian(some.on(data)).record.subset is None


def test_subsets_of_a_loader_leave_all_random_states_alone():
    own = torch.Generator().manual_seed(0)
    loader = drawing_from_globals()
    loader = DataLoader(loader.dataset, batch_size=5, collate_fn=loader.collate_fn, generator=own)
    objective = Objective(mlp().double(), cross_entropy, loader)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state(), own.get_state()
    some = objective.subset(4)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[:2]
    assert torch.equal(torch.get_rng_state(), states[2])
    assert torch.equal(own.get_state(), states[3])
    assert some.value() == some.value()


def test_subsets_of_batches_of_every_kind():
    """Mappings, named tuples, texts, what all samples share; sequences of other lengths stay apart."""
    Named = collections.namedtuple("Named", "x texts")
    make = lambda a, b: {
        "in": Named(torch.arange(a, b), [str(i) for i in range(a, b)]),
        "scale": 3.0,
        "share": torch.ones(()),
    }
    objective = Objective(mlp(), cross_entropy, [make(0, 6), make(6, 12)])
    (batch,) = objective.subset(5).data
    assert isinstance(batch["in"], Named)
    assert batch["in"].texts == [str(i) for i in batch["in"].x.tolist()]
    assert len(batch["in"].texts) == 5
    assert (batch["scale"], batch["share"]) == (3.0, torch.ones(()))
    ragged = Objective(mlp(), cross_entropy, [torch.ones(6, 4), torch.ones(6, 7)]).subset(12)
    assert [tuple(b.shape) for b in ragged.data] == [(6, 4), (6, 7)]


@pytest.mark.parametrize(
    ("count", "kind", "words"),
    [
        (0, ValueError, "count must be at least 1, got 0"),
        (14, ValueError, "a subset of 14 samples was asked for, but there are only 13"),
        (2.0, TypeError, "count must be an integer, the number of samples, got 2.0"),
    ],
)
def test_subsets_that_cannot_be_had(count, kind, words):
    model, data, _ = problem("mlp")
    with pytest.raises(kind, match=words):
        Objective(model, cross_entropy, data).subset(count)


# --- what workers of a loader draw ------------------------------------------------------------------------------------


def noisy_collate(samples):
    x, y = (torch.stack(parts) for parts in zip(*samples, strict=True))
    return x + torch.from_numpy(np.random.normal(size=x.shape)), y


def augmented_by_workers(persistent):
    (x, y), *_ = batches(8)
    settings = {"collate_fn": noisy_collate, "num_workers": 1, "persistent_workers": persistent}
    return Objective(mlp().double(), cross_entropy, DataLoader(TensorDataset(x, y), batch_size=4, **settings))


def test_workers_are_seeded_anew_for_each_pass():
    objective = augmented_by_workers(persistent=False)
    objective.check()
    assert objective.value() == objective.value()


def test_workers_that_persist_are_named_and_a_subset_holds_still():
    objective = augmented_by_workers(persistent=True)
    with pytest.raises(RuntimeError, match=r"the samples differ from pass to pass: .* that of a persistent worker"):
        objective.check()
    objective.subset(8).check()
    assert hessian(objective, check=False).record.checked is False
