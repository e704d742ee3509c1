import ctypes
import subprocess
import sys

import pytest

from flatwise.processes import keep_memory

TIMES, SIZE = 20, 64 * 2**20

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


def has_mallopt():
    return sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt")


@pytest.mark.skipif(not has_mallopt(), reason="only glibc can be told to keep memory")
def test_memory_that_was_freed_is_not_asked_of_the_system_again():
    assert faults("keep") < faults() / 4


def test_elsewhere_nothing_happens(monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(ctypes, "CDLL", None)
    keep_memory()
