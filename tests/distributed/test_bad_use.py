"""What cannot work on several processes: every rank gets a sentence with the way out, and the next step is sound."""

import pytest
from distributed import references
from distributed.test_ddp import assert_close, same_on_both

AND_GOES_ON = [
    ("ddp recorded unequally", "use p.backward(loss, weight)"),
    ("fsdp recorded unequally", "use p.backward(loss, weight)"),
    ("ddp never synchronised", "run the last one outside no_sync"),
    ("ddp closures without synchronisation", "Let every closure synchronise"),
    ("ddp interrupted", "interrupted"),
    ("fsdp interrupted", "interrupted"),
]

SENTENCES = [
    ("static graph, locally", "without static_graph"),
    ("static graph, accumulated", "run the first step without no_sync"),
    ("fsdp, locally", "perturb=mesh['replicate']"),
    ("a bare module, locally", "DistributedDataParallel"),
    ("flattened", "fully_shard"),
    ("fsdp never synchronised", "run the last one"),
]


@pytest.mark.parametrize(("scenario", "way_out"), AND_GOES_ON)
def test_nothing_has_moved_and_training_goes_on(two, scenario, way_out):
    for found in two[scenario]:
        assert way_out in found["sentence"]
        assert found["unmoved"]
    weights = same_on_both([found["weights"] for found in two[scenario]])
    assert_close(weights, references.alone("sam", 1))


@pytest.mark.parametrize(("scenario", "way_out"), SENTENCES)
def test_every_rank_is_told_the_way_out(two, scenario, way_out):
    for sentence in two[scenario]:
        assert way_out in sentence


def test_the_join_context_is_refused_before_anything_is_evaluated(two):
    for found in two["joined"]:
        assert "p.backward(loss, weight=0)" in found["sentence"]
        assert found["unmoved"]
