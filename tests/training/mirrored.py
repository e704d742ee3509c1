"""What TensorBoard and Weights & Biases hold of a run, read back from their own files."""

import json
import struct
import time

BLOCK = 2**15
"""The log that W&B writes offline is cut into blocks like those of LevelDB; none of its chunks goes over their bounds."""


def scalars(folder):
    """{name: [(step, value)]} as TensorBoard shows them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    shown = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {name: [(e.step, e.value) for e in shown.Scalars(name)] for name in shown.Tags()["scalars"]}


def texts(folder):
    """{name: text} as TensorBoard shows them, and what it knows of hyper-parameters."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    shown = EventAccumulator(str(folder)).Reload()
    found = {name: shown.Tensors(name)[-1].tensor_proto.string_val[0].decode() for name in shown.Tags()["tensors"]}
    return found, shown.summary_metadata


def offline_folders(folder):
    """The offline folders of W&B, oldest first."""
    return sorted(path for path in folder.iterdir() if path.name.startswith("offline-run-"))


def offline_run(folder, seconds=30):
    """What `wandb sync` would send of an offline folder: its id, settings, rows, final numbers and exit code."""
    deadline = time.monotonic() + seconds
    while "exit" not in (run := _read(folder)) and time.monotonic() < deadline:
        time.sleep(0.02)  # a process of W&B writes it
    return run


def _read(folder):
    from wandb.proto import wandb_internal_pb2

    run = {"config": {}, "rows": [], "summary": {}}
    for chunk in _chunks(b"".join(path.read_bytes() for path in folder.glob("*.wandb"))):
        record = wandb_internal_pb2.Record.FromString(chunk)
        match record.WhichOneof("record_type"):
            case "run":
                run |= {"id": record.run.run_id, "project": record.run.project}
                run["config"] |= _values(record.run.config.update)
            case "history":
                run["rows"].append(_values(record.history.item))
            case "summary":
                run["summary"] |= _values(record.summary.update)
            case "exit":
                run["exit"] = record.exit.exit_code
    return run


def _values(items):
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def _chunks(data):
    """The records of a log: after a header, chunks of (checksum, size, kind); a record may be in several."""
    at, record = 7, b""
    while at + 7 <= len(data):
        if BLOCK - at % BLOCK < 7:
            at += BLOCK - at % BLOCK
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + 7])
        if at + 7 + size > len(data):
            return  # still being written
        record += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last of several
            yield record
            record = b""
