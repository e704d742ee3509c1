"""The documentation: its code runs, its links lead somewhere, and the public interface is in it.

A ```python block runs if it begins with an import, or if `<!-- run -->` stands before it; not if `<!-- not run: why -->`
does. The blocks of a page run in order, in one namespace. `<!-- run` may hold code itself, for what a reader need not see.
"""

import importlib
import re
from pathlib import Path

import pytest

import flatwise

ROOT = Path(__file__).parent.parent
PAGES = [
    path
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    if not {"_build", "gallery"} & set(path.relative_to(ROOT).parts)
]
OPTIONAL = {
    "accelerate",
    "lightning",
    "peft",
    "pytorch_optimizer",
    "skorch",
    "tensorboard",
    "timm",
    "transformers",
    "wandb",
}

CODE = re.compile(
    r"^<!-- run\n(?P<hidden>.*?)^-->$"
    r"|^(?P<mark><!-- (?:run -->|not run: [^\n]+ -->)\n+)?```python\n(?P<shown>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```$|`[^`\n]*`", re.MULTILINE | re.DOTALL)


def blocks(text):
    """The blocks of a page that run, each with the number of its first line."""
    for match in CODE.finditer(text):
        code, mark = match["hidden"] or match["shown"], match["mark"] or ""
        group = "hidden" if match["hidden"] else "shown"
        if match["hidden"] or mark.startswith("<!-- run") or (not mark and re.match(r"import |from ", code)):
            yield text.count("\n", 0, match.start(group)), code


def run(name, text):
    """Run the blocks of a page as if they stood where they stand, so that an error names its line."""
    namespace = {"__name__": "page"}
    for line, code in blocks(text):
        exec(compile("\n" * line + code, name, "exec"), namespace)
    return namespace


def anchors(text):
    """The fragments that the headings of a page can be reached by."""
    headings = re.findall(
        r"^#{1,6} (.+)$", FENCE.sub(lambda m: m[0].strip("`") if "\n" not in m[0] else "", text), re.M
    )
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def name_of(path):
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", [p for p in PAGES if any(blocks(p.read_text(encoding="utf-8")))], ids=name_of)
@pytest.mark.filterwarnings("ignore", "error::UserWarning:page")  # frameworks warn, our own code must not
def test_the_code_of_a_page_runs(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        run(str(path), path.read_text(encoding="utf-8"))
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in OPTIONAL:
            raise
        pytest.skip(str(error))


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_the_links_of_a_page_lead_somewhere(path):
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    for link in LINK.findall(text):
        file, _, fragment = link.partition("#")
        if re.match(r"[a-z]+:", link):
            continue
        target = (path.parent / file).resolve() if file else path
        assert target.exists(), link
        assert ROOT.resolve() in [target, *target.parents], f"{link} leaves the project"
        if fragment and target.suffix == ".md":
            assert fragment in anchors(target.read_text(encoding="utf-8")), link


PUBLIC = [
    *(
        name
        for name in flatwise.__all__
        if name not in ("__version__", "curvature", "landscape", "methods", "schedules", "theory")
    ),
    *(f"methods.{name}" for name in importlib.import_module("flatwise.methods").__all__),
    *(
        f"{package}.{name}"
        for package in ("curvature", "landscape", "optim.schedules", "theory")
        for name, thing in vars(importlib.import_module(f"flatwise.{package}")).items()
        if getattr(thing, "__module__", "").startswith(f"flatwise.{package}") and not name.startswith("_")
    ),
]


@pytest.mark.parametrize("name", [name.removeprefix("optim.") for name in PUBLIC])
def test_every_public_name_is_in_the_pages_of_the_interface(name):
    pages = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("api*.md"))
    assert re.search(rf"\bflatwise\.{re.escape(name)}\b", pages), f"add flatwise.{name} to a page docs/api-*.md"


# --- the convention itself --------------------------------------------------------------------------------------------


def test_blocks_run_by_the_convention():
    page = "\n".join(
        [
            "<!-- run",
            "found = ['hidden']",
            "-->",
            "```python",
            "import os",
            "found.append('import')",
            "```",
            "```python",
            "found.append('fragment')",
            "```",
            "<!-- run -->",
            "```python",
            "found.append('marked')",
            "```",
            "<!-- not run: it needs a GPU -->",
            "```python",
            "import os",
            "found.append('excluded')",
            "```",
            "",
        ]
    )
    assert run("page", page)["found"] == ["hidden", "import", "marked"]


def test_an_error_in_a_page_names_its_line():
    with pytest.raises(ZeroDivisionError) as error:
        run("page.md", "# Title\n\n```python\nimport os\n1 / 0\n```\n")
    assert error.traceback[-1].lineno + 1 == 5


@pytest.mark.parametrize(
    ("heading", "anchor"),
    [("Two lines in your loop", "two-lines-in-your-loop"), ("Norms, groups, and `rho`", "norms-groups-and-rho")],
)
def test_the_fragment_of_a_heading(heading, anchor):
    assert anchors(f"# Page\n\n```\n# no heading\n```\n\n## {heading}\n") == {"page", anchor}
