"""An engine of this machine that begins killed jobs again, as that of a cluster does."""

from flatwise.processes.local import LocalEngine


class Patient(LocalEngine):
    retries = 2
