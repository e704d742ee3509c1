"""What all tests share: one thread, so that they can run side by side; the downloadable data, where there is some."""

import os
import signal
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, and for the processes that tests start

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # So a shell starts what runs in its background; some tests press Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
# The same examples every time, and as long as they take: a slow machine is no failure.
settings.register_profile("flatwise", deadline=None, derandomize=True, database=None)
settings.load_profile("flatwise")


@pytest.fixture(scope="session")
def data_root() -> str:
    """The folder with MNIST, Fashion-MNIST and CIFAR-10; a test that asks for it is skipped where there is none."""
    root = os.environ.get("FLATWISE_DATA")
    if not root or not Path(root).is_dir():
        pytest.skip("needs image data: set FLATWISE_DATA to a folder that holds MNIST, FashionMNIST and cifar10")
    return root
