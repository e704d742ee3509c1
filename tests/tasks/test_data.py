import pickle

import pytest
import torch

from flatwise.tasks import load_data
from flatwise.tasks.augment import CropAndFlip


def test_the_same_arguments_give_the_same_task_and_touch_no_global_state():
    state = torch.get_rng_state()
    one, two = (load_data("digits", seed=2, subset=300, label_noise=0.2, augment=True) for _ in range(2))
    assert torch.equal(one.train_inputs, two.train_inputs)
    assert torch.equal(one.train_targets, two.train_targets)
    assert torch.equal(torch.get_rng_state(), state)


def test_subset_and_noise_touch_the_training_data_only():
    plain, changed = load_data("digits", seed=1), load_data("digits", seed=1, subset=500, label_noise=0.5)
    assert torch.equal(plain.test_targets, changed.test_targets)
    assert torch.equal(plain.test_inputs, changed.test_inputs)
    known = {tuple(x.flatten().tolist()): int(y) for x, y in zip(plain.train_inputs, plain.train_targets, strict=True)}
    labels = [known[tuple(x.flatten().tolist())] for x in changed.train_inputs]
    wrong = (changed.train_targets != torch.tensor(labels)).float().mean()
    assert 0.38 < wrong < 0.5  # 0.45 expected


def test_noise_comes_after_the_split():
    clean, noisy = load_data("digits", seed=1), load_data("digits", seed=1, label_noise=0.2)
    assert torch.equal(clean.train_inputs, noisy.train_inputs)
    assert 0.13 < (clean.train_targets != noisy.train_targets).float().mean() <= 0.2


def test_the_notes_tell_what_was_done():
    task = load_data("digits", seed=4, subset=300, label_noise=0.2, augment=True)
    assert task.notes == (
        "scikit-learn's digits, pixels / 8 - 1, split 1,000 / 797 with seed 4. A random subset of 300 training samples."
        " 20 % of the training labels are random. Training batches are augmented. Drawn with seed 4."
    )


def test_digits_are_cropped_and_not_flipped():
    assert load_data("digits").augment is None
    assert load_data("digits", augment=True).augment == CropAndFlip(flip=False)


def test_a_task_can_be_sent_to_another_process():
    task = load_data("digits", augment=True)
    again = pickle.loads(pickle.dumps(task))
    assert again.augment == task.augment
    assert torch.equal(again.train_inputs, task.train_inputs)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("digit", {}, "did you mean 'digits'"),
        ("digits", {"label_noise": 1.5}, "label_noise must be a fraction between 0 and 1, not 1.5"),
        ("digits", {"label_noise": float("nan")}, "label_noise must be a fraction"),
        ("digits", {"subset": 1001}, "subset must be between 1 and the 1000"),
        ("digits", {"root": "data"}, "the data root data has no effect on 'digits'"),
        ("digits-full", {"root": "data"}, "has no effect"),
        ("folder:images", {"root": "data"}, "has no effect"),
    ],
)
def test_bad_settings_get_one_clear_sentence(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        load_data(name, **arguments)
