import torch
from sklearn.datasets import load_digits

from flatwise.tasks import load_data


def rows(images):
    return sorted(map(tuple, images.flatten(1).tolist()))


def test_digits_follow_the_protocol():
    task = load_data("digits", seed=3)
    assert task.train_inputs.shape == (1000, 1, 8, 8)
    assert task.test_inputs.shape == (797, 1, 8, 8)
    assert task.num_classes == 10
    everything = torch.tensor(load_digits().data, dtype=torch.float32) / 8 - 1
    assert rows(torch.cat([task.train_inputs, task.test_inputs])) == rows(everything)
    assert (everything.min(), everything.max()) == (-1, 1)


def test_the_images_keep_their_labels_and_orientation():
    task = load_data("digits", seed=0)
    known = {tuple(x.ravel() / 8 - 1): int(y) for x, y in zip(load_digits().images, load_digits().target, strict=True)}
    for image, target in zip(task.train_inputs[:50], task.train_targets[:50], strict=True):
        assert known[tuple(image.flatten().tolist())] == target


def test_another_seed_splits_otherwise():
    assert not torch.equal(load_data("digits", seed=0).train_targets, load_data("digits", seed=1).train_targets)


def test_digits_full_are_centred_and_train_on_everything():
    task = load_data("digits-full")
    assert task.train_inputs.shape == (1797, 1, 8, 8)
    assert task.train_inputs.mean(0).abs().max() < 1e-6
    assert torch.equal(task.train_targets, torch.tensor(load_digits().target))
    difference = task.train_inputs[1] - task.train_inputs[0]
    images = torch.tensor(load_digits().images, dtype=torch.float32)
    torch.testing.assert_close(difference[0], (images[1] - images[0]) / 16)
    assert torch.equal(task.test_inputs, task.train_inputs)
    assert "test images are the same" in task.notes
