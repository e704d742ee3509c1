import pytest
import torch
import torch.nn.functional as F

from flatwise.tasks.augment import CropAndFlip


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("size", "padding"), [((32, 32), 4), ((8, 8), 1), ((6, 20), 1)])
@pytest.mark.parametrize("flip", [True, False])
def test_every_image_is_a_crop_of_its_padded_self(size, padding, flip):
    images = torch.randn(40, 3, *size)
    height, width = size
    for image, result in zip(images, CropAndFlip(flip)(images, seeded()), strict=True):
        padded = F.pad(image, [padding] * 4)
        crops = [
            padded[:, top : top + height, left : left + width]
            for top in range(2 * padding + 1)
            for left in range(2 * padding + 1)
        ]
        candidates = crops + [crop.flip(2) for crop in crops] if flip else crops
        assert any(torch.equal(result, candidate) for candidate in candidates)


def test_half_of_the_images_are_flipped_and_all_places_occur():
    images = torch.arange(64.0).view(1, 1, 8, 8).expand(3600, 1, 8, 8) + 1
    augmented = CropAndFlip()(images, seeded())
    steps = augmented[:, 0, 4, 4] - augmented[:, 0, 4, 3]
    assert set(steps.tolist()) == {1.0, -1.0}
    assert 0.45 < (steps > 0).float().mean() < 0.55
    _, counts = augmented[steps > 0, 0, 4, 4].unique(return_counts=True)
    assert len(counts) == 9
    assert counts.min() > 140


def test_it_is_a_pure_function_of_images_and_generator():
    images = torch.randn(8, 1, 8, 8)
    copy, state = images.clone(), torch.get_rng_state()
    first, second = CropAndFlip()(images, seeded(1)), CropAndFlip()(images, seeded(1))
    assert torch.equal(first, second)
    assert not torch.equal(first, CropAndFlip()(images, seeded(2)))
    assert torch.equal(images, copy)
    assert torch.equal(torch.get_rng_state(), state)
