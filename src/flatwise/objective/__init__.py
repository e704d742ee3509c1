"""The training loss as a function of the weights: its value, gradient and Hessian-vector products, on a model and data."""

from flatwise.objective.batches import samples as samples
from flatwise.objective.circumstances import Circumstances as Circumstances
from flatwise.objective.circumstances import circumstances as circumstances
from flatwise.objective.displacement import Displacement as Displacement
from flatwise.objective.forecast import Forecast as Forecast
from flatwise.objective.objective import Loss as Loss
from flatwise.objective.objective import Objective as Objective
from flatwise.objective.preflight import Preflight as Preflight
from flatwise.objective.tokens import tokens as tokens
