"""Two gloo processes, started once for all problems that need them."""

import pytest
import torch
from users import processes


@pytest.fixture(scope="session")
def two_processes(tmp_path_factory):
    """What both ranks found, by problem."""
    folder = tmp_path_factory.mktemp("two-processes")
    torch.multiprocessing.spawn(processes.run, args=(str(folder),), nprocs=2)
    a, b = (torch.load(folder / f"{rank}.pt") for rank in range(2))
    failed = {name: found for name, found in (a | b).items() if isinstance(found, str)}
    assert not failed, failed
    return {name: (a[name], b[name]) for name in a}
