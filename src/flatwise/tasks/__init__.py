"""Data sets and models by name, seeded. Resolved on first use: the names alone must not import torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from flatwise.tasks.names import check_data_name, check_model_name, data_names, model_names

if TYPE_CHECKING:
    from flatwise.tasks.data import load_data as load_data
    from flatwise.tasks.models import build_model as build_model
    from flatwise.tasks.task import Task as Task

__all__ = ["Task", "build_model", "check_data_name", "check_model_name", "data_names", "load_data", "model_names"]

_HOMES = {"Task": "task", "load_data": "data", "build_model": "models"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"flatwise.tasks.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'flatwise.tasks' has no attribute {name!r}")
