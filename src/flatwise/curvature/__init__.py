"""Top eigenpairs of the Hessian of a real training loss, while training or from a checkpoint."""

from flatwise.curvature.density import SpectralDensity as SpectralDensity
from flatwise.curvature.density import spectral_density as spectral_density
from flatwise.curvature.estimate import Estimate as Estimate
from flatwise.curvature.hessian import hessian as hessian
from flatwise.curvature.lanczos import EigenPairs as EigenPairs
from flatwise.curvature.lanczos import top_eigenpairs as top_eigenpairs
from flatwise.curvature.norms import diagonal as diagonal
from flatwise.curvature.norms import frobenius_norm as frobenius_norm
from flatwise.curvature.operator import Operator as Operator
from flatwise.curvature.operator import from_matrix as from_matrix
from flatwise.curvature.recompute import chunked_cross_entropy as chunked_cross_entropy
from flatwise.curvature.recompute import recomputed as recomputed
from flatwise.curvature.record import Record as Record
from flatwise.curvature.trace import trace as trace
from flatwise.curvature.tracker import EigenTracker as EigenTracker
