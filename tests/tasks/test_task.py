import pytest
import torch

from flatwise.tasks import Task

INPUTS, TARGETS = torch.zeros(3, 2), torch.tensor([0, 1, 1])


def task(**changes):
    fields = {
        "train_inputs": INPUTS,
        "train_targets": TARGETS,
        "test_inputs": INPUTS,
        "test_targets": TARGETS,
        "num_classes": 2,
    }
    return Task("mine", **(fields | changes))


def test_a_task_that_fits_is_accepted():
    assert task().augment is None


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"train_inputs": [[0.0]]},
            TypeError,
            "train_inputs and train_targets of mine must be torch tensors, not list and",
        ),
        (
            {"test_inputs": INPUTS.double()},
            TypeError,
            "test_inputs of mine must have dtype torch.float32, not torch.float64",
        ),
        ({"train_targets": TARGETS.float()}, TypeError, "train_targets of mine must have dtype torch.int64"),
        ({"train_targets": TARGETS[:2]}, ValueError, r"train split of mine .* shapes \[3, 2\] and \[2\]"),
        ({"train_targets": TARGETS[:, None]}, ValueError, "train split of mine must be inputs"),
        ({"test_inputs": INPUTS[:0], "test_targets": TARGETS[:0]}, ValueError, "test split of mine .* N > 0"),
        ({"test_inputs": torch.zeros(3, 4)}, ValueError, r"one shape, but have \[2\] and \[4\]"),
        ({"test_targets": TARGETS + 1}, ValueError, r"test_targets of mine must lie in 0 .. 1, not 1 .. 2"),
        ({"train_targets": TARGETS - 1}, ValueError, r"must lie in 0 .. 1, not -1 .. 0"),
        ({"train_inputs": INPUTS / 0}, ValueError, "train_inputs of mine hold NaN"),
        ({"num_classes": 1}, ValueError, "at least 2"),
    ],
)
def test_what_does_not_fit_is_refused(changes, error, message):
    with pytest.raises(error, match=message):
        task(**changes)
