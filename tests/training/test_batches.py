import torch

from flatwise.tasks import load_data
from flatwise.training.batches import Batches, chunks


def task(**options):
    return load_data("digits", subset=100, **options)


def test_every_epoch_goes_through_all_samples_once_in_an_order_of_its_own():
    batches = Batches(task(), 32, seed=0)
    assert batches.per_epoch == 4
    epochs = [torch.cat([batches.at(e * 4 + i)[0] for i in range(4)]) for e in range(2)]
    rows = [sorted(map(tuple, epoch.flatten(1).tolist())) for epoch in epochs]
    assert rows[0] == rows[1] == sorted(map(tuple, task().train_inputs.flatten(1).tolist()))
    assert not torch.equal(*epochs)


def test_a_batch_depends_on_seed_and_step_alone():
    first, again = Batches(task(), 32, seed=1), Batches(task(), 32, seed=1)
    for step in (9, 2, 5):
        assert torch.equal(first.at(step)[0], again.at(step)[0])
    assert torch.equal(first.at(9)[0], again.at(9)[0])
    assert not torch.equal(Batches(task(), 32, seed=2).at(9)[0], first.at(9)[0])


def test_the_full_batch_is_the_data_in_its_own_order():
    data = task()
    for size in (0, 100, 1000):
        batches = Batches(data, size, seed=0)
        assert batches.is_full
        assert batches.per_epoch == 1
        assert torch.equal(batches.at(7)[0], data.train_inputs)
    assert not Batches(data, 99, seed=0).is_full


def test_augmentation_is_drawn_by_the_step():
    batches = Batches(task(augment=True), 0, seed=0)
    assert torch.equal(batches.at(3)[0], batches.at(3)[0])
    assert not torch.equal(batches.at(3)[0], batches.at(4)[0])


def test_chunks_are_the_batch():
    inputs, targets = torch.randn(5000, 2), torch.arange(5000)
    pieces = list(chunks(inputs, targets))
    assert len(pieces) == 3
    assert torch.equal(torch.cat([x for x, _ in pieces]), inputs)
    assert torch.equal(torch.cat([y for _, y in pieces]), targets)
