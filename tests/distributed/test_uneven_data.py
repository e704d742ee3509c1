"""Ranks whose batches differ in size or in number, or are not finite: what the mean means, and nobody waits for ever."""

import pytest
import torch
from distributed import references
from distributed.layouts import EIGEN, FEW, LAYOUTS, SAM, data, share, unequal_share
from distributed.on_uneven_data import LAYOUTS_AND_METHODS, MORE, evaluations
from distributed.test_ddp import assert_close, same_on_both
from optim.problems import build, loss_of

every_layout = pytest.mark.parametrize("kind", LAYOUTS)


@every_layout
def test_weighted_by_size_unequal_batches_are_one_batch(two, kind):
    assert_close(same_on_both(two[f"{kind} by size"]), references.alone("sam", FEW))


@every_layout
def test_without_weights_every_rank_counts_alike(two, kind):
    expected = references.mean_of_means("sam", FEW, lambda batch: [unequal_share(batch, rank) for rank in range(2)])
    assert_close(same_on_both(two[f"{kind} by rank"]), expected)


def test_local_dialogues_count_by_the_size_of_their_batches(two):
    parts = lambda batch: [(unequal_share(batch, rank), size / 16) for rank, size in enumerate((11, 5))]
    expected = references.apart("eigen-sam", [(batch, parts(batch)) for batch in data(FEW)])
    assert_close(same_on_both(two["local by size"]), expected)


@every_layout
def test_the_loss_of_a_step_is_the_weighted_mean_over_ranks(two, kind):
    run = build(SAM, dtype=torch.float64)
    expected = []
    for batch in data(5):
        for p in run.opt.passes():
            p.backward(loss_of(run.model, batch))
        run.opt.step()
        expected.append(run.opt.diagnostics["loss"])
    torch.testing.assert_close(same_on_both(two[f"{kind} losses"]), torch.tensor(expected))


# --- a rank without data ----------------------------------------------------------------------------------------------


@every_layout
def test_a_rank_that_has_run_out_of_data_goes_on_with_weight_zero(two, kind):
    """Then the step is that of the other rank, on all of them: momentum and the method's memory stay the same."""
    batches = data(FEW)
    batches[-MORE:] = [share(batch, 0) for batch in batches[-MORE:]]
    assert_close(same_on_both(two[f"{kind} run out"]), references.alone_on("eigen-sam", batches))


def test_locally_a_rank_without_data_counts_as_nothing(two):
    batches = references.shared_out(FEW)
    batches[-MORE:] = [(own, [(own, 1), (own, 0)]) for _, ((own, _), _) in batches[-MORE:]]
    assert_close(same_on_both(two["local run out"]), references.apart("eigen-sam", batches))


@pytest.mark.parametrize("kind", ["ddp three_and_one", "ddp two_each", "fsdp two_each"])
@pytest.mark.parametrize("how", ["backward", "record"])
def test_micro_batches_of_which_the_last_is_synchronised(two, kind, how):
    """Of equal size, but not of equal number on all ranks: they are one batch."""
    assert_close(same_on_both(two[f"{kind} {how}"]), references.alone("sam", FEW))


def test_a_lone_process_cannot_be_without_data():
    run, (batch,) = build(SAM), data(1, torch.float32)

    def without_data():
        for p in run.opt.passes():
            p.backward(loss_of(run.model, batch), weight=0.0)

    with pytest.raises(ValueError, match="sum to 0"):
        without_data()


# --- not finite -------------------------------------------------------------------------------------------------------

PLACES = [(name, i) for name, _, method, options in LAYOUTS_AND_METHODS for i in evaluations(method, **options)]


@pytest.mark.parametrize(("name", "evaluation"), PLACES)
def test_a_nan_on_one_rank_skips_the_step_on_all(two, name, evaluation):
    """In any evaluation, also in one that only measures."""
    a, b = two[f"not finite: {name}, {evaluation}"]
    assert a["unmoved"] == b["unmoved"] == [number == EIGEN.every for number in range(5)]
    assert a["skipped"] == b["skipped"] == 1
    assert torch.equal(a["weights"], b["weights"])
    assert torch.isfinite(a["weights"]).all()
