"""Bad uses and the sentences they get: what is raised or warned of is also what the recipe's table says."""

import re
import warnings
from pathlib import Path

import pytest

PAGES = Path(__file__).parents[2] / "docs" / "recipes"


def told(page):
    """The second column of the page's table of bad uses, row by row."""
    lines = (PAGES / page).read_text(encoding="utf-8").splitlines()
    start = lines.index("| what people write | what they are told |")
    rows = lines[start + 2 :]
    table = rows[: next((i for i, row in enumerate(rows) if not row.startswith("|")), len(rows))]
    return [re.split(r" \| ", row.strip("| "))[-1] for row in table]


def assert_told(page, sentence):
    assert any(sentence in cell for cell in told(page)), f"the table of {page} does not say: {sentence}"


def assert_refused(page, use, error, sentence):
    with pytest.raises(error) as caught:
        use()
    assert sentence in str(caught.value)
    assert_told(page, sentence)


def assert_warned(page, use, sentence):
    """Once, however many steps there are."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        use()
    assert [w.category for w in caught if sentence in str(w.message)] == [UserWarning]
    assert_told(page, sentence)


def assert_every_row_is_tested(page, sentences):
    cells = told(page)
    assert len(cells) >= 10
    assert [cell for cell in cells if not any(sentence in cell for sentence in sentences)] == []
