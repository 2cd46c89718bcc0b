from __future__ import annotations

import itertools

import numpy as np
import pytest

from regard.report.palette import DARK, LIGHT, SCALES, THEMES, assign, themed

# Machado, Oliveira and Fernandes 2009, severity 1.0, on linear RGB
VISION = {
    "normal": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
}
OKABE_ITO = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")


def linear(colour: str) -> np.ndarray:
    value = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def oklab(rgb: np.ndarray) -> np.ndarray:
    to_lms = np.array(
        [
            [0.4122214708, 0.5363325363, 0.0514459929],
            [0.2119034982, 0.6806995451, 0.1073969566],
            [0.0883024619, 0.2817188376, 0.6299787005],
        ]
    )
    to_lab = np.array(
        [
            [0.2104542553, 0.7936177850, -0.0040720468],
            [1.9779984951, -2.4285922050, 0.4505937099],
            [0.0259040371, 0.7827717662, -0.8086757660],
        ]
    )
    return to_lab @ np.cbrt(to_lms @ np.clip(rgb, 0, 1))


def contrast(one: str, other: str) -> float:
    a, b = sorted(float(linear(colour) @ [0.2126, 0.7152, 0.0722]) for colour in (one, other))
    return (b + 0.05) / (a + 0.05)


def nearest(colours: tuple[str, ...], vision: str) -> float:
    seen = [oklab(VISION[vision] @ linear(colour)) for colour in colours]
    return min(float(np.linalg.norm(a - b)) for a, b in itertools.combinations(seen, 2))


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
def test_ten_colours_stay_apart_for_every_kind_of_vision(colours: tuple[str, ...], vision: str) -> None:
    assert len(colours) == 10
    # the eight colours of Okabe and Ito, the usual measure, are 0.076 apart at the least
    usual = min(nearest(OKABE_ITO, kind) for kind in VISION)
    assert nearest(colours, vision) > usual


@pytest.mark.parametrize("theme", THEMES)
def test_marks_and_text_stand_out_from_their_surface(theme: str) -> None:
    roles = THEMES[theme]
    for index in range(10):
        assert contrast(roles[f"c{index}"], roles["surface"]) >= 3
    for text in ("ink", "muted", "accent", "good", "bad"):
        for surface in ("surface", "page"):
            assert contrast(roles[text], roles[surface]) >= 4.5, (text, surface)
    for text, surface in (("accent", "accent-soft"), ("good", "good-soft"), ("bad", "bad-soft")):
        assert contrast(roles[text], roles[surface]) >= 4.5, text


def test_both_themes_have_the_same_roles() -> None:
    assert THEMES["light"].keys() == THEMES["dark"].keys()
    assert SCALES["light"].keys() == SCALES["dark"].keys()
    with pytest.raises(ValueError, match="no colour named 'pink'"):
        themed("pink")


def test_the_yardstick_is_neutral_and_no_two_of_many_mechanisms_look_alike() -> None:
    names = [f"m{index}" for index in range(36)]
    styles = assign([*names[:3], "softmax", *names[3:]], "softmax")
    assert styles[3].index == 0
    looks = {(style.colour, style.dash) for style in styles}
    assert len(looks) == 37
    assert len({(style.colour, style.symbol) for style in styles}) == 37
    assert len({style.index for style in assign(["softmax", "softmax", "a"], "softmax")}) == 3
