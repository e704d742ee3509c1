"""`flatwise report`: a page about runs that are there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro


@dataclass(frozen=True)
class Report:
    """Write one HTML page about a comparison folder, about run folders, or about the folder of all claims."""

    folders: tyro.conf.Positional[tuple[Path, ...]]
    """One comparison folder, the folder of all claims, or one or more run folders."""

    out: Path = Path("report.html")
    """The page, when there are several folders; that of one folder is report.html in it."""

    figures: tuple[Literal["pdf", "png"], ...] = ()
    """Draw the figures for a paper as well, in these formats: into figures/ beside the page, and beside a claim's page."""

    def run(self, words: Sequence[str]) -> int:
        """Write the page, and say where."""
        del words
        from flatwise import report

        report.check_formats(self.figures)
        several = len(self.folders) != 1
        if not several and self.out != Path("report.html"):
            raise ValueError(f"out has no effect with one folder, whose page is {self.folders[0] / 'report.html'}")
        if several:
            page = report.build_runs(self.folders, self.out, self.figures)
        else:
            build = report.build_claims if report.claim_files(self.folders[0]) else report.build
            page = build(self.folders[0], self.figures)
        print(f"report: {page}")
        return 0
