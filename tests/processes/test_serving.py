import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

SERVER = """
from flatwise.processes import serve

def work(order, progress):
    print("this is no message")
    progress(1, 2)
    return {"twice": 2 * order["number"]}

serve(work)
"""


def test_orders_are_served_one_after_the_other_also_after_one_that_fails():
    orders = "".join(json.dumps(order) + "\n" for order in ({"number": 2}, {"nubmer": 3}, {"number": "ab"}))
    done = subprocess.run([sys.executable, "-c", SERVER], input=orders, capture_output=True, text=True, check=True)
    messages = [json.loads(line) for line in done.stdout.splitlines()]
    assert messages[:2] == [{"step": 1, "total": 2}, {"twice": 4}]
    assert {"failed": "KeyError: 'number'"} in messages
    assert messages[-1] == {"twice": "abab"}
    assert done.stderr.count("this is no message") == 3
    assert "Traceback" in done.stderr


SLEEPER = """
import time
from flatwise.processes import serve

def work(order, progress):
    progress(0, 1)
    time.sleep(60)

serve(work)
"""
PARENT = f"""
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", {SLEEPER!r}], stdin=subprocess.PIPE, start_new_session=True)
child.stdin.write(b"{{}}\\n")
child.stdin.flush()
print(child.pid, flush=True)
time.sleep(60)
"""


def test_a_process_ends_with_the_one_that_started_it_also_in_the_middle_of_a_job():
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        child = int(parent.stdout.readline())
        assert "step" in parent.stdout.readline()  # it is at work
        parent.kill()
    deadline = time.monotonic() + 20
    while is_running(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(child)


def is_running(number):
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_an_interruption_is_heard_also_where_signals_were_blocked_or_ignored():
    code = "import os, signal, sys\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    code += "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})\nos.execv(sys.executable, sys.argv[1:])"
    command = [sys.executable, "-c", code, sys.executable, "-c", SLEEPER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        process.stdin.write("{}\n")
        process.stdin.flush()
        assert "step" in process.stdout.readline()
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(20) == 130


def test_the_machinery_loads_nothing_heavy():
    code = "import sys, flatwise.processes; assert not {'torch', 'numpy', 'ray'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)
