"""One colour, dash and marker per mechanism, and the two themes of a page.

The ten colours (a neutral one for the yardstick and nine hues) were searched for the largest smallest distance
(OKLab) under normal vision, protanopia and deuteranopia, in the light and the dark theme at once, with a contrast
of at least 3:1 to the surface that they are drawn on; `tests/report/test_palette.py` holds both properties.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

LIGHT = (
    "#39414f",
    "#374db7",
    "#378c61",
    "#ea5292",
    "#975c10",
    "#9e61eb",
    "#3c97c1",
    "#90161a",
    "#a4952b",
    "#9b1b87",
)
DARK = (
    "#dfe4ec",
    "#536fe3",
    "#3fa471",
    "#fe92b9",
    "#ec9117",
    "#aa83e3",
    "#48c2f9",
    "#ca3f3b",
    "#ddd07c",
    "#ad4c9a",
)
DASHES = ("solid", "dash", "dot", "dashdot")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "x")

THEMES: dict[str, dict[str, str]] = {
    "light": {
        "page": "#f6f7f9",
        "surface": "#ffffff",
        "ink": "#171c26",
        "muted": "#5a6474",
        "line": "#dde1e8",
        "grid": "#e9ecf1",
        "accent": "#374db7",
        "accent-soft": "#eaedfb",
        "good": "#1f7a4d",
        "good-soft": "#e4f4ec",
        "bad": "#a3251f",
        "bad-soft": "#fceceb",
    },
    "dark": {
        "page": "#0f1218",
        "surface": "#171b22",
        "ink": "#e8ebf1",
        "muted": "#a0a9b8",
        "line": "#2c323d",
        "grid": "#262c36",
        "accent": "#93a5f5",
        "accent-soft": "#20294a",
        "good": "#6bcf9c",
        "good-soft": "#16301f",
        "bad": "#f2918b",
        "bad-soft": "#3a1c1b",
    },
}
for _name, _colours in (("light", LIGHT), ("dark", DARK)):
    THEMES[_name].update({f"c{index}": colour for index, colour in enumerate(_colours)})

Scale = list[tuple[float, str]]
SCALES: dict[str, dict[str, Scale]] = {
    "light": {
        "sequential": [
            (0.0, "#f4f6fa"),
            (0.15, "#d3dff2"),
            (0.4, "#83a9da"),
            (0.7, "#3a6bb5"),
            (1.0, "#122f66"),
        ],
        "diverging": [
            (0.0, "#8c3a0e"),
            (0.25, "#dd8b52"),
            (0.5, "#f6f6f6"),
            (0.75, "#6a9ccf"),
            (1.0, "#14407f"),
        ],
    },
    "dark": {
        "sequential": [
            (0.0, "#1d222b"),
            (0.15, "#24365a"),
            (0.4, "#3567ad"),
            (0.7, "#7fb0ea"),
            (1.0, "#f2f7ff"),
        ],
        "diverging": [
            (0.0, "#ffc08f"),
            (0.25, "#b8601f"),
            (0.5, "#20242c"),
            (0.75, "#3a72b8"),
            (1.0, "#a9d2ff"),
        ],
    },
}


def themed(role: str) -> str:
    """Return the token that the page replaces by the colour (or colour scale) of `role` in the current theme.

    Raises:
        ValueError: no theme has such a role.
    """
    if role not in THEMES["light"] and role not in SCALES["light"]:
        raise ValueError(f"the themes have no colour named {role!r}")
    return f"theme:{role}"


@dataclass(frozen=True)
class Style:
    """How a mechanism looks in every chart.

    Args:
        index: its place in the palette, from 0 (the yardstick's neutral colour).
    """

    index: int

    @property
    def colour(self) -> int:
        """The index of the colour in `LIGHT` and `DARK`."""
        return self.index % len(LIGHT)

    @property
    def role(self) -> str:
        """The theme token of the colour."""
        return themed(f"c{self.colour}")

    @property
    def dash(self) -> str:
        """The dash pattern, as Plotly names it; it tells mechanisms of equal colour apart."""
        return DASHES[self.index // len(LIGHT) % len(DASHES)]

    @property
    def symbol(self) -> str:
        """The marker, as Plotly names it."""
        return SYMBOLS[self.index % len(SYMBOLS)]


def assign(names: Sequence[str], yardstick: str) -> list[Style]:
    """Return a style per name, in order: the neutral colour for the yardstick, hues for all others."""
    styles: list[Style] = []
    following = 1
    for name in names:
        if name == yardstick and all(style.index for style in styles):
            styles.append(Style(0))
        else:
            styles.append(Style(following))
            following += 1
    return styles
