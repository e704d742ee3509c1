"""The page of claims: the verdicts of all of them first, then for each its criteria, figures, protocol and raw numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flatwise.report.figures import Figure
from flatwise.report.page import plotly, script_json, template
from flatwise.report.palette import OTHERS, transparent
from flatwise.report.provenance import flat, shown
from flatwise.report.verdicts import Judged, Verdict, judged, verdict_of
from flatwise.runs import encode, read_mapping, replacing

LEGEND = {"x": 0.99, "y": 0.99, "xanchor": "right", "yanchor": "top", "bgcolor": "rgba(0,0,0,0)"}
LINES = ("#3a3a3a", "#d95f0e", "#12967a", *OTHERS)


@dataclass(frozen=True)
class Told:
    """A claim as the page shows it.

    Attributes:
        found: what `claim.json` holds.
        criteria: decided.
        verdict: of the claim.
        figures: of its panels.
        raw: the numbers of all seeds, as JSON for downloading.
    """

    found: dict[str, Any]
    criteria: Sequence[Judged]
    verdict: Verdict
    figures: Sequence[Figure]
    raw: str

    @property
    def facts(self) -> list[tuple[str, str]]:
        """The settings, as written down."""
        settings = self.found["preset"] | {"scale": self.found["scale"], "seeds": len(self.found["seeds"])}
        return [(key.replace("_", " "), shown([value])[0]) for key, value in flat(settings).items()]


def build_claims(files: Sequence[Path], out: Path) -> Path:
    """Write the page about some claims to the file `out`, and return its path.

    Args:
        files: the `claim.json` of each.
        out: the page.

    Raises:
        RunError: a file is missing or damaged.
    """
    told = [tell(file) for file in files]
    figures = [figure for claim in told for figure in claim.figures]
    text = template("claims.html.j2").render(
        claims=told,
        figures=script_json({figure.name: figure.plot for figure in figures}),
        plotly=plotly() if figures else "",
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as draft:
        draft.write_text(text, encoding="utf-8")
    return out


def tell(file: Path) -> Told:
    """A claim, decided and drawn."""
    found = read_mapping(file)
    criteria = [judged(criterion) for criterion in found["criteria"]]
    figures = [_figure(found["name"], i, panel) for i, panel in enumerate(found["panels"])]
    verdict: Verdict = "undecided" if found["scale"] == "smoke" else verdict_of(criteria)
    return Told(found, criteria, verdict, figures, encode(found))


def verdict_lines(files: Sequence[Path]) -> list[str]:
    """A line for each claim: its verdict, and the numbers behind it."""
    return [_line(tell(file)) for file in files]


def _line(claim: Told) -> str:
    numbers = "; ".join(_number(c) for c in claim.criteria if c.decisive)
    return (
        f"{claim.found['name']} ({claim.found['scale']}, {len(claim.found['seeds'])} seeds): {claim.verdict}. {numbers}"
    )


def _number(c: Judged) -> str:
    return f"{c.name} {c.mean} ({'; '.join(filter(None, (c.range, f'wanted: {c.wanted}', c.missing)))})"


def _figure(claim: str, number: int, panel: dict[str, Any]) -> Figure:
    data = [trace for i, line in enumerate(panel["lines"]) for trace in _traces(line, LINES[i % len(LINES)])]
    axes = {
        axis: {"title": {"text": panel[axis]}, "type": "log" if axis in panel["log"] else "linear"} for axis in "xy"
    }
    layout = {"xaxis": axes["x"], "yaxis": axes["y"], "showlegend": len(panel["lines"]) > 1, "legend": LEGEND}
    return Figure(f"{claim}-{number}", panel["title"], "", data, layout)


def _traces(line: dict[str, Any], color: str) -> list[dict[str, Any]]:
    main = {
        "x": line["x"],
        "y": line["y"],
        "name": line["label"],
        "mode": "lines",
        "line": {"color": color, "width": 2},
    }
    if not line["low"]:
        return [main]
    band = {
        "x": [*line["x"], *reversed(line["x"])],
        "y": [*line["high"], *reversed(line["low"])],
        "mode": "lines",
        "fill": "toself",
        "fillcolor": transparent(color, 0.2),
        "line": {"width": 0},
        "hoverinfo": "skip",
        "showlegend": False,
    }
    return [band, main]
