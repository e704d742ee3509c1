import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from report.test_claim_page import left

from flatwise.report import build, build_claims

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage", "--no-first-run"),
    *("--disable-sync", "--disable-background-networking", "--disable-component-update"),
    *("--enable-logging=stderr", "--virtual-time-budget=20000"),
]
# What the browser asks for on its own account.
BROWSERS_OWN = re.compile(r"https?://([\w.-]+\.)?(google|googleapis|gstatic)\.com[/:]")

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome is installed")


@dataclass
class Visit:
    """A page after its scripts have run: its elements, what it wrote to the console, what it asked the network for."""

    dom: str
    console: list[str]
    requests: list[str]

    @property
    def drawn(self) -> list[str]:
        """The names of the figures in which plotly.js has drawn lines."""
        names = re.findall(r'data-figure="([^"]+)"', self.dom)
        parts = re.split(r'<div class="canvas', self.dom)[1:]
        return [name for name, part in zip(names, parts) if 'class="js-line"' in part]


def visit(page: Path, tmp_path: Path) -> Visit:
    tmp_path.mkdir(exist_ok=True)
    log = tmp_path / "net.json"
    # No name is ever resolved, so that nothing is loaded; what the page wanted is in the log.
    network = [
        "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--log-net-log={log}",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    command = [str(BROWSER), *FLAGS, *network, "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=True)
    urls = re.findall(r'"url":"(https?:[^"]*)"', log.read_text(encoding="utf-8"))
    wanted = [url for url in dict.fromkeys(urls) if not BROWSERS_OWN.match(url)]
    return Visit(done.stdout, re.findall(r"CONSOLE.*", done.stderr), wanted)


def test_every_figure_is_drawn_offline_without_a_complaint(demo: Path, tmp_path: Path) -> None:
    found = visit(build(demo), tmp_path)
    assert (found.console, found.requests) == ([], [])
    assert found.drawn == [
        *(f"comparison-{name}" for name in ("accuracy", "eigenvalue", "alignment", "loss")),
        *("edge-gd", "edge-sam", "edge-eigen-sam", "edge-loss"),
    ]
    assert 'data-drawn="8"' in found.dom
    assert found.dom.count('class="main-svg"') >= 8


def test_a_method_is_hidden_in_the_figures_over_training_by_its_button(demo: Path, tmp_path: Path) -> None:
    text = build(demo).read_text(encoding="utf-8")
    page = tmp_path / "page.html"
    click = "<script>document.querySelector('[data-arm=\"sam\"]').click()</script>"
    page.write_text(text.replace("</body>", f"{click}</body>"), encoding="utf-8")
    before, after = visit(demo / "report.html", tmp_path / "a"), visit(page, tmp_path / "b")
    assert after.console == []
    assert 'data-arm="sam" aria-pressed="false"' in after.dom
    # Mean and two borders of the band, in four figures; its panel at the edge stays as it is.
    assert before.dom.count('class="js-line"') - after.dom.count('class="js-line"') == 3 * 4
    assert after.drawn == before.drawn


def test_complaints_and_requests_are_really_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("<script src='http://example.invalid/x.js'></script><script>undefinedFunction()</script>")
    found = visit(page, tmp_path)
    assert found.requests == ["http://example.invalid/x.js"]
    assert "undefinedFunction is not defined" in found.console[0]


def test_one_broken_run_leaves_the_page_whole(comparison: Callable[..., Path], tmp_path: Path) -> None:
    folder = comparison(["sgd", "sam"], seeds=1, title="<img src=x onerror=console.error(1)>")
    (folder / "runs/sam/seed-0/done.json").unlink()
    found = visit(build(folder), tmp_path)
    assert found.console == []
    # The alignment is SAM's alone.
    assert len(found.drawn) == 4


def test_the_page_of_a_claim_draws_its_curves_and_its_heat_map_offline(tmp_path: Path) -> None:
    file = left(tmp_path)
    build_claims(tmp_path)
    found = visit(file.with_name("report.html"), tmp_path / "visit")
    assert (found.console, found.requests) == ([], [])
    assert found.drawn == ["example-0"]
    assert "heatmaplayer" in found.dom
    assert "SAM &lt;i&gt;" in found.dom
