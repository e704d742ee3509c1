"""Edges of stability of gradient descent and of sharpness-aware methods, as numbers."""

from flatwise.theory.edges import adam_edge as adam_edge
from flatwise.theory.edges import eigen_sam_edge as eigen_sam_edge
from flatwise.theory.edges import gd_edge as gd_edge
from flatwise.theory.edges import heavy_ball_edge as heavy_ball_edge
from flatwise.theory.edges import nesterov_edge as nesterov_edge
from flatwise.theory.edges import sam_edge as sam_edge
from flatwise.theory.edges import usam_edge as usam_edge
