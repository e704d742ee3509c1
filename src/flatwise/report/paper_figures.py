"""Figures for a paper: the data of the page's figures, drawn by matplotlib as PDF or PNG."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from flatwise.report.figures import Figure, Json
from flatwise.runs import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas
    from matplotlib.ticker import LogFormatter

Format: TypeAlias = Literal["pdf", "png"]

COLUMN, PAGE = 3.35, 6.85
"""Widths in inches of a column and of a page of a paper in two columns."""

HEIGHT, LINE = 2.2, 0.16
"""Of a row of panels and of a line of a legend, in inches."""

TITLE = 30
"""Letters in a line of a title, which must not be wider than its panel."""

LETTERS, SIDE = 10.5, 20
"""Letters to an inch of a heat map's width that its labels below may have, or else are turned; in a line of those beside it."""

STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "legend.fontsize": 7,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.2,
    "pdf.fonttype": 42,
}
"""Of matplotlib: type 42 keeps letters as letters, as publishers ask for."""

DASHES = {"solid": "-", "dash": "--", "dot": ":"}


def draw(figures: Sequence[Figure], path: Path, formats: Sequence[Format]) -> list[Path]:
    """Draw figures as the panels of one, and return the files.

    Args:
        figures: of a page; with none nothing is drawn.
        path: of the files, without an ending.
        formats: a file for each.

    Raises:
        ValueError: matplotlib cannot be imported.
    """
    check_formats(formats)
    if not figures or not formats:
        return []
    from matplotlib import rc_context

    with rc_context(STYLE):
        canvas = canvas_of(figures)
        return [_save(canvas, path.with_name(f"{path.name}.{ending}")) for ending in formats]


def draw_each(figures: Sequence[Figure], folder: Path, formats: Sequence[Format]) -> list[Path]:
    """Draw each figure into a file of its own in a folder, and return the files; errors as in `draw`."""
    return [file for figure in figures for file in draw([figure], folder / figure.name, formats)]


def check_formats(formats: Sequence[Format]) -> None:
    """Raise ValueError, which says what to do, where formats are wanted and matplotlib cannot be imported."""
    try:
        if formats:
            import_module("matplotlib.figure")
    except ImportError as error:
        raise ValueError(
            f"{' and '.join(formats)} need matplotlib, which cannot be imported ({error}): "
            'pip install ".[figures]" from a clone of flatwise'
        ) from error


def _save(canvas: Canvas, path: Path) -> Path:
    ending = path.suffix[1:]
    still = {"CreationDate": None} if ending == "pdf" else None  # the same figure is the same file
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as draft:
        canvas.savefig(draft, format=ending, dpi=300, metadata=still)
    return path


def canvas_of(figures: Sequence[Figure]) -> Canvas:
    """Figures as the panels of one of matplotlib's."""
    from matplotlib.figure import Figure as Canvas

    columns = _columns(len(figures))
    rows = math.ceil(len(figures) / columns)
    width = COLUMN if columns == 1 and not _has_long_labels(figures[0]) else PAGE
    canvas = Canvas(figsize=(width, HEIGHT * rows), layout="constrained")
    panels = canvas.subplots(rows, columns, squeeze=False).flatten()
    for axes, figure in zip(panels, figures):
        _panel(axes, figure, width / columns)
    for axes in panels[len(figures) :]:
        axes.remove()
    _legend(canvas, panels[: len(figures)])
    return canvas


def _columns(panels: int) -> int:
    """Side by side: up to three, without a gap where there are four."""
    return panels if panels < 4 else 2 if panels == 4 else 3


def _has_long_labels(figure: Figure) -> bool:
    """Whether a heat map would be squeezed to nothing in a column by the labels beside it."""
    labels = [str(label) for trace in figure.data if trace.get("type") == "heatmap" for label in trace["y"]]
    return max(map(len, labels), default=0) > SIDE


def _panel(axes: Axes, figure: Figure, width: float) -> None:
    """One figure of the page in one set of axes, which have so many inches with all that is around them."""
    axes.set_title(fill(figure.title, TITLE))
    traces = _seen(figure)
    for place, trace in enumerate(traces):
        if trace.get("type") == "heatmap":
            _heat(axes, trace, width)
        elif trace.get("fill") == "tonexty":
            _band(axes, traces[place - 1], trace)
        else:
            _curve(axes, trace)
    for axis in ("x", "y"):
        _set_axis(axes, axis, figure.layout.get(f"{axis}axis", {}))


def _seen(figure: Figure) -> list[Json]:
    """The traces that the page shows at first: of those with labels at their ends, these only."""
    named = {note["name"] for note in figure.layout.get("annotations", []) if note.get("name")}
    return [trace for trace in figure.data if not named or trace.get("meta") in (named | {None})]


