"""Many jobs on a few processes, of this machine or of a Ray cluster. Standard library and Ray only: what a job is, others say."""

from flatwise.processes.engines import EngineName, cores
from flatwise.processes.memory import keep_memory
from flatwise.processes.pool import Job, Pool
from flatwise.processes.serving import Progress, serve

__all__ = ["EngineName", "Job", "Pool", "Progress", "cores", "keep_memory", "serve"]
