"""A process whose jobs end as they are told: to see what a pool makes of it without waiting for torch."""

import os
import signal
from pathlib import Path

from flatwise.processes import serve


def make(order, progress):
    """Write how often it was tried and leave a result; or fail, exit, or die so many times before."""
    place, tries = Path(order["place"]), Path(order["place"] + ".tries")
    number = int(tries.read_text()) + 1 if tries.exists() else 1
    tries.write_text(str(number))
    progress(1, 2)
    if order["way"] == "fails":
        raise KeyError("so it was told")
    if order["way"] == "exits":
        os._exit(3)
    if order["way"] == "dies" and number <= order["times"]:
        os.kill(os.getpid(), signal.SIGKILL)
    place.write_text(str(len(list(place.parent.glob("*.done")))))
    return {"status": "finished"}


if __name__ == "__main__":
    serve(make)
