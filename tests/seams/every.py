"""All seams."""

from seams.frameworks import FRAMEWORKS
from seams.processes import PROCESSES
from seams.single import SINGLE

SEAMS = [*SINGLE, *PROCESSES, *FRAMEWORKS]
