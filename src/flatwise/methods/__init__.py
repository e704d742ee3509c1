"""The methods: each a short dialogue with the training loss. A method listed here joins the command line and the tests."""

from __future__ import annotations

from flatwise.methods.ae_sam import AESAM
from flatwise.methods.asam import ASAM
from flatwise.methods.dialogue import At, Dialogue, Evaluation, Method, Passes, State, Twice, drive
from flatwise.methods.eigen_sam import XSAM, EigenSAM, EigenvaluePenalty
from flatwise.methods.eigenvectors import Eigenspace
from flatwise.methods.esam import ESAM
from flatwise.methods.friendly_sam import FriendlySAM
from flatwise.methods.gradient_norm import GradientNorm
from flatwise.methods.gsam import GSAM, WSAM
from flatwise.methods.looksam import LookSAM
from flatwise.methods.momentum_sam import MomentumSAM
from flatwise.methods.names import by_name, names, settings
from flatwise.methods.nso import NSO
from flatwise.methods.prgd import PRGD
from flatwise.methods.sam import SAM, SGD, USAM, ReverseSAM
from flatwise.methods.selection import Selection
from flatwise.methods.subspaces import Bulk, Dominant
from flatwise.methods.tsam import TSAM
from flatwise.methods.universal import DetSAM, FrobSAM, TraceSAM
from flatwise.methods.wrappers import Interval, Late, Stable, Wrapper

__all__ = [
    "AESAM",
    "ASAM",
    "ESAM",
    "GSAM",
    "NSO",
    "PRGD",
    "SAM",
    "SGD",
    "TSAM",
    "USAM",
    "WSAM",
    "XSAM",
    "At",
    "Bulk",
    "DetSAM",
    "Dialogue",
    "Dominant",
    "EigenSAM",
    "Eigenspace",
    "EigenvaluePenalty",
    "Evaluation",
    "FriendlySAM",
    "FrobSAM",
    "GradientNorm",
    "Interval",
    "Late",
    "LookSAM",
    "Method",
    "MomentumSAM",
    "Passes",
    "ReverseSAM",
    "Selection",
    "Stable",
    "State",
    "TraceSAM",
    "Twice",
    "Wrapper",
    "by_name",
    "drive",
    "names",
    "settings",
]
