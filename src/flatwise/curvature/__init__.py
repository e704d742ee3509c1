"""Top eigenpairs of the Hessian of a real training loss, while training or from a checkpoint."""

from flatwise.curvature.lanczos import EigenPairs as EigenPairs
from flatwise.curvature.lanczos import top_eigenpairs as top_eigenpairs
from flatwise.curvature.operator import Operator as Operator
from flatwise.curvature.operator import from_matrix as from_matrix
from flatwise.curvature.operator import hessian as hessian
from flatwise.curvature.tracker import EigenTracker as EigenTracker
