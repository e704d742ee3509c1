"""The house: which part of flatwise may import which. An arrow that docs/house.md does not draw fails here."""

import ast
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "flatwise"
GROUND = {"vectors", "objective", "modules"}
LIBRARY = GROUND | {"plugins", "methods", "optim", "curvature", "landscape", "theory", "tasks", "runs", "statistics"}
MAY_IMPORT = {
    "vectors": set(),
    "modules": set(),
    "objective": {"vectors", "modules"},
    "plugins": set(),
    "methods": {"vectors", "plugins"},
    "optim": {"methods", "vectors", "modules"},
    "frameworks": {"optim", "methods", "vectors", "modules"},
    "curvature": {"vectors", "objective"},
    "landscape": {"vectors", "objective", "modules"},
    "theory": {"vectors", "objective", "methods"},
    "tasks": {"plugins"},
    "runs": set(),
    "statistics": set(),
    "processes": set(),
    "training": LIBRARY,
    "experiments": LIBRARY | {"training", "processes"},
    "measurements": LIBRARY | {"training", "processes"},
    "report": {"runs", "statistics"},
    "cli": LIBRARY | {"training", "processes", "experiments", "measurements", "report", "__version__"},
    "__main__": {"cli"},
    "__init__": LIBRARY,
}
PACKAGES = {room: {"torch"} for room in GROUND} | {
    "plugins": set(),
    "runs": set(),
    "statistics": set(),
    "processes": {"ray"},
    "tasks": {"torch", "torchvision", "sklearn"},
}
NEVER = {"report": {"torch", "torchvision"}}
FILES = {str(path.relative_to(SOURCE)): path for path in sorted(SOURCE.rglob("*.py"))}


def imports(code):
    """Every dotted name that some code imports, wherever the statement stands."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def wrong_arrows(room, code):
    """What the room imports and may not."""
    names = [name.split(".") for name in imports(code)]
    inside = {name[1] if len(name) > 1 else "everything" for name in names if name[0] == "flatwise"}
    outside = {name[0] for name in names} - sys.stdlib_module_names - {"flatwise"}
    wrong_outside = (outside - PACKAGES[room]) if room in PACKAGES else (outside & NEVER.get(room, set()))
    return inside - MAY_IMPORT[room] - {room} | wrong_outside


@pytest.mark.parametrize("name", FILES)
def test_every_arrow_is_allowed(name):
    code = FILES[name].read_text(encoding="utf-8")
    assert not wrong_arrows(name.split("/")[0].removesuffix(".py"), code)


@pytest.mark.parametrize("name", FILES)
def test_no_file_is_longer_than_400_lines(name):
    assert len(FILES[name].read_text(encoding="utf-8").splitlines()) <= 400


def test_the_edges_are_plain_numbers_that_know_neither_methods_nor_curvature():
    assert not wrong_arrows("vectors", (SOURCE / "theory" / "edges.py").read_text(encoding="utf-8"))


def test_only_the_engine_on_a_cluster_knows_ray():
    those = [name for name, path in FILES.items() if any(n.split(".")[0] == "ray" for n in imports(path.read_text()))]
    assert those == ["processes/cluster.py"]


@pytest.mark.parametrize(
    ("room", "code", "wrong"),
    [
        ("report", "import torch", {"torch"}),
        ("report", "def f():\n    from torch import nn", {"torch"}),
        ("report", "from flatwise.runs import Run\nimport plotly", set()),
        ("runs", "import numpy as np\nimport json", {"numpy"}),
        ("methods", "from flatwise import vectors as V, modules", {"modules"}),
        ("methods", "if TYPE_CHECKING:\n    from flatwise.optim.wrapper import X", {"optim"}),
        ("methods", "import flatwise.curvature.hessian", {"curvature"}),
        ("theory", "import flatwise as fw", {"everything"}),
        ("vectors", "import torch, scipy.linalg", {"scipy"}),
    ],
)
def test_a_wrong_arrow_is_seen(room, code, wrong):
    assert wrong_arrows(room, code) == wrong
