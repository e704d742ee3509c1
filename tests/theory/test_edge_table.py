from pathlib import Path

from flatwise import methods
from flatwise.theory.edge_table import WORDS, edge_table

PAGE = Path(__file__).parents[2] / "docs" / "edges.md"


def test_the_page_has_the_table_of_all_methods() -> None:
    assert set(WORDS) == set(methods.names())
    assert edge_table() in PAGE.read_text(encoding="utf-8")