def _curve(axes: Axes, trace: Json) -> None:
    line, mode = trace.get("line", {}), trace["mode"]
    if mode != "markers" and not line.get("width", 1):  # the border of a band
        return
    style: dict[str, Any] = {"color": line["color"], "linestyle": DASHES[line.get("dash", "solid")]}
    if mode == "markers":
        style |= {"linestyle": "none", "marker": "o", "markersize": 3}
    label = "_" if trace.get("showlegend") is False or "lines+" in mode else plain(trace.get("name", "_"))
    axes.plot(trace["x"], _gaps(trace["y"]), label=label, **style)


def _band(axes: Axes, lower: Json, upper: Json) -> None:
    color, share = _color(upper["fillcolor"])
    axes.fill_between(lower["x"], _gaps(lower["y"]), _gaps(upper["y"]), color=color, alpha=share, linewidth=0)


def _heat(axes: Axes, trace: Json, width: float) -> None:
    from matplotlib.colors import CenteredNorm, LinearSegmentedColormap

    middle = trace.get("zmid")
    colors = "viridis" if middle is None else LinearSegmentedColormap.from_list("around", trace["colorscale"])
    norm = None if middle is None else CenteredNorm(middle)
    values = [_gaps(row) for row in trace["z"]]
    image = axes.imshow(values, origin="lower", aspect="auto", cmap=colors, norm=norm)
    beside = [fill(str(label), SIDE) for label in trace["y"]]
    axes.set_xticks(range(len(trace["x"])), trace["x"])
    if sum(map(len, trace["x"])) > LETTERS * width:
        axes.tick_params("x", rotation=90)
    axes.set_yticks(range(len(beside)), beside)
    axes.figure.colorbar(image, ax=axes, label=plain(trace["colorbar"]["title"]["text"]))
    for row, entries in enumerate(values):
        for column, value in enumerate(entries):
            if math.isfinite(value):
                axes.text(column, row, _digits(value), ha="center", va="center", fontsize=6, color=_ink(image, value))


def _digits(value: float) -> str:
    """Three of them, also where they are zeros."""
    return f"{value:#.3g}".rstrip(".")


def _ink(image: Any, value: float) -> str:
    """Black or white, whichever is read better on the color of a value."""
    red, green, blue, _ = image.cmap(image.norm(value))
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"


def _set_axis(axes: Axes, axis: Literal["x", "y"], layout: Json) -> None:
    """Title, scale and range of an axis, as the page has them."""
    axes.set(**{f"{axis}label": plain(layout.get("title", {}).get("text", ""))})
    log = layout.get("type") == "log"
    if log:
        axes.set(**{f"{axis}scale": "log"})
        scale = axes.xaxis if axis == "x" else axes.yaxis
        scale.set_major_formatter(_plain_numbers())
        scale.set_minor_formatter(_plain_numbers())
    if "range" in layout:
        low, high = layout["range"]
        axes.set(**{f"{axis}lim": (10**low, 10**high) if log else (low, high)})


def _plain_numbers() -> LogFormatter:
    """Labels those ticks of a logarithmic axis that matplotlib would, 0.5 as such and not as 5e-01."""
    from matplotlib.ticker import LogFormatter

    class Plain(LogFormatter):
        def __call__(self, x: float, pos: int | None = None) -> str:
            return f"{x:g}" if super().__call__(x, pos) else ""

    return Plain()


def _legend(canvas: Canvas, panels: Iterable[Axes]) -> None:
    """One for all panels, below them: as many entries in a line as there is room for; the canvas grows by the lines."""
    entries: dict[str, Any] = {}
    for axes in panels:
        entries |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    if len(entries) < 2:
        return
    widest = 0.5 + 0.055 * max(map(len, entries))  # the sample, and letters of STYLE's size, in inches
    columns = max(1, int(canvas.get_figwidth() / widest))
    canvas.set_figheight(canvas.get_figheight() + LINE * math.ceil(len(entries) / columns))
    handles, labels = list(entries.values()), list(entries)
    canvas.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)


def plain(text: str) -> str:
    """Text of the page without its markup."""
    return html.unescape(re.sub(r"<[^>]+>", "", text))


def _gaps(values: Sequence[float | None]) -> list[float]:
    return [math.nan if value is None else value for value in values]


def _color(rgba: str) -> tuple[tuple[float, float, float], float]:
    red, green, blue, share = (float(part) for part in rgba[5:-1].split(","))
    return (red / 255, green / 255, blue / 255), share
