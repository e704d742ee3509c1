"""The processes of these tests: two and four of them, started once, also where several workers run the tests side by side."""

import os
import time

import pytest
from distributed import on_checkpoints, processes


class Results:
    """What the ranks found, by scenario, and the folder where they met. What a scenario raised fails the test that asks."""

    def __init__(self, count, folder):
        self.folder = folder
        self._found = processes.read(count, folder)

    def __getitem__(self, name):
        for rank, result in enumerate(self._found[name]):
            if isinstance(result, dict) and "raised" in result:
                pytest.fail(f"rank {rank}: {result['raised']}")
        return self._found[name]


@pytest.fixture(scope="session")
def two(tmp_path_factory):
    return started_once("distributed.two:SCENARIOS", 2, tmp_path_factory)


@pytest.fixture(scope="session")
def four(tmp_path_factory):
    return started_once("distributed.four:SCENARIOS", 4, tmp_path_factory)


def started_once(scenarios, count, tmp_path_factory):
    """The worker that comes first starts the processes, any other one waits for their results."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / f"{count}-processes"
    done = folder / "done"
    try:
        folder.mkdir()
    except FileExistsError:
        while not done.exists():
            time.sleep(0.2)
    else:
        try:
            on_checkpoints.by_one(folder)
            processes.run(scenarios, count, folder)
        finally:
            done.touch()
    return Results(count, folder)
