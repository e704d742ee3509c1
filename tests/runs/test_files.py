import json
import math
import subprocess
import sys
import time
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flatwise.runs import RunWarning, decode, encode, read_json, replacing, write_json
from flatwise.runs.files import append_line, read_lines, write_lines

numbers = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False)
texts = st.text().filter(lambda t: t not in ("nan", "inf", "-inf"))
values = st.recursive(numbers | texts, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))


@given(values)
def test_what_is_written_is_read_back(value):
    assert decode(encode(value)) == value


def test_nan_and_infinity_survive_as_strict_json():
    text = encode({"loss": math.nan, "edge": [math.inf, -math.inf]})
    assert json.loads(text, parse_constant=pytest.fail) == {"loss": "nan", "edge": ["inf", "-inf"]}
    back = decode(text)
    assert math.isnan(back["loss"])
    assert back["edge"] == [math.inf, -math.inf]


def test_what_json_does_not_know_is_refused():
    with pytest.raises(TypeError, match="not JSON serializable"):
        encode({"weights": object()})


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new folder" / "done.json"
    write_json(path, {"a": 1})

    def fail_half_way():
        with replacing(path) as temporary:
            temporary.write_text('{"a": ')
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail_half_way()
    assert read_json(path) == {"a": 1}
    assert [p.name for p in path.parent.iterdir()] == ["done.json"]


FULL = """
import resource, signal, sys
from pathlib import Path
from flatwise.runs import write_json
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
try:
    write_json(Path(sys.argv[1]), {"text": "x" * 1000})
except OSError as error:
    print(error.filename)
"""


def test_an_error_of_the_disk_names_the_file(tmp_path):
    path = tmp_path / "done.json"
    done = subprocess.run([sys.executable, "-c", FULL, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(path)
    assert not list(tmp_path.iterdir())


def test_lines_come_back_in_order(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert read_lines(path) == []
    for step in range(3):
        append_line(path, {"step": step})
    assert read_lines(path) == [{"step": 0}, {"step": 1}, {"step": 2}]
    write_lines(path, [{"step": 7}])
    assert read_lines(path) == [{"step": 7}]


@pytest.mark.parametrize("damage", [b'{"step": 1, "lo', b"\x00\x00\xff", b"[1]", b"12"])
def test_a_damaged_line_is_skipped_and_does_not_swallow_the_next(tmp_path, damage):
    path = tmp_path / "metrics.jsonl"
    append_line(path, {"step": 0})
    with path.open("ab") as file:
        file.write(damage)
    append_line(path, {"step": 2})
    with pytest.warns(RunWarning, match=r"line 2 of .*metrics.jsonl"):
        assert read_lines(path) == [{"step": 0}, {"step": 2}]


def test_a_line_that_lost_only_its_end_of_line_is_kept(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}')
    append_line(path, {"step": 2})
    assert read_lines(path) == [{"step": 1}, {"step": 2}]


@pytest.mark.parametrize("cut", range(0, 60, 7))
def test_a_file_cut_anywhere_loses_one_record_at_most(tmp_path, cut):
    path = tmp_path / "metrics.jsonl"
    write_lines(path, [{"step": step, "loss": 0.5} for step in range(3)])
    path.write_bytes(path.read_bytes()[:cut])
    whole = path.read_bytes().count(b"\n")
    append_line(path, {"step": 9})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RunWarning)
        steps = [record["step"] for record in read_lines(path)]
    assert steps[-1] == 9
    assert steps[:whole] == list(range(whole))


WRITER = """
import sys
from pathlib import Path
from flatwise.runs.files import append_line
for step in range(10**9):
    append_line(Path(sys.argv[1]), {"step": step, "text": "x" * 2000})
"""


def test_after_kill_9_every_record_is_there(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with subprocess.Popen([sys.executable, "-c", WRITER, str(path)]) as writer:
        while not path.exists() or path.stat().st_size < 50_000:
            assert writer.poll() is None
            time.sleep(0.005)
        writer.kill()
    records = read_lines(path)
    assert [r["step"] for r in records] == list(range(len(records)))
    assert len(records) >= 20
