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
        (
            {"train_inputs": INPUTS.long()},
            TypeError,
            "train_inputs of mine must have dtype torch.float32, not torch.int64",
        ),
        ({"train_targets": TARGETS[:, None].expand(3, 2)}, ValueError, r"must both be \[N\], or both \[N, T\]"),
        ({"train_targets": torch.zeros(3, 2, 1).long()}, ValueError, "train split of mine must be inputs"),
    ],
)
def test_what_does_not_fit_is_refused(changes, error, message):
    with pytest.raises(error, match=message):
        task(**changes)


def test_tokens_have_a_target_each():
    tokens = torch.tensor([[0, 1, 1], [1, 0, 1]])
    fields = {"train_inputs": tokens, "train_targets": tokens, "test_inputs": tokens, "test_targets": tokens}
    assert task(**fields).train_targets.shape == (2, 3)
    assert task(**fields | {"train_inputs": torch.zeros(2, 3, 4), "test_inputs": torch.zeros(2, 3, 4)}).num_classes == 2
    with pytest.raises(ValueError, match=r"shapes \[2, 3\] and \[2, 2\]"):
        task(**fields | {"train_targets": tokens[:, :2], "test_targets": tokens[:, :2]})
    with pytest.raises(TypeError, match=r"dtype torch.float32, not torch.int64"):
        task(train_inputs=tokens, train_targets=TARGETS[:2], test_inputs=tokens, test_targets=TARGETS[:2])
