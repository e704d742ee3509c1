"""The line about the progress: in a real terminal, in a real notebook, and now and then in a file."""

import os
import pty
import re
import subprocess
import sys

import nbformat
import pytest
from nbclient import NotebookClient

from flatwise.training import TrainConfig, train
from flatwise.training.progress import LogLine, duration, line

LINE = """
import time
from flatwise.training.progress import duration, line
with line() as show:
    show(1, 4, "training")
    time.sleep(0.5)
    show(2, 4, "training")
    time.sleep(0.5)
"""
THREADS = """
import threading
from flatwise.experiments.progress import overall_progress
with overall_progress(3) as show:
    thread = threading.Thread(target=lambda: [show(n / 3, n) for n in (1, 2, 3)])
    thread.start()
    thread.join()
"""
NOTHING = "with line() as show: pass"
TRAINING = """
from flatwise.training import TrainConfig, train
run = train(TrainConfig(subset=100, widths=(8,), steps=20), "run", progress=True)
"""
AGAIN = 'train(TrainConfig(subset=100, widths=(8,), steps=20), "run", progress=True)\nNone'


def outputs(cells, folder):
    """The outputs of each cell of an executed notebook."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code) for code in cells])
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(folder)}}).execute()
    return [cell.outputs for cell in notebook.cells]


def shown(found):
    """The text and the HTML of a cell's only output."""
    (output,) = found
    assert output.output_type == "display_data"
    assert output.data.keys() == {"text/plain", "text/html"}  # no widgets, which a saved notebook would not show
    return output.data["text/plain"], output.data["text/html"]


def test_a_notebook_shows_one_line_that_is_updated_with_the_time_left(tmp_path):
    halfway, threads, nothing = map(shown, outputs([LINE, THREADS, NOTHING], tmp_path))
    assert re.fullmatch(r"training: 50%, \d:\d\d:\d\d gone, \d:\d\d:\d\d left", halfway[0])
    assert '<progress max="4" value="2"></progress>' in halfway[1]
    assert re.fullmatch(r"3 of 3 runs: done in \d:\d\d:\d\d", threads[0])
    assert nothing[0] == "nothing to do"


@pytest.mark.slow
def test_a_training_in_a_notebook_shows_its_progress(tmp_path):
    training, again = map(shown, outputs([TRAINING, AGAIN], tmp_path))
    assert re.fullmatch(r"training: done in \d:\d\d:\d\d", training[0])
    assert '<progress max="20" value="20"></progress>' in training[1]
    assert again[0] == "nothing to do"


def test_a_terminal_shows_the_line_and_clears_it():
    ours, theirs = pty.openpty()
    environment = os.environ | {"COLUMNS": "100", "TERM": "xterm-256color"}
    with subprocess.Popen([sys.executable, "-c", LINE], stderr=theirs, env=environment) as process:
        os.close(theirs)
        drawn = b""
        while piece := _read(ours):
            drawn += piece
    os.close(ours)
    assert process.returncode == 0
    text = re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b"", drawn).decode()
    assert re.search(r"training .* 50% 0:00:0\d gone, (-:--:--|\d:\d\d:\d\d) left", text)
    assert drawn.rstrip().endswith(b"\x1b[2K")  # the line is erased at the end


def _read(terminal):
    try:
        return os.read(terminal, 4096)
    except OSError:  # Linux says so when the other side is gone
        return b""


def test_short_work_is_silent_where_nobody_looks(tmp_path, capfd):
    train(TrainConfig(subset=100, widths=(8,), steps=3), tmp_path / "run", progress=True)
    assert capfd.readouterr() == ("", "")


def test_a_file_gets_a_line_now_and_then(monkeypatch, capsys):
    monkeypatch.setattr(LogLine, "interval", 0.0)
    with line() as show:
        show(1, 4, "training")
        show(2, 4, "training")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("training: 25%")
    assert re.fullmatch(r"training: 50%, \d:\d\d:\d\d gone, \d:\d\d:\d\d left", lines[1])


def test_a_log_that_cannot_be_written_ends_no_work(monkeypatch):
    monkeypatch.setattr(LogLine, "interval", 0.0)
    with open(os.devnull) as deaf:  # open for reading alone
        monkeypatch.setattr(sys, "stderr", deaf)
        with line() as show:
            show(1, 4, "training")
        monkeypatch.undo()


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.047, "0.047 s"),
        (3.04, "3 s"),
        (104.0, "100 s"),
        (125.0, "2.1 min"),
        (3600 * 2 - 1, "120 min"),
        (3600 * 26.4, "26 h"),
    ],
)
def test_a_duration_has_two_digits_and_no_exponent(seconds, said):
    assert duration(seconds) == f"about {said}"
