"""The page about networks whose curvature was measured: one self-contained HTML file that opens offline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flatwise.report.figures import Figure
from flatwise.report.landscape_figures import landscape_figures
from flatwise.report.measured import Network, picture, read_networks
from flatwise.report.measured_table import measured_rows, notes, sentences, spent
from flatwise.report.page import plotly, script_json, template
from flatwise.report.provenance import ABSENT, flat, shown
from flatwise.report.quantities import compact, plain
from flatwise.report.spectrum_figures import density_figures, spectrum_figures
from flatwise.runs import replacing

Facts = list[tuple[str, str]]


@dataclass(frozen=True)
class Section:
    """Figures under a heading."""

    heading: str
    figures: Sequence[Figure]


def build_measurements(files: Sequence[Path], out: Path, command: str) -> Path:
    """Write the page about measured networks to the file `out`, and return its path.

    Args:
        files: what `flatwise measure` left, one file for each network.
        out: the page.
        command: the command line that made them.

    Raises:
        RunError: there is no file, or one is damaged.
    """
    text = render(read_networks(files), command, files)
    with replacing(out) as draft:
        draft.write_text(text, encoding="utf-8")
    return out


def render(networks: Sequence[Network], command: str, files: Sequence[Path]) -> str:
    """The page as text."""
    columns, rows = measured_rows(networks)
    sections = [section for section in _sections(networks) if section.figures]
    figures = [figure for section in sections for figure in section.figures]
    return template("measurement.html.j2").render(
        title=_title(networks),
        sentences=sentences(networks),
        notes=notes(networks),
        headings=[column.heading for column in columns],
        rows=rows,
        sections=sections,
        command=command,
        folders=list(dict.fromkeys(str(file.parent) for file in files)),
        circumstances=_circumstances(networks),
        costs=_costs(networks),
        environment=_environment(networks),
        meanings=_meanings(networks),
        figures=script_json({figure.name: figure.plot for figure in figures}),
        plotly=plotly() if figures else "",
    )


def _title(networks: Sequence[Network]) -> str:
    arms = list(dict.fromkeys(network.arm for network in networks))
    names = " and ".join(filter(None, [", ".join(arms[:-1]), arms[-1]])) if len(arms) < 6 else f"{len(arms)} networks"
    data = shown(n.found["data"].get("data") for n in networks)
    return f"Curvature of {names}" + (f", {data[0]}" if len(data) == 1 and data[0] != ABSENT else "")


# --- figures ----------------------------------------------------------------------------------------------------------


def _sections(networks: Sequence[Network]) -> list[Section]:
    return [
        Section("The spectrum", density_figures(_entries(networks, "density"))),
        Section("The ends of the spectrum", spectrum_figures(_spectra(networks))),
        Section("The loss around the weights", landscape_figures(_entries(networks, "landscape"))),
    ]


def _entries(networks: Sequence[Network], quantity: str) -> list[dict[str, Any]]:
    """What the figures are drawn from: the quantity, with a label, a style, and the eigenvalues known besides."""
    return [
        network.part(quantity) | {"label": label, "style": style, "eigenvalues": _values(network)}
        for label, style, network in picture(networks, quantity)
    ]


def _values(network: Network) -> list[float]:
    pairs = network.part("eigenvalues")
    return [value for end in ("top", "lowest") for value in (pairs.get(end) or {}).get("values", [])]


def _spectra(networks: Sequence[Network]) -> list[dict[str, Any]]:
    return [
        {"label": n.run, "style": n.style, "step": n.step} | n.part("eigenvalues")["top"]
        for n in networks
        if n.part("eigenvalues")
    ]


# --- how it was measured ----------------------------------------------------------------------------------------------


def _circumstances(networks: Sequence[Network]) -> Facts:
    """Data, precision, engine and settings; where networks differ, all values."""
    records = [flat(n.found.get("data") or {}) | (n.found.get("record") or {}) for n in networks]
    left_out = {"step", "weights", "notes", "torch"}
    plans = [
        {k: v for k, v in n.found["plan"].items() if k not in ("split", "mode", "dtype", "engine")} for n in networks
    ]
    return [*_facts(records, left_out), *_facts(plans, {"seed", "samples"})]


def _facts(records: Sequence[dict[str, Any]], left_out: set[str]) -> Facts:
    keys = dict.fromkeys(key for record in records for key in record if key not in left_out)
    values = ((key, shown(record[key] for record in records if key in record)) for key in keys)
    return [(key.replace("_", " "), " | ".join(text)) for key, text in values if text != [ABSENT]]


def _costs(networks: Sequence[Network]) -> Facts:
    products, seconds, gradients = (
        sum(spent(n, what) for n in networks) for what in ("products", "seconds", "gradients")
    )
    times = f"{compact(seconds)} s, the time of {compact(gradients)} gradients"
    return [("networks", plain(len(networks), 0)), ("products", plain(products, 0)), ("time", times)]


def _environment(networks: Sequence[Network]) -> Facts:
    records = [flat(n.found.get("environment") or {}) for n in networks]
    return _facts(records, {"command", "started"})


def _meanings(networks: Sequence[Network]) -> Facts:
    texts = {
        "eigenvalues": (
            "Eigenvalues",
            "Of the Hessian of the loss on these samples, without weight decay. An eigenvalue of the Hessian lies within the "
            "residual of each number.",
        ),
        "trace": ("Trace", "XTrace (arXiv 2301.07825); ± is the standard error over its random vectors."),
        "density": (
            "Spectral density",
            "Stochastic Lanczos quadrature (arXiv 1901.10159), each eigenvalue blurred by a Gaussian of a hundredth of the "
            "spectrum's width; bands and ± are standard errors over the random vectors.",
        ),
        "frobenius": ("Frobenius norm", "The root of the sum of all squared eigenvalues; ± is the standard error."),
        "landscape": (
            "Slices",
            "The loss on the same samples, along unit eigenvectors, so that lengths are distances between weights.",
        ),
    }
    found = [texts[name] for name in texts if any(n.part(name) for n in networks)]
    negative = (
        "Negative part",
        "The magnitudes of all negative eigenvalues in sum, as a share of those of all. How many are negative is not shown: most "
        "are near zero, and a quadrature of few steps cannot tell on which side.",
    )
    return [*found, *([negative] if any(n.negative for n in networks) else [])]
