import pytest
import torch

from flatwise.tasks.sampling import generator, globally_seeded, noisy_labels, permutation, subset


def test_a_generator_depends_on_seed_and_purpose_alone():
    def draw(seed, purpose):
        return torch.rand(4, generator=generator(seed, purpose)).tolist()

    assert draw(1, "a") == draw(1, "a")
    assert len({tuple(draw(seed, purpose)) for seed in (0, 1, -1) for purpose in "ab"}) == 6


def test_subsets_are_nested_and_without_repetition():
    small, large = subset(100, 10, seed=3), subset(100, 60, seed=3)
    assert len(set(large.tolist())) == 60
    assert torch.equal(large[:10], small)
    assert not torch.equal(small, subset(100, 10, seed=4))
    assert torch.equal(subset(5, None, seed=3), torch.arange(5))
    assert sorted(permutation(7, 0, "x").tolist()) == list(range(7))


@pytest.mark.parametrize("wanted", [0, -1, 101])
def test_a_subset_that_cannot_be_is_refused(wanted):
    with pytest.raises(ValueError, match=f"between 1 and the 100 training samples there are, not {wanted}"):
        subset(100, wanted, seed=0)


def test_label_noise_draws_uniformly_among_all_classes():
    targets = torch.zeros(20_000, dtype=torch.int64)
    noisy = noisy_labels(targets, 0.2, 10, seed=0)
    counts = torch.bincount(noisy, minlength=10)
    assert targets.sum() == 0
    # 4,000 labels are drawn, 400 of each class; five standard deviations are about 95.
    assert (counts[1:] - 400).abs().max() < 95
    assert counts[0] == 20_000 - counts[1:].sum()


def test_label_noise_is_nested_seeded_and_exact_at_the_ends():
    targets = torch.arange(1000) % 10
    some, more = noisy_labels(targets, 0.1, 10, seed=1), noisy_labels(targets, 0.3, 10, seed=1)
    changed = some != targets
    assert 70 < changed.sum() <= 100
    assert torch.equal(more[changed], some[changed])
    assert torch.equal(noisy_labels(targets, 0.1, 10, seed=1), some)
    assert not torch.equal(noisy_labels(targets, 0.1, 10, seed=2), some)
    assert torch.equal(noisy_labels(targets, 0.0, 10, seed=1), targets)
    assert (noisy_labels(targets, 1.0, 10, seed=1) == targets).float().mean() < 0.15


def test_seeding_globally_leaves_the_global_state_as_it_was():
    before = torch.get_rng_state()
    with globally_seeded(5):
        inside = torch.rand(3)
    with globally_seeded(5):
        assert torch.equal(torch.rand(3), inside)
    assert torch.equal(torch.get_rng_state(), before)
