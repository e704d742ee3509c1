import json
import subprocess
import sys

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


def test_the_machinery_loads_nothing_heavy():
    code = "import sys, flatwise.processes; assert not {'torch', 'numpy'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)
