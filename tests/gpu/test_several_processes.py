"""Processes on devices: SyncBatchNorm, which torch has for accelerators only, and NCCL."""

import pytest
from distributed import processes, references
from distributed.layouts import FEW
from distributed.on_ddp import with_norm
from distributed.test_ddp import assert_close, same_on_both
from gpu.devices import gpu, two_gpus


@gpu
def test_sync_batch_norm_is_batch_norm_in_one_process(tmp_path):
    found = processes.results_of("gpu.on_several_processes:ON_ONE", 2, tmp_path)
    expected = references.alone("eigen-sam", FEW, net=with_norm)
    assert_close(same_on_both(found["statistics over ranks"]), expected, atol=1e-6)


@two_gpus
@pytest.mark.parametrize("layout", ["ddp", "fsdp", "local"])
def test_two_devices_equal_one_process(tmp_path, layout):
    found = processes.results_of("gpu.on_several_processes:ON_TWO", 2, tmp_path, backend="nccl")
    apart = layout == "local"
    expected = (
        references.apart("eigen-sam", references.shared_out(FEW)) if apart else references.alone("eigen-sam", FEW)
    )
    assert_close(same_on_both(found[layout]), expected, atol=1e-6)
