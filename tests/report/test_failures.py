from flatwise.report import by_reason


def test_what_fails_for_the_same_reason_is_told_once():
    found = by_reason({"a": "no data", "b": "no memory", "c": "no data", "d": "no data"})
    assert found == {"a and 2 more": "no data", "b": "no memory"}
    assert by_reason({}) == {}
