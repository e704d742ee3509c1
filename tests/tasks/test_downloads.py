import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from tasks.small_sets import write_images, write_mnist

from flatwise.tasks import load_data
from flatwise.tasks.augment import CropAndFlip
from flatwise.tasks.downloads import cache_folder, into_cache


@pytest.fixture(autouse=True)
def nowhere(tmp_path, monkeypatch):
    """No data anywhere: neither the variable nor a cache."""
    monkeypatch.delenv("FLATWISE_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty cache"))


def test_mnist_is_standardised_by_its_known_moments(tmp_path):
    pixels = torch.tensor(write_mnist(tmp_path))
    task = load_data("mnist", root=str(tmp_path))
    torch.testing.assert_close(task.train_inputs[:, 0], (pixels / 255 - 0.1307) / 0.3081)
    assert task.train_targets.tolist() == [0, 1, 2, 3, 4, 5]
    assert (len(task.test_inputs), task.num_classes, task.augment) == (4, 10, None)


@pytest.mark.parametrize(
    ("name", "folder", "flip"), [("mnist", "MNIST", False), ("fashion-mnist", "FashionMNIST", True)]
)
def test_only_clothes_are_flipped(tmp_path, name, folder, flip):
    write_mnist(tmp_path, folder=folder)
    assert load_data(name, root=str(tmp_path), augment=True).augment == CropAndFlip(flip)


def test_the_root_comes_before_the_variable_and_the_variable_before_the_cache(tmp_path, monkeypatch):
    def found(**where):
        return len(load_data("mnist", **where).train_targets)

    write_mnist(cache_folder(), num_train=1)
    assert found() == 1
    monkeypatch.setenv("FLATWISE_DATA", str(tmp_path / "variable"))
    assert found() == 1
    write_mnist(tmp_path / "variable", num_train=2)
    assert found() == 2
    write_mnist(tmp_path / "root", num_train=3)
    assert found(root=str(tmp_path / "root")) == 3


def test_a_root_without_the_data_is_an_error_although_the_cache_has_it(tmp_path):
    write_mnist(cache_folder())
    with pytest.raises(ValueError, match=r"mnist is not below .*, which should hold MNIST/raw"):
        load_data("mnist", root=str(tmp_path))
    with pytest.raises(ValueError, match=r"should hold cifar-10-batches-py or cifar10/\{train,test\}/CLASS"):
        load_data("cifar10", root=str(tmp_path))


def test_cifar10_is_found_as_images_in_folders(tmp_path):
    write_images(tmp_path / "cifar10" / "train", {"airplane": 3, "bird": 3}, size=(32, 32))
    write_images(tmp_path / "cifar10" / "test", {"airplane": 1, "bird": 1}, size=(32, 32))
    task = load_data("cifar10", root=str(tmp_path))
    assert task.train_inputs.shape == (6, 3, 32, 32)
    wanted = (torch.tensor([10, 20, 30]) / 255 - torch.tensor([0.4914, 0.4822, 0.4465])) / torch.tensor(
        [0.2470, 0.2435, 0.2616]
    )
    torch.testing.assert_close(task.train_inputs[0, :, 5, 7], wanted)
    assert task.num_classes == 10


def test_a_download_that_breaks_off_leaves_nothing_behind(tmp_path):
    def break_off(root):
        (Path(root) / "MNIST").mkdir()
        raise ConnectionError("cable pulled")

    with pytest.raises(ConnectionError):
        into_cache("MNIST", break_off, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_two_downloads_at_once_leave_one_whole_data_set(tmp_path):
    together = threading.Barrier(2)

    def fetch(root):
        write_mnist(Path(root))
        together.wait(timeout=30)

    workers = [threading.Thread(target=into_cache, args=("MNIST", fetch, cache_folder())) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [p.name for p in cache_folder().iterdir()] == ["MNIST"]
    assert len(load_data("mnist").train_targets) == 6


def test_without_network_one_sentence_says_what_to_do(tmp_path):
    # A proxy that nobody serves, in a fresh process: urllib reads the variables once. Nothing can be downloaded there.
    closed = {f"{kind}_proxy": "http://127.0.0.1:9" for kind in ("http", "https")}
    done = subprocess.run(
        [sys.executable, "-c", "import flatwise.tasks as t; t.load_data('mnist')"],
        env=os.environ | closed | {"no_proxy": ""},
        capture_output=True,
        text=True,
    )
    sentence = done.stderr.strip().splitlines()[-1]
    assert sentence.startswith("ValueError: mnist is neither below FLATWISE_DATA (not set) nor in ")
    assert sentence.endswith("connect to the network, or set FLATWISE_DATA to a folder that holds MNIST/raw")
    assert not (cache_folder() / "MNIST").exists()


@pytest.mark.parametrize(
    ("name", "shape"), [("mnist", (1, 28, 28)), ("fashion-mnist", (1, 28, 28)), ("cifar10", (3, 32, 32))]
)
def test_the_real_data_is_standardised(data_root, name, shape):
    task = load_data(name, root=data_root, subset=1000, seed=1)
    assert task.train_inputs.shape == (1000, *shape)
    assert set(task.train_targets.tolist()) == set(range(10))
    for split in (task.train_inputs, task.test_inputs):
        assert split.mean().abs() < 0.06
        assert abs(split.std() - 1) < 0.06
    assert "1,000 training samples" in task.notes
