"""What two processes run for the rows of `processes.py`: every layout with every method, fifty steps."""

from distributed.layouts import data, ddp, fsdp, shares, trained
from distributed.on_ddp import with_sync_norm
from distributed.on_fsdp import kept_after_backward
from distributed.on_tensor_parallel import by_columns_and_rows, mesh_of_two
from methods.cases import EVERY

METHODS = {case.name: case.method for case in EVERY}
LAYOUTS = {
    "DDP": ddp,
    "DDP, bucket views": lambda: ddp(gradient_as_bucket_view=True),
    "DDP, static graph": lambda: ddp(static_graph=True),
    "DDP, BatchNorm over ranks": lambda: ddp(with_sync_norm),
    "FSDP2": fsdp,
    "FSDP2, kept after backward": kept_after_backward,
}
PARALLEL = "tensor parallel"


def in_shares(make, method):
    return lambda rank: trained(make(), method, shares(rank))


def in_parallel(method):
    return lambda rank: trained(by_columns_and_rows(mesh_of_two()), method, data())


SCENARIOS = {f"{layout} {name}": in_shares(make, m) for layout, make in LAYOUTS.items() for name, m in METHODS.items()}
SCENARIOS |= {f"{PARALLEL} {name}": in_parallel(m) for name, m in METHODS.items()}
