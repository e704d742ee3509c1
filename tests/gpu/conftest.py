"""What a CPU cannot show. Each of these tests is skipped, with the reason, where torch finds no CUDA device for it."""

import pytest
import torch


def pytest_configure(config):
    config.addinivalue_line("markers", "gpu(count=1): needs so many CUDA devices; skipped where there are fewer")


def pytest_runtest_setup(item):
    found = torch.cuda.device_count()
    for mark in item.iter_markers("gpu"):
        wanted = mark.kwargs.get("count", 1)
        if found < wanted:
            pytest.skip(f"needs {wanted} CUDA device(s), torch finds {found}")


@pytest.fixture(autouse=True)
def _full_precision():
    """TensorFloat-32 would part results that should agree, and so would kernels that add up in any order."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        yield
