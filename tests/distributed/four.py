"""Everything that is asked of four processes."""

from distributed import on_checkpoints, on_groups, on_tensor_parallel

SCENARIOS = {**on_groups.FOUR, **on_tensor_parallel.FOUR, **on_checkpoints.FOUR}
