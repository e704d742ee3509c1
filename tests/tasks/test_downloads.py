import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import savemat
from tasks.small_sets import write_images, write_mnist
from torchvision import datasets

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


def test_cifar100_has_a_hundred_classes_and_is_flipped(tmp_path, monkeypatch):
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    pixels = (np.arange(4 * 3072) % 256).astype(np.uint8).reshape(4, 3072)
    for name in ("train", "test"):
        (folder / name).write_bytes(pickle.dumps({"data": pixels, "fine_labels": [0, 99, 5, 7]}))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": [str(i) for i in range(100)]}))
    monkeypatch.setattr(
        datasets.CIFAR100, "_check_integrity", lambda self: True
    )  # of the files' hashes, which ours have not
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    task = load_data("cifar100", root=str(tmp_path), augment=True)
    assert (task.num_classes, task.augment) == (100, CropAndFlip())
    wanted = (
        torch.tensor(pixels[0].reshape(3, 32, 32)) / 255 - torch.tensor([0.5071, 0.4867, 0.4408]).view(3, 1, 1)
    ) / (torch.tensor([0.2675, 0.2565, 0.2761]).view(3, 1, 1))
    torch.testing.assert_close(task.train_inputs[0], wanted)


def test_svhn_lies_in_a_folder_of_its_own_and_its_ten_is_zero(tmp_path, monkeypatch):
    (tmp_path / "svhn").mkdir()
    pixels = (np.arange(32 * 32 * 3 * 5) % 256).astype(np.uint8).reshape(32, 32, 3, 5)
    for split in ("train", "test"):
        labels = {"X": pixels, "y": np.array([[1], [10], [9], [2], [3]], dtype=np.uint8)}
        savemat(tmp_path / "svhn" / f"{split}_32x32.mat", labels)
    monkeypatch.setattr(
        datasets.SVHN, "_check_integrity", lambda self: True
    )  # of the files' hashes, which ours have not
    task = load_data("svhn", root=str(tmp_path), augment=True)
    assert task.train_targets.tolist() == [1, 0, 9, 2, 3]
    assert task.augment == CropAndFlip(flip=False)
    moments = [torch.tensor(m).view(3, 1, 1) for m in ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970))]
    image = torch.tensor(pixels[..., 3]).permute(2, 0, 1) / 255
    torch.testing.assert_close(task.train_inputs[3], (image - moments[0]) / moments[1])


def test_centred_pixels_are_divided_by_256_and_less_the_mean_of_the_samples_used(tmp_path):
    pixels = torch.tensor(write_mnist(tmp_path))[:, None]
    task = load_data("mnist", root=str(tmp_path), preprocess="centred")
    torch.testing.assert_close(task.train_inputs, pixels / 256 - (pixels / 256).mean(0))
    few = load_data("mnist", root=str(tmp_path), preprocess="centred", subset=2)
    torch.testing.assert_close(few.train_inputs.mean(0), torch.zeros(1, 28, 28))
    torch.testing.assert_close(
        task.test_inputs[1], pixels[1] / 256 - (pixels / 256).mean(0)
    )  # the test images are the first ones
    assert (
        task.notes == "mnist: 6 / 4 images. Pixels / 256, less the mean of each pixel over the training samples used."
    )


@pytest.mark.parametrize(
    ("name", "preprocess", "message"),
    [("digits", "centred", "has no effect on 'digits'"), ("mnist", "centered", "must be 'standard' or 'centred'")],
)
def test_other_preprocessing_is_refused(tmp_path, name, preprocess, message):
    write_mnist(cache_folder())
    with pytest.raises(ValueError, match=message):
        load_data(name, preprocess=preprocess)


@pytest.mark.parametrize(("name", "layout"), [("svhn", r"svhn/\*_32x32.mat"), ("cifar100", "cifar-100-python")])
def test_a_root_without_the_other_data_names_their_layout(tmp_path, name, layout):
    with pytest.raises(ValueError, match=f"{name} is not below .*, which should hold {layout}"):
        load_data(name, root=str(tmp_path))
