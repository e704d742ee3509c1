"""The engine on a Ray cluster: an actor with one CPU for each process, which runs there what the local engine runs here.

Results are files, so all nodes have to share the file system that the results lie in, and have flatwise installed.
"""

from __future__ import annotations

import os
import socket
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from flatwise.processes.engines import Ending, cores
from flatwise.processes.local import Process

try:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nobody is told about the user's jobs
    import ray
    from ray.exceptions import RayActorError, RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
except ModuleNotFoundError as error:
    raise ValueError('the engine ray needs Ray: pip install ".[ray]" from a clone of flatwise') from error

OBJECTS = 100_000_000
"""Bytes that Ray may use for objects where we start it: only short messages go through it."""

QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
"""The processes write into the log, and progress comes as messages."""

CARRIED = ("FLATWISE_DATA", "PYTHONPATH")
"""Variables of the environment that the processes have from here, not from where Ray was started."""

PATIENCE = 10.0
"""Seconds for a new file to be seen on other nodes, or for a cluster to answer."""


class RayEngine:
    """Processes of the cluster that RAY_ADDRESS names, or that runs on this machine; else of one that is started here."""

    retries = 3

    def __init__(self, server: str, log: Path, workers: int | None) -> None:
        self._server, self._log = server, log.absolute()
        self._workers = workers
        self._is_ours = False

    def __enter__(self) -> Self:
        if not ray.is_initialized():
            self._is_ours = True
            _connect(self._workers or cores())
        try:
            _examine_nodes(self._log.parent)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_ours:
            ray.shutdown()

    def capacity(self) -> int:
        """One process per CPU of the cluster, as it is now."""
        return max(1, int(ray.cluster_resources().get("CPU", 1)))

    def hire(self) -> RayWorker:
        """Start a process on some node; it waits for a CPU to be free."""
        environment = {name: os.environ[name] for name in CARRIED if name in os.environ}
        actor: Any = ray.remote(Agent)
        one = actor.options(num_cpus=1, max_concurrency=3)
        return RayWorker(one.remote(self._server, str(self._log), os.getcwd(), environment))


class Agent:
    """On a node of the cluster: a process like the local engine's, its messages passed on."""

    def __init__(self, server: str, log: str, folder: str, environment: dict[str, str]) -> None:
        self._process = Process(server, Path(log), folder, os.environ | environment)

    def work(self, order: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """As `Process.work`."""
        yield from self._process.work(order)

    def ending(self) -> Ending:
        """As `Process.ending`."""
        return self._process.ending()

    def interrupt(self) -> None:
        """As `Process.interrupt`."""
        self._process.interrupt()

    def dismiss(self) -> None:
        """As `Process.dismiss`."""
        self._process.dismiss()


class RayWorker:
    """The near end of an `Agent`."""

    def __init__(self, agent: Any) -> None:
        self._agent = agent
        self._ready = agent.__ray_ready__.remote()
        self._gone = threading.Event()

    def work(self, order: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Have it carry out an order, and yield its messages; they end early when the process or its agent does."""
        with _plain_errors(), suppress(RayActorError):
            for reference in self._agent.work.options(num_returns="streaming").remote(order):
                yield ray.get(reference)

    def alive(self) -> bool:
        """Whether it can be given another order."""
        return not self._gone.is_set()

    def ending(self) -> Ending:
        """How its process ended; what is left of it is removed."""
        try:
            with _plain_errors():
                ray.get(self._ready)
                return ray.get(self._agent.ending.remote())
        except RayActorError as error:
            return Ending(f"the loss of its Ray worker ({_gist(error)})", killed=True)
        finally:
            self.kill()

    def interrupt(self) -> None:
        """Ask it to write down what it has and end; one that still waits for a CPU just ends."""
        if ray.wait([self._ready], timeout=0)[0]:
            self._agent.interrupt.remote()
        else:
            self.kill()

    def kill(self) -> None:
        """End it at once."""
        self._gone.set()
        ray.kill(self._agent)

    def dismiss(self) -> None:
        """Let its process end, and give its CPU back."""
        with suppress(RayError):
            ray.get(self._agent.dismiss.remote())
        self.kill()


def _connect(workers: int) -> None:
    """Connect to a running cluster, or start one on this machine, and say which."""
    address = os.environ.get("RAY_ADDRESS")
    try:
        _knock(address or _last_started())
        ray.init(address=address or "auto", **QUIET)
        _say(f"connected to the Ray cluster at {ray.get_runtime_context().gcs_address}")
    except ConnectionError as error:
        if address:
            raise ConnectionError(f"no Ray cluster answers at {address}, where RAY_ADDRESS points") from error
        _check_path(sys.executable)
        ray.init(address="local", num_cpus=workers, object_store_memory=OBJECTS, include_dashboard=False, **QUIET)
        _say(
            f"no Ray cluster is running on this machine, so one was started with {workers} CPUs, for this command only"
        )
    except (RuntimeError, RayError) as error:  # another version of Ray or of Python, or no right to
        raise ValueError(f"the Ray cluster cannot be used: {error}") from error


def _check_path(python: str) -> None:
    """Raise ValueError where Ray would start no process, and wait for it for minutes."""
    if " " in python:
        raise ValueError(
            f"Ray starts no processes from a Python whose path has a space ({python}); install flatwise somewhere else for it"
        )


def _last_started() -> str:
    """The address of the cluster that was started last on this machine, which may have been killed since."""
    noted = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir(), "ray", "ray_current_cluster")
    return noted.read_text().strip() if noted.is_file() else ""


def _knock(address: str) -> None:
    """Raise ConnectionError at once where nobody listens, for which Ray itself takes minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and "/" not in host:
        try:
            socket.create_connection((host, int(port)), PATIENCE).close()
        except OSError as error:
            raise ConnectionError(str(error)) from error


def _say(sentence: str) -> None:
    print(f"flatwise: {sentence}", file=sys.stderr)


# --- one file system --------------------------------------------------------------------------------------------------


def _examine_nodes(folder: Path) -> None:
    """Refuse a cluster whose nodes do not all see the folder that the results go into, or have no flatwise.

    Raises:
        OSError: as said; the node is named.
    """
    token = folder / f".seen-by-all-{uuid.uuid4().hex}"
    token.touch()
    try:
        nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
        answers = {address: _ask(node, token) for node, address in nodes.items()}
        for address, answer in answers.items():
            with _plain_errors(f"the Ray node {address} cannot do the jobs: "):
                if not ray.get(answer):
                    raise OSError(
                        f"the Ray node {address} does not see the folder {folder}; "
                        "choose one (--out) on a file system that all nodes share"
                    )
    finally:
        token.unlink()


def _ask(node: str, token: Path) -> Any:
    """Have a node look for a file."""
    there = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(num_cpus=0)(_sees).options(scheduling_strategy=there).remote(str(token))


def _sees(path: str) -> bool:
    """Whether a file is there, after a while perhaps: shared file systems take their time."""
    deadline = time.monotonic() + PATIENCE
    while not Path(path).exists():
        if not Path(path).parent.exists() or time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


@contextmanager
def _plain_errors(beginning: str = "") -> Generator[None]:
    """Ray's errors as OSError, in one line; but a lost actor's, which have a meaning."""
    try:
        yield
    except RayActorError:
        raise
    except RayError as error:
        raise OSError(beginning + _gist(error)) from error


def _gist(error: RayError) -> str:
    """Of Ray's long messages the line that says what it was."""
    return str(error).strip().splitlines()[-1].strip()
