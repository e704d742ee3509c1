import importlib.metadata
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import flatwise

ROOT = Path(__file__).parent.parent
HEAVY = {"torch", "torchvision", "numpy", "scipy", "sklearn", "plotly", "jinja2", "tyro", "rich"}


def modules_after(code):
    """The top-level modules loaded in a fresh interpreter after some code."""
    ask = f"{code}\nimport sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", ask], check=True, capture_output=True, text=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("code", ["import flatwise", "import flatwise.runs", "import flatwise.tasks"])
def test_light_imports_stay_light(code):
    assert not modules_after(code) & HEAVY


def test_reading_and_reporting_runs_never_loads_torch():
    every = "import flatwise.{0}, importlib, pkgutil\nfor m in pkgutil.walk_packages(flatwise.{0}.__path__, 'flatwise.{0}.'):"
    for package in ("report", "runs"):
        assert "torch" not in modules_after(every.format(package) + " importlib.import_module(m.name)")


@pytest.mark.parametrize("name", flatwise.__all__)
def test_every_public_name_resolves(name):
    assert getattr(flatwise, name) is not None
    assert name in dir(flatwise)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'flatwise' has no attribute 'SAM'"):
        flatwise.SAM  # noqa: B018


def test_the_version_is_the_same_everywhere():
    written = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert flatwise.__version__ == written == importlib.metadata.version("flatwise")


def test_the_package_says_that_it_is_typed():
    assert (Path(flatwise.__file__).parent / "py.typed").exists()


def test_the_public_names_of_tasks_resolve_lazily():
    assert "torch" in modules_after("from flatwise.tasks import Task, build_model, load_data")
    from flatwise import tasks

    assert all(getattr(tasks, name) for name in tasks.__all__)
    with pytest.raises(AttributeError, match=r"module 'flatwise.tasks' has no attribute 'load'"):
        tasks.load  # noqa: B018


def test_a_method_looked_for_one_level_too_high():
    with pytest.raises(AttributeError, match=r"did you mean flatwise\.methods\.SAM\?"):
        flatwise.SAM  # noqa: B018
