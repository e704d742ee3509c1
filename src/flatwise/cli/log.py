"""`--log tensorboard`, `--log wandb`, or both: an option of `train` and of `compare`."""

from __future__ import annotations

from typing import Annotated, Literal

import tyro

Log = Annotated[tuple[tuple[Literal["tensorboard", "wandb"], ...], ...], tyro.conf.UseAppendAction]
"""Names after one `--log`, or after several."""


def mirrors(log: Log) -> list[str]:
    """The names in a row."""
    return [name for names in log for name in names]
