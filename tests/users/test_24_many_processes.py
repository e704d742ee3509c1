"""Problem 24: the Hessian on several devices.

hessian-eigenthings #32 (open from 2020 until its version 1), functorch #1112, pytorch #63929, #47562, #172543; FSDP's warning
#120926. Under DistributedDataParallel a Hessian-vector product is silently that of one rank's data, since its hooks do not see
`autograd.grad`; under FSDP2 `autograd.grad` does not see the shards at all.
"""

import torch
from users.plain import batches, loss_of, network

import flatwise as fw


def one_process():
    """The whole data in one process: a product along ones, and the largest eigenvalue."""
    hessian = fw.curvature.hessian(fw.Objective(network(), loss_of, batches(2), mode="eval"), engine="double")
    product = torch.cat([h.reshape(-1) for h in hessian([torch.ones_like(p) for p in hessian.like])])
    return product, fw.curvature.top_eigenpairs(hessian, tol=1e-4).values[0]


def test_data_parallel_products_are_of_all_the_data(two_processes):
    """Each rank has its own share, of unequal size, and both get the product of the whole."""
    product, eigenvalue = one_process()
    for found in two_processes["problem 24"]:
        torch.testing.assert_close(found["product"], product, rtol=0, atol=1e-6)
        assert abs(found["eigenvalue"] / eigenvalue - 1) < 1e-4


def test_the_record_says_how_many_processes_and_samples(two_processes):
    for found in two_processes["problem 24"]:
        assert found["processes"] == 2
        assert found["samples"] == 32


def test_sharded_parameters_are_measured_by_differences_of_gradients(two_processes):
    product, eigenvalue = one_process()
    for found in two_processes["problem 24"]:
        assert found["sharded engine"] == "differences"
        assert (found["sharded product"] - product).norm() < 1e-3 * product.norm()
        assert abs(found["sharded eigenvalue"] / eigenvalue - 1) < 1e-3


def test_measuring_leaves_the_shards_as_they_were(two_processes):
    assert all(found["sharded weights kept"] for found in two_processes["problem 24"])
