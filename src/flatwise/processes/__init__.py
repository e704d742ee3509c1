"""Many jobs on a few local processes. Standard library only: what a job is, others say."""

from flatwise.processes.pool import Job, Pool, cores
from flatwise.processes.serving import Progress, serve

__all__ = ["Job", "Pool", "Progress", "cores", "serve"]
