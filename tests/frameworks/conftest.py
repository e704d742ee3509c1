"""What the frameworks leave in the process is put back, and what they do slowly is made quick."""

import gc
import sys

import pytest


@pytest.fixture(autouse=True)
def _one_accelerator():
    """Accelerators of one process share their settings; each test starts without any."""
    yield
    state = sys.modules.get("accelerate.state")
    if state is not None:
        state.AcceleratorState._reset_state(reset_partial_state=True)
        state.GradientState._reset_state()


@pytest.fixture(autouse=True, scope="module")
def _quick():
    """Trainers collect garbage again and again; what is imported by now need not be looked through each time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
