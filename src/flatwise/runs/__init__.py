"""The run folder, the only interface between whatever trains and whatever reports. Standard library only."""

from flatwise.runs.environment import environment
from flatwise.runs.files import RunWarning, decode, encode, read_json, replacing, write_json
from flatwise.runs.run import Run, RunError, read_mapping

__all__ = [
    "Run",
    "RunError",
    "RunWarning",
    "decode",
    "encode",
    "environment",
    "read_json",
    "read_mapping",
    "replacing",
    "write_json",
]
