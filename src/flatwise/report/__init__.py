"""Reports: run folders in, one self-contained HTML page and tables out. Never imports torch."""

from flatwise.report.claim_page import build_claims, claim_files, last_verdicts, tell, verdict_lines
from flatwise.report.failures import by_reason
from flatwise.report.measured_table import print_measurements
from flatwise.report.measurement_page import build_measurements
from flatwise.report.page import build, build_runs
from flatwise.report.paper_figures import check_formats
from flatwise.report.results import write_results
from flatwise.report.tables import Table, print_table, table
from flatwise.statistics import Interval, mean_interval, paired_difference

__all__ = [
    "Interval",
    "Table",
    "build",
    "build_claims",
    "build_measurements",
    "build_runs",
    "by_reason",
    "check_formats",
    "claim_files",
    "last_verdicts",
    "mean_interval",
    "paired_difference",
    "print_measurements",
    "print_table",
    "table",
    "tell",
    "verdict_lines",
    "write_results",
]
