import ctypes
import subprocess
import sys

import pytest

TIMES, SIZE = 20, 64 * 2**20
PAGES = TIMES * SIZE // 4096

SCRIPT = f"""
import resource, sys, torch
from flatwise.processes import keep_memory

if sys.argv[1:]:
    keep_memory()
for _ in range(10):  # blocks are aligned: the heap grows a few times before the same place fits again
    torch.ones({SIZE}, dtype=torch.uint8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range({TIMES}):
    torch.ones({SIZE}, dtype=torch.uint8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(*words: str) -> int:
    """Page faults of a process that asks for the same memory again and again."""
    done = subprocess.run([sys.executable, "-c", SCRIPT, *words], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="only glibc can be told to keep memory")
def test_memory_that_was_freed_is_asked_of_the_system_once():
    assert faults("keep") < PAGES / 4
    assert faults() > PAGES / 2  # else there is nothing to gain
