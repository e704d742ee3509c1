"""Everything that is asked of two processes."""

from distributed import on_bad_use, on_checkpoints, on_ddp, on_fsdp, on_tensor_parallel, on_uneven_data

SCENARIOS = {
    **on_ddp.SCENARIOS,
    **on_fsdp.SCENARIOS,
    **on_uneven_data.SCENARIOS,
    **on_tensor_parallel.TWO,
    **on_checkpoints.TWO,
    **on_bad_use.SCENARIOS,
}
