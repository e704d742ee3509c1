"""The table of methods in docs/methods.md: complete, and with the costs that the classes claim now."""

import importlib
import math

import pytest

import flatwise as fw

pytest.importorskip("pytorch_optimizer")

table = importlib.import_module("benchmarks.method_table")
NAMES = fw.methods.names()
every_name = pytest.mark.parametrize("name", NAMES)


def rows(head):
    """Those of one of the two tables in the page, by the first cell."""
    _, _, rest = table.PAGE.read_text(encoding="utf-8").partition(table.BEGIN)
    cells = [table.cells_of(line) for line in rest.partition(table.END)[0].splitlines()]
    first = cells.index(head) + 2
    last = next(i for i in range(first, len(cells)) if len(cells[i]) != len(head))
    return {row[0]: dict(zip(head, row, strict=True)) for row in cells[first:last]}


@every_name
def test_every_method_has_a_row(name):
    assert name in rows(table.COSTS), "run python benchmarks/method_table.py"


def test_the_rows_stand_in_the_order_of_the_list():
    assert list(rows(table.COSTS)) == NAMES


@every_name
def test_a_row_says_what_the_class_says(name):
    row, method = rows(table.COSTS)[name], fw.methods.by_name(name)
    assert row["`fw.methods.`"] == f"`{table.label(method)}`"
    assert row["arXiv"] == table.paper(method)
    assert row["evaluations a step, claimed"] == table.claimed(name)


@every_name
def test_what_is_claimed_is_what_is_counted(name):
    claimed, counted = table.claimed(name), table.counted(name)
    if claimed == "by the data":
        assert 1 < float(counted) < 2
    else:
        first_look = 1 / table.STEPS  # whether the eigenvector's batch needs a gradient in evaluation mode
        assert 0 <= float(counted) - float(claimed) <= first_look + 1e-9


def test_all_evidence_is_in_the_page_and_its_differences_are_numbers():
    evidence = importlib.import_module("methods.evidence").every_evidence()
    found = rows(table.EVIDENCE)
    assert found.keys() == evidence.keys(), "run python benchmarks/method_table.py"
    for row in found.values():
        assert all(0 <= float(row[heading]) < math.inf for heading in table.EVIDENCE[1:3])


@every_name
def test_every_class_is_exported(name):
    assert type(fw.methods.by_name(name)).__name__ in fw.methods.__all__


def test_the_largest_difference_is_that_of_strict_seams(tmp_path, monkeypatch):
    page = tmp_path / "seams.md"
    page.write_text(
        "# Seams\n\n| method | one | two |\n| --- | --- | --- |\n| sam | 2e-16 | 3e-02 |\n| *bound* | 1e-09 | 2e-01 |\n\n"
        "| method | three | four |\n| --- | --- | --- |\n| sam | 5e-12 | – |\n| *bound* | 1e-06 | 1e-06 |\n"
    )
    monkeypatch.setattr(table, "SEAMS", page)
    assert table.seams("sam") == "5.0e-12"
    assert table.seams("another") == ""
