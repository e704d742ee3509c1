"""What the oldest release of torch that is supported does otherwise than the newest; those between them have not been tried."""

import pytest
import torch

OLD = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 14)

gathers_what_is_sharded_twice = pytest.mark.skipif(
    OLD, reason="torch 2.9 gathers what FSDP2 and tensor parallelism shard along one dimension in a wrong order"
)
