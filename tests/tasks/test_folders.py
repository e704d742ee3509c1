import pytest
import torch
from PIL import Image
from tasks.small_sets import write_images

from flatwise.tasks import load_data
from flatwise.tasks.augment import CropAndFlip
from flatwise.tasks.sampling import subset


def test_given_splits_are_kept(tmp_path):
    write_images(tmp_path / "train", {"cat": 5, "dog": 3})
    write_images(tmp_path / "test", {"cat": 2, "dog": 1})
    task = load_data(f"folder:{tmp_path}")
    assert task.train_inputs.shape == (8, 3, 10, 10)
    assert task.train_targets.tolist() == [0] * 5 + [1] * 3
    assert task.test_targets.tolist() == [0, 0, 1]
    assert "cat, dog; 10x10 pixels" in task.notes


def test_training_channels_have_mean_zero_and_deviation_one(tmp_path):
    write_images(tmp_path / "train", {"cat": 5, "dog": 3})
    write_images(tmp_path / "test", {"cat": 1, "dog": 1})
    task = load_data(f"folder:{tmp_path}")
    std, mean = torch.std_mean(task.train_inputs, dim=(0, 2, 3), correction=0)
    torch.testing.assert_close(mean, torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(std, torch.ones(3))
    torch.testing.assert_close(task.test_inputs[0], task.train_inputs[0])


def test_a_channel_without_contrast_stays_finite(tmp_path):
    write_images(tmp_path, {"cat": 1, "dog": 1})
    task = load_data(f"folder:{tmp_path}")
    assert task.train_inputs.abs().max() == 0


def test_without_splits_a_fifth_is_drawn(tmp_path):
    write_images(tmp_path, {"cat": 15, "dog": 15})
    task, again, other = (load_data(f"folder:{tmp_path}", seed=seed) for seed in (0, 0, 1))
    assert (len(task.train_targets), len(task.test_targets)) == (24, 6)
    assert torch.equal(task.test_inputs, again.test_inputs)
    assert not torch.equal(task.test_targets, other.test_targets)


def test_only_the_subset_is_decoded(tmp_path):
    write_images(tmp_path / "train", {"cat": 4, "dog": 4})
    write_images(tmp_path / "test", {"cat": 1, "dog": 1})
    whole = load_data(f"folder:{tmp_path}", subset=3)
    used = {0, *subset(8, 3, seed=0).tolist()}  # the first one gives the size
    for place, path in enumerate(sorted((tmp_path / "train").glob("*/*.png"))):
        if place not in used:
            path.write_bytes(b"no image")
    assert torch.equal(load_data(f"folder:{tmp_path}", subset=3).train_inputs, whole.train_inputs)
    with pytest.raises(ValueError, match="cannot be read"):
        load_data(f"folder:{tmp_path}")


@pytest.mark.parametrize(("size", "side"), [((3, 5), 8), ((30, 20), 20), ((300, 100), 64)])
def test_images_become_squares_of_one_size(tmp_path, size, side):
    write_images(tmp_path, {"cat": 2, "dog": 2}, size)
    Image.new("L", (50, 90)).save(tmp_path / "dog" / "9.png")
    assert load_data(f"folder:{tmp_path}").train_inputs.shape[1:] == (3, side, side)


def test_augmentation_crops_and_flips(tmp_path):
    write_images(tmp_path, {"cat": 2, "dog": 2})
    assert load_data(f"folder:{tmp_path}", augment=True).augment == CropAndFlip(flip=True)


def test_folders_that_do_not_fit_are_refused(tmp_path):
    name = f"folder:{tmp_path}"
    with pytest.raises(ValueError, match="there is no folder"):
        load_data(f"{name}/nowhere")
    with pytest.raises(ValueError, match="does not hold images in one folder per class"):
        load_data(name)
    (tmp_path / "cat").mkdir()
    (tmp_path / "dog").mkdir()
    with pytest.raises(ValueError, match="does not hold images in one folder per class"):
        load_data(name)
    (tmp_path / "dog").rmdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "cat" / "0.png")
    with pytest.raises(ValueError, match="holds the folder 'cat' only"):
        load_data(name)


def test_splits_with_other_classes_are_refused(tmp_path):
    write_images(tmp_path / "train", {"cat": 1, "dog": 1})
    write_images(tmp_path / "test", {"cat": 1, "cow": 1})
    with pytest.raises(ValueError, match="differ in cow, dog"):
        load_data(f"folder:{tmp_path}")


def test_a_broken_image_is_named(tmp_path):
    write_images(tmp_path, {"cat": 1, "dog": 1})
    (tmp_path / "dog" / "0.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"the image .*dog/0.png cannot be read"):
        load_data(f"folder:{tmp_path}")
