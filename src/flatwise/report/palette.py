"""One color and one dash per arm, the same in every figure of a page, readable with every kind of color vision."""

from __future__ import annotations

from dataclasses import dataclass

from flatwise.report.crowds import prominent
from flatwise.report.study import Arm, Study

# After Okabe and Ito, with the two lightest colors darkened to stand on white as well as on black.
COLORS = {
    "sgd": "#12967a",
    "gd": "#12967a",
    "sam": "#2a7fc9",
    "eigen-sam": "#d95f0e",
    "sam-equal-norm": "#45a5dc",
    "reverse-sam": "#b5589b",
    "gradient-norm": "#b98a00",
}
OTHERS = ("#8566c9", "#b98a00", "#12967a", "#a0522d", "#5c7f00", "#c04060", "#2a7fc9", "#d95f0e")


@dataclass(frozen=True)
class Style:
    """How an arm is drawn. `dash` is Plotly's word, `pattern` the same for SVG."""

    color: str
    dash: str

    @property
    def pattern(self) -> str:
        """The dash as an SVG stroke pattern."""
        return {"solid": "none", "dash": "6 4", "dot": "2 3"}[self.dash]


def styles(*studies: Study) -> dict[str, Style]:
    """The style of each arm by name, the same in all studies of a page.

    An arm takes its method's color, or the next one that is free in its study; controls are dashed.
    """
    chosen: dict[str, Style] = {}
    for study in studies:
        first = prominent(study)  # the colors that differ most are for what is seen first
        for arm in sorted(study.arms, key=lambda arm: first.index(arm.name) if arm.name in first else len(first)):
            used = {chosen[other.name].color for other in study.arms if other.name in chosen}
            chosen.setdefault(
                arm.name, Style(_color(arm, used, len(chosen)), "dash" if arm.role == "control" else "solid")
            )
    return chosen


def _color(arm: Arm, used: set[str], place: int) -> str:
    method = next((str(trial.config["method"]) for trial in arm.trials if "method" in trial.config), "")
    wanted = [COLORS[name] for name in (arm.name, method) if name in COLORS]
    free = [color for color in (*wanted, *OTHERS) if color not in used]
    return free[0] if free else OTHERS[place % len(OTHERS)]


def transparent(color: str, share: float) -> str:
    """The color as rgba with an opacity in [0, 1]."""
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{share})"
