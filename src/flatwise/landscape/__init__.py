"""Slices of a loss: along directions, between checkpoints, and through three of them."""

from flatwise.landscape.around import line as line
from flatwise.landscape.around import plane as plane
from flatwise.landscape.between import path as path
from flatwise.landscape.between import plane_through as plane_through
from flatwise.landscape.directions import filter_normalised as filter_normalised
from flatwise.landscape.directions import random_direction as random_direction
from flatwise.landscape.parabola import Parabola as Parabola
from flatwise.landscape.parabola import parabola as parabola
from flatwise.landscape.slices import Line as Line
from flatwise.landscape.slices import Mark as Mark
from flatwise.landscape.slices import Plane as Plane
