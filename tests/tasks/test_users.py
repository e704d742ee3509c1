import sys
from itertools import count

import pytest
import torch

from flatwise.tasks import Task, load_data
from flatwise.tasks.augment import CropAndFlip

_numbers = count()


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """Write a module of the user's into the current folder; gives its name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def write(code):
        name = f"mine_{next(_numbers)}"
        (tmp_path / f"{name}.py").write_text("import numpy as np, torch\nfrom flatwise.tasks import Task\n" + code)
        return name

    return write


FOUR = "x, y, x, y"
VECTORS = "x, y = torch.zeros(4, 3), torch.tensor([0, 1, 2, 1])\n"


def test_four_tensors_become_a_task(mine):
    name = mine(VECTORS + f"def load(): return {FOUR}") + ":load"
    task = load_data(name, subset=2)
    assert (task.name, task.num_classes, task.train_inputs.shape) == (name, 3, (2, 3))
    assert task.notes.startswith(f"Made by {name}.")


def test_arrays_are_converted(mine):
    code = "x, y = np.full((4, 1, 8, 8), 0.5), np.array([0, 1, 0, 1], np.uint8)\n"
    task = load_data(mine(code + f"def load(): return {FOUR}") + ":load")
    assert torch.equal(task.train_inputs, torch.full((4, 1, 8, 8), 0.5))
    assert torch.equal(task.train_targets, torch.tensor([0, 1, 0, 1]))


def test_a_task_is_taken_as_it_is(mine):
    code = (
        VECTORS
        + "def noise(x, generator): return x\ndef load(): return Task('birds', x, y, x, y, 5, noise, 'Blackbirds.')"
    )
    name = mine(code) + ":load"
    task = load_data(name, augment=True)
    assert isinstance(task, Task)
    assert (task.num_classes, task.notes) == (5, "Blackbirds. Training batches are augmented.")
    assert task.augment is sys.modules[name.partition(":")[0]].noise
    assert load_data(name).augment is None


def test_seed_and_root_are_passed_where_they_are_named(mine):
    code = (
        "def load({}): return torch.full((2, 1), float({})), torch.tensor([0, 1]), torch.zeros(1, 1), torch.tensor([0])"
    )
    assert load_data(mine(code.format("seed", "seed")) + ":load", seed=7).train_inputs[0] == 7
    assert load_data(mine(code.format("*, root='1'", "root")) + ":load", root="5").train_inputs[0] == 5
    assert load_data(mine(code.format("**others", "others['seed']")) + ":load", seed=8).train_inputs[0] == 8
    with pytest.raises(ValueError, match="the data root 5 has no effect"):
        load_data(mine(code.format("seed", "seed")) + ":load", root="5")


def test_global_random_numbers_are_seeded_and_restored(mine):
    name = mine(f"def load():\n    x, y = torch.rand(4, 3), torch.tensor([0, 1, 2, 1])\n    return {FOUR}") + ":load"
    state = torch.get_rng_state()
    one, two, other = (load_data(name, seed=seed).train_inputs for seed in (0, 0, 1))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_images_are_augmented_and_vectors_refused(mine):
    images = mine(f"x, y = torch.zeros(2, 1, 8, 8), torch.tensor([0, 1])\ndef load(): return {FOUR}") + ":load"
    assert load_data(images, augment=True).augment == CropAndFlip()
    with pytest.raises(ValueError, match="augment crops and flips images"):
        load_data(mine(VECTORS + f"def load(): return {FOUR}") + ":load", augment=True)


@pytest.mark.parametrize(
    ("code", "error", "message"),
    [
        ("def lode(): pass", ValueError, "has no 'load'; did you mean 'lode'"),
        ("load = 3", TypeError, "must be a function, not int"),
        ("import no_such_package", ValueError, "cannot import .*no_such_package"),
        (
            "def load(path): pass",
            TypeError,
            "is called with nothing, which does not fit its signature: missing .*'path'",
        ),
        ("def load(seed, path): pass", TypeError, "is called with seed, which"),
        ("def load(): pass", TypeError, r"must return a flatwise.tasks.Task or \(train_inputs, .*, not NoneType"),
        ("def load(): return 1, 2", TypeError, "not 2 things"),
        ("def load(): return {}['x']", ValueError, r"^'mine_\d+:load' failed \(KeyError: 'x'\); --debug shows where$"),
        ("def load(): return 1 + 'x'", ValueError, r"^'mine_\d+:load' failed \(TypeError: unsupported"),
        ("def load(): assert False", ValueError, r"failed \(AssertionError\); --debug"),
        ("import sys\ndef load(): sys.exit(0)", ValueError, r"^'mine_\d+:load' failed \(SystemExit: 0\)"),
        ("def load(): return 'abcd', 1, 1, 1", TypeError, "no tensor or array of numbers"),
        ("def load(): return [[0]], [1], [[0]], [1]", TypeError, "train_inputs of .* must have dtype torch.float32"),
        ("def load(): return [[0.]], [0.5], [[0.]], [1]", TypeError, "train_targets of .* must have dtype torch.int64"),
        (
            "def load(): return [[0.]], [], [[0.]], []",
            ValueError,
            r"with N > 0, but they have shapes \[1, 1\] and \[0\]",
        ),
        ("def load(): return [[0.]], [0], [[0.]], [0]", ValueError, "has 1 class"),
    ],
)
def test_what_does_not_fit_is_refused(mine, code, error, message):
    with pytest.raises(error, match=message):
        load_data(mine(code) + ":load")


def test_ctrl_c_in_a_function_of_ones_own_is_no_failure(mine):
    with pytest.raises(KeyboardInterrupt):
        load_data(mine("def load(): raise KeyboardInterrupt") + ":load")


def test_a_module_that_does_not_exist_is_named():
    with pytest.raises(ValueError, match="cannot import 'no_such_module' for 'no_such_module:load'"):
        load_data("no_such_module:load")
