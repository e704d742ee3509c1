import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from flatwise.report import build, build_runs
from flatwise.runs import Run, RunError


class Page(HTMLParser):
    """What a page loads, its text outside scripts, and the figures in it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.words: list[str] = []
        self.scripts: list[str] = []
        self.tags: list[str] = []
        self._inside = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = tag
        self.tags.append(tag)
        self.loaded += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts += [data] if data.strip() else []
        elif self._inside != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))

    @property
    def figures(self) -> dict[str, Any]:
        return json.loads(self.scripts[0])


def test_a_comparison_with_its_edge_study(demo: Path) -> None:
    path = build(demo)
    assert path == demo / "report.html"
    page = Page(path)
    assert len(page.figures) == 4 + 3 + 1
    order = ["SGD, SAM and Eigen-SAM on digits", "Over 5 seeds", "Results", "Paired differences", "Over training"]
    order += [
        "The edge of stability",
        "Run it again",
        "flatwise demo --out 'my demo'",
        "What differs between the methods",
    ]
    order += ["What they share", "Versions and machine", "How each number was measured"]
    places = [page.text.index(words) for words in order]
    assert places == sorted(places)


def test_the_page_is_self_contained(demo: Path) -> None:
    page = Page(build(demo))
    assert page.loaded == ["data:,"]
    own = [script for script in page.scripts if "plotly.js v" not in script[:300]]
    assert len(own) == 2
    text = "".join(
        [*own, *re.findall(r"<style>.*?</style>", (demo / "report.html").read_text(encoding="utf-8"), re.DOTALL)]
    )
    assert "http" not in text
    assert "url(" not in text
    assert "@import" not in text


def test_how_it_was_measured_is_told(demo: Path) -> None:
    text = Page(build(demo)).text
    assert "1,000 training samples, evaluation mode, float32" in text
    assert re.search(r"residual relative to it: median 0\.00\d+, largest 0\.0\d+ over 525 probes", text)
    assert "no proof of generalization" in text
    assert "2.14.1" in text


def test_what_two_studies_have_in_common_is_told_once(demo: Path) -> None:
    text = Page(build(demo)).text
    assert text.count("Run it again") == 1
    assert text.count("Versions and machine") == 1
    assert text.count("no proof of generalization") == 1


def test_an_edge_folder_alone(edge: Callable[..., Path]) -> None:
    page = Page(build(edge(seeds=1)))
    assert sorted(page.figures) == ["edge-eigen-sam", "edge-gd", "edge-loss", "edge-sam"]
    assert "Paired differences" not in page.text
    assert "in one seed (ratio 1.0" in page.text


def test_single_runs_of_one_method_are_one_arm(tmp_path: Path, run_at: Callable[..., Run]) -> None:
    paths = [run_at(tmp_path / f"seed-{seed}", "sam", seed).path for seed in range(2)]
    page = Page(build_runs(paths, tmp_path / "out" / "report.html"))
    assert "Test accuracy is 9" in page.text
    assert "over 2 seeds" in page.text
    assert "Paired differences" not in page.text


def test_runs_that_differ_in_a_setting_are_told_apart(tmp_path: Path, run_at: Callable[..., Run]) -> None:
    paths = [run_at(tmp_path / f"{rho}-{seed}", "sam", seed, rho=rho).path for rho in (0.05, 0.1) for seed in range(2)]
    text = Page(build_runs(paths, tmp_path / "report.html")).text
    assert "SAM (rho 0.05)" in text
    assert "SAM (rho 0.1) − SAM (rho 0.05)" in text


def test_one_run_folder(tmp_path: Path, run_at: Callable[..., Run]) -> None:
    path = build(run_at(tmp_path / "seed-3", "sam", 3).path)
    assert "one seed, so no interval" in Page(path).text


def test_a_run_that_has_just_started(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", {"method": "sam", "seed": 0}, {"command": "flatwise train"})
    page = Page(build(run.path))
    assert "No run has finished" in page.text
    assert "seed 0, is unfinished" in page.text


def test_a_diverged_run_is_shown_plainly(comparison: Callable[..., Path]) -> None:
    folder = comparison(["sgd", "sam"], seeds=2)
    run = Run.open(folder / "runs/sam/seed-1")
    run.append({"kind": "probe", "step": 700, "epoch": 44.0, "train_loss": math.nan, "test_accuracy": 0.1, "on": "x"})
    run.finish("diverged", {"steps": 700, "reason": "the loss became nan"})
    page = Page(build(folder))
    assert "SAM, seed 1, diverged at step 700 (the loss became nan)" in page.text
    broken = [trace for trace in page.figures["comparison-loss"]["data"] if "diverged" in trace["name"]]
    assert len(broken) == 1
    assert max(broken[0]["x"]) == 40.0


@pytest.mark.parametrize("text", ["<script>alert(1)</script>", "</script><b>", "a & b \"c\" 'd'", "{{ 7 * 7 }}"])
def test_labels_titles_and_commands_are_text(comparison: Callable[..., Path], text: str) -> None:
    folder = comparison(["sgd", "sam"], seeds=2, title=f"T{text}", command=f"C{text}")
    plan = json.loads((folder / "comparison.json").read_text())
    plan["arms"][1]["label"] = f"L{text}"
    (folder / "comparison.json").write_text(json.dumps(plan))
    page = Page(build(folder))
    for first in "TCL":
        assert f"{first}{text}" in "".join(page.words)
    # The figures, plotly.js and our own: nothing was added.
    assert page.tags.count("script") == 3
    assert page.tags.count("b") == build(comparison_without(folder)).read_text(encoding="utf-8").count("<b>")


def comparison_without(folder: Path) -> Path:
    """The same comparison with harmless texts."""
    plan = json.loads((folder / "comparison.json").read_text()) | {"title": "T", "command": "C"}
    plan["arms"][1]["label"] = "L"
    (folder / "comparison.json").write_text(json.dumps(plan))
    return folder


def test_an_older_report_is_replaced(comparison: Callable[..., Path]) -> None:
    folder = comparison(["sgd"], seeds=2)
    (folder / "report.html").write_text("old")
    assert "old" not in Page(build(folder)).text.split()
    assert not [path for path in folder.iterdir() if path.suffix in (".part", ".tmp")]


def test_nothing_to_report(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="nothing to report"):
        build(tmp_path)
    with pytest.raises(RunError, match="at least one run"):
        build_runs([], tmp_path / "report.html")
    with pytest.raises(RunError, match="no run"):
        build_runs([tmp_path], tmp_path / "report.html")


def test_torch_is_never_imported(demo: Path) -> None:
    code = f"import sys, flatwise.report as r; r.build({str(demo)!r}); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "False"
