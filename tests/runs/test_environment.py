import os
import platform
import subprocess
from datetime import datetime

import numpy
import torch

import flatwise
from flatwise.runs import environment


def test_versions_machine_and_command_are_recorded():
    found = environment("flatwise demo")
    assert found["command"] == "flatwise demo"
    assert found["python"] == platform.python_version()
    assert found["versions"]["flatwise"] == flatwise.__version__
    assert found["versions"]["numpy"] == numpy.__version__
    assert torch.__version__.startswith(found["versions"]["torch"])
    assert 1 <= found["cores"] <= os.cpu_count()
    assert found["cpu"]
    assert datetime.fromisoformat(found["started"]).utcoffset().total_seconds() == 0


def test_the_commit_is_that_of_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.chdir(tmp_path)
    assert environment("x")["commit"] is None

    def git(*arguments):
        who = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
        return subprocess.run(["git", *who, *arguments], check=True, capture_output=True, text=True).stdout.strip()

    git("init")
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "-m", "one")
    assert environment("x")["commit"] == git("rev-parse", "HEAD")
    (tmp_path / "file").write_text("two")
    assert environment("x")["commit"] == git("rev-parse", "HEAD") + "-dirty"
