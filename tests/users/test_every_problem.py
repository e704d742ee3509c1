"""Every one of the 25 problems has tests and an entry in the documentation, found by its number."""

import re
from pathlib import Path

import pytest

HERE = Path(__file__).parent
DOCS = HERE.parents[1] / "docs"
NUMBERS = range(1, 26)


def sections():
    """The text of each entry of the page, by number."""
    parts = re.split(r"^### (\d+)\. ", (DOCS / "problems.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(map(int, parts[1::2]), parts[2::2]))


@pytest.mark.parametrize("number", NUMBERS)
def test_a_problem_has_tests_and_an_entry_that_links_to_all_of_them(number):
    files = sorted(HERE.glob(f"test_{number:02}_*.py"))
    assert files
    for file in files:
        text = file.read_text(encoding="utf-8")
        assert text.startswith(f'"""Problem {number}')
        assert re.search(r"^def test_", text, re.MULTILINE)
        assert f"(../tests/users/{file.name})" in sections()[number]


def test_there_are_no_others():
    assert sorted(sections()) == list(NUMBERS)
    assert {int(file.name[5:7]) for file in HERE.glob("test_[0-9]*.py")} == set(NUMBERS)


@pytest.mark.parametrize("number", NUMBERS)
def test_the_table_of_peers_has_a_row_for_it(number):
    """The table is made by `python -m benchmarks.peers`, which runs them."""
    assert re.search(rf"^\| {number} \|", (DOCS / "peers.md").read_text(encoding="utf-8"), re.MULTILINE)
