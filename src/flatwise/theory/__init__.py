"""Edges of stability as numbers, and stochastic differential equations of SAM beside the discrete method."""

from flatwise.theory.brownian import Brownian as Brownian
from flatwise.theory.drift import drift as drift
from flatwise.theory.edges import adam_edge as adam_edge
from flatwise.theory.edges import eigen_sam_edge as eigen_sam_edge
from flatwise.theory.edges import gd_edge as gd_edge
from flatwise.theory.edges import heavy_ball_edge as heavy_ball_edge
from flatwise.theory.edges import nesterov_edge as nesterov_edge
from flatwise.theory.edges import sam_edge as sam_edge
from flatwise.theory.edges import usam_edge as usam_edge
from flatwise.theory.ensemble import Ensemble as Ensemble
from flatwise.theory.linearised import MethodEdge as MethodEdge
from flatwise.theory.linearised import method_edge as method_edge
from flatwise.theory.sde import SDE as SDE
from flatwise.theory.sde import sam_sde as sam_sde
from flatwise.theory.sde import sgd_sde as sgd_sde
from flatwise.theory.simulation import SCHEMES as SCHEMES
from flatwise.theory.simulation import Observe as Observe
from flatwise.theory.simulation import Paths as Paths
from flatwise.theory.simulation import Scheme as Scheme
from flatwise.theory.simulation import discrete as discrete
from flatwise.theory.simulation import simulate as simulate
