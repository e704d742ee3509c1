"""Hybrid sharding, and dialogues that are apart for groups of processes."""

import pytest
import torch
from distributed import references
from distributed.layouts import FEW, METHODS, STEPS, data, network, share
from distributed.test_ddp import assert_close
from optim.problems import loss_of
from reference import transcriptions


def same_on_all(results):
    assert all(torch.equal(results[0], other) for other in results)
    return results[0]


def test_hybrid_sharding_equals_one_process(four):
    assert_close(same_on_all(four["hybrid"]), references.alone("eigen-sam", FEW))


def test_groups_of_fsdp_average_the_dialogues_of_the_groups(four):
    expected = references.apart("sam", references.shared_out(STEPS))
    assert_close(same_on_all(four["groups of fsdp, fifty steps"]), expected)
    assert (expected - references.alone("sam", STEPS)).abs().max() > 1e-3


def test_groups_of_fsdp_measure_together(four):
    """Eigen-SAM's vector is that of all samples."""
    assert_close(same_on_all(four["groups of fsdp"]), references.apart("eigen-sam", references.shared_out(FEW)))


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if not method.adaptive])
def test_every_method_can_be_apart_in_groups_of_ddp(four, name):
    assert_close(same_on_all(four[f"groups of ddp {name}"]), references.apart(name, references.shared_out(FEW)))


def test_replicas_without_any_wrapper_can_be_apart(four):
    assert_close(same_on_all(four["each alone"]), references.apart("eigen-sam", references.shared_out(FEW, of=4)))


def test_every_group_is_displaced_along_its_own_gradient(four):
    found = four["displaced"]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[2], found[3])
    model, (batch,) = network(), data(1)
    params = list(model.parameters())
    for group in range(2):
        g = transcriptions.gradient(lambda group=group: loss_of(model, share(batch, group)), params)
        expected = torch.cat([METHODS["sam"].rho * t.reshape(-1) / transcriptions.norm(g) for t in g])
        assert_close(found[2 * group], expected, atol=1e-15)


@pytest.mark.parametrize(
    ("tried", "way_out"),
    [
        ("hybrid sharding, locally", "perturb=mesh['replicate']"),
        ("hybrid sharding, over a mesh", "mesh=mesh['shard']"),
        ("all ranks in one DDP", "process_group=mesh['shard'].get_group()"),
        ("a mesh of two dimensions", "of one dimension"),
        ("different weights", "the same seed"),
    ],
)
def test_what_cannot_be_had_is_refused_with_the_way_out(four, tried, way_out):
    for sentences in four["refused"]:
        assert way_out in sentences[tried]
