"""Processes that run scenarios by name and hand their results to the tests.

A scenario is a function `rank -> result` of plain tensors, numbers and strings. A module of scenarios has them in a dictionary;
processes are started once for all of it. What a scenario raises is its result: the others still run.
"""

import importlib
import multiprocessing.forkserver
import os
import sys
import warnings
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

PATIENCE = timedelta(seconds=120)  # a collective that some rank never joins fails the scenario, not the suite


def results_of(scenarios, count, folder, backend="gloo"):
    """What each of `count` ranks found: a list by scenario. `scenarios` is "module:dictionary"."""
    run(scenarios, count, folder, backend)
    return read(count, folder)


def run(scenarios, count, folder, backend="gloo"):
    """Leave the results in the folder."""
    _start_server()
    torch.multiprocessing.start_processes(
        _run, (scenarios, count, str(folder), backend), count, start_method="forkserver"
    )


def read(count, folder):
    """The results in the folder, by scenario."""
    found = [torch.load(Path(folder) / f"{rank}.pt") for rank in range(count)]
    return {name: [results[name] for results in found] for name in found[0]}


def _start_server():
    """Import once, in the process from which all others are forked; it has to find the tests where pytest does."""
    multiprocessing.set_forkserver_preload(["distributed.two", "distributed.four"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        multiprocessing.forkserver.ensure_running()


def folder():
    """Where these processes meet: all of them may read and write there, and the tests after them."""
    return os.environ["FLATWISE_TEST_FOLDER"]


def _run(rank, scenarios, count, folder, backend):
    torch.set_num_threads(1)
    os.environ["FLATWISE_TEST_FOLDER"] = folder
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")
    warnings.filterwarnings("error", message="torch.distributed runs")  # a model that the optimizer does not recognise
    dist.init_process_group(
        backend, init_method=f"file://{folder}/rendezvous", rank=rank, world_size=count, timeout=PATIENCE
    )
    module, name = scenarios.split(":")
    found = {key: _attempt(scenario, rank) for key, scenario in getattr(importlib.import_module(module), name).items()}
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def _attempt(scenario, rank):
    try:
        return scenario(rank)
    except Exception as error:
        return {"raised": f"{type(error).__name__}: {error}"}


def refusal(function):
    """The sentence with which something is refused; empty where it is not."""
    try:
        function()
    except (ValueError, TypeError, RuntimeError) as error:
        return str(error)
    return ""
