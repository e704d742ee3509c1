"""The top eigenspace on two gloo processes that share the data, and under FSDP2 the weights: it is that of one process."""

import pytest
import torch
from curvature import eigenspace_workers
from distributed.layouts import network
from distributed.processes import results_of


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return results_of("curvature.eigenspace_workers:SCENARIOS", 2, tmp_path_factory.mktemp("two-processes"))


@pytest.mark.parametrize("layout", ["ddp", "fsdp"])
def test_updates_off_the_space_are_those_of_one_process(results, layout):
    expected = eigenspace_workers.alone(network)
    for found in results[layout]:
        assert torch.is_tensor(found), found
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
