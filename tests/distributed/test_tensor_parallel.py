"""Parameters split by tensor parallelism: norms, displacements and steps are those of one process."""

import pytest
import torch
from distributed import references
from distributed.layouts import FEW, METHODS, SAM, STEPS, network
from distributed.on_tensor_parallel import with_layer_norm
from distributed.test_ddp import assert_close, same_on_both
from distributed.test_groups import same_on_all
from torch_releases import gathers_what_is_sharded_twice


@pytest.mark.parametrize("name", METHODS)
def test_two_processes_equal_one(two, name):
    assert_close(same_on_both(two[f"columns and rows {name}"]), references.alone(name, FEW))


def test_two_processes_equal_one_for_fifty_steps(two):
    assert_close(same_on_both(two["columns and rows"]), references.alone("sam", STEPS))


@pytest.mark.parametrize("plan", ["in part", "along the sequence"])
def test_plain_parameters_and_unfinished_sums_among_the_rest(two, plan):
    assert_close(same_on_both(two[plan]), references.alone("eigen-sam", FEW, net=with_layer_norm))


@gathers_what_is_sharded_twice
@pytest.mark.parametrize(("plan", "net"), [("columns and rows", network), ("in part", with_layer_norm)])
def test_with_fsdp_around_it_four_processes_equal_one(four, plan, net):
    assert_close(same_on_all(four[f"sharded twice, {plan}"]), references.alone("eigen-sam", FEW, net=net))


def test_groups_of_tensor_parallelism_can_be_apart(four):
    found = same_on_all(four["groups of tensor parallelism"])
    assert_close(found, references.apart("eigen-sam", references.shared_out(FEW)))


def test_the_displacement_has_its_length_and_is_undone(two):
    for found in two["restored"]:
        at_weights, displaced = found["within"]
        assert torch.equal(at_weights, found["before"])
        assert torch.equal(found["after"], found["before"])
        assert torch.linalg.vector_norm(displaced - at_weights).item() == pytest.approx(SAM.rho, rel=1e-12)
        assert found["norm"] == pytest.approx(SAM.rho, rel=1e-12)
