"""`flatwise report`: a page about runs that are there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro


@dataclass(frozen=True)
class Report:
    """Write one HTML page about a comparison folder or about run folders."""

    folders: tyro.conf.Positional[tuple[Path, ...]]
    """One comparison folder, or one or more run folders."""

    out: Path = Path("report.html")
    """The page, when there are several folders; that of one folder is report.html in it."""

    def run(self, words: Sequence[str]) -> int:
        """Write the page, and say where."""
        del words
        from flatwise import report

        several = len(self.folders) != 1
        if not several and self.out != Path("report.html"):
            raise ValueError(f"out has no effect with one folder, whose page is {self.folders[0] / 'report.html'}")
        page = report.build_runs(self.folders, self.out) if several else report.build(self.folders[0])
        print(f"report: {page}")
        return 0
