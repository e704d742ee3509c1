"""A Ray cluster of our own for a test, and the processes that a test has started, wherever they went.

Every process of a test has a mark in its environment, which its children inherit: so they are found, and none is left behind.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

MARK = "FLATWISE_TEST_MARK"


def in_the_way():
    """Why there can be no Ray cluster; empty where there can."""
    if find_spec("ray") is None:
        return "Ray is not installed"
    return "Ray starts no processes from a Python whose path has a space" if " " in sys.executable else ""


@contextmanager
def marked():
    """An environment for the processes of a test; those that are left at the end are killed."""
    mark = uuid.uuid4().hex
    try:
        yield os.environ | {MARK: mark, "OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled"}
    finally:
        kill(processes(mark))


@contextmanager
def cluster(cpus=2, before=()):
    """A Ray cluster of one node on this machine, its command after some words; yields the environment in which it is found."""
    # Sockets lie in its folder, and their paths may have a hundred characters or so.
    folder = tempfile.mkdtemp(prefix="fw-ray-", dir="/tmp")
    try:
        with marked() as environment:
            port = free_port()
            words = ["--head", "--block", f"--port={port}", f"--num-cpus={cpus}", f"--temp-dir={folder}"]
            words += ["--include-dashboard=false", "--disable-usage-stats", "--object-store-memory=100000000"]
            with _running(
                [*before, sys.executable, "-u", "-m", "ray.scripts.scripts", "start", *words], environment
            ) as head:
                line = next((line for line in head.stdout if "Ray runtime started" in line), None)
                assert line, "Ray has not started"
                yield environment | {"RAY_ADDRESS": f"127.0.0.1:{port}"}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _running(command, environment):
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(command, env=environment, text=True, **pipes) as process:
        try:
            yield process
        finally:
            kill(processes(environment[MARK]))


def processes(mark, words=""):
    """The numbers of the running processes with this mark, and of those below them, whose command line holds some words."""
    parents, ours = {}, set()
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            number = int(folder.name)
            parents[number] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            ours |= {number} if f"{MARK}={mark}" in (folder / "environ").read_text(errors="replace") else set()
    while below := {number for number, parent in parents.items() if parent in ours} - ours:
        ours |= below  # Ray's own have their environment overwritten by their title
    return [number for number in sorted(ours) if words in command_line(number)]


def command_line(number):
    try:
        return Path(f"/proc/{number}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def kill(numbers):
    for number in numbers:
        with suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def wait_for(condition, seconds=240):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "what was waited for has not come"
        time.sleep(0.05)
