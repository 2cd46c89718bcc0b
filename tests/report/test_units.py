from __future__ import annotations

import pytest

from regard.report import units
from regard.report.units import MINUS, MISSING, TIMES


@pytest.mark.parametrize(
    ("formatter", "value", "text"),
    [
        (units.count, 950, "950"),
        (units.count, 4500, "4.50 k"),
        (units.count, 999_600, "1.00 M"),
        (units.count, 0, "0"),
        (units.count, -7, f"{MINUS}7"),
        (units.count, 2.5, "2.50"),
        (units.seconds, 0.0031, "3.10 ms"),
        (units.seconds, 8.2e-7, "820 ns"),
        (units.seconds, 1.25, "1.25 s"),
        (units.seconds, 125, "2 min 5 s"),
        (units.seconds, 0.0, "0 ns"),
        (units.size, 512, "512 B"),
        (units.size, 1024, "1.00 KiB"),
        (units.size, 1.2 * 2**20, "1.20 MiB"),
        (units.size, 0, "0 B"),
        (units.ratio, 0.83, f"0.830{TIMES}"),
        (units.ratio, 1234.5, f"1,234{TIMES}"),
        (units.ratio, 3e-9, f"3.0e{MINUS}09{TIMES}"),
        (units.percent, 0.913, "91.3 %"),
        (units.percent, -0.004, f"{MINUS}0.4 %"),
        (units.percent, -0.0001, "0.0 %"),
        (units.plain, -1.234, f"{MINUS}1.23"),
        (units.whole, 16384, "16,384"),
    ],
)
def test_numbers_read_as_people_write_them(formatter: units.Formatter, value: float, text: str) -> None:
    assert formatter(value) == text
    assert formatter(None) == MISSING


def test_a_signed_percentage_shows_its_sign_unless_it_is_zero() -> None:
    assert units.percent(0.004, signed=True) == "+0.4 %"
    assert units.percent(-0.004, signed=True) == f"{MINUS}0.4 %"
    assert units.percent(-0.0001, signed=True) == "0.0 %"


@pytest.mark.parametrize(
    ("formatter", "value", "text"),
    [
        (units.seconds, 0.01, "10 ms"),
        (units.seconds, 0.0015, "1.5 ms"),
        (units.size, 2**30, "1 GiB"),
        (units.ratio, 0.03, f"0.03{TIMES}"),
        (units.ratio, 100, f"100{TIMES}"),
        (units.percent, 0.5, "50 %"),
        (units.whole, 1000, "1,000"),
    ],
)
def test_ticks_lose_only_the_zeros_that_end_a_fraction(formatter: units.Formatter, value: float, text: str) -> None:
    assert units.tick(formatter)(value) == text


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None, "3", True, [1], 10**400])
def test_only_finite_numbers_count(value: object) -> None:
    assert units.finite(value) is None


def test_finite_numbers_pass() -> None:
    assert (units.finite(3), units.finite(-0.5)) == (3.0, -0.5)


def test_text_is_cleaned_of_what_breaks_pages_and_fonts() -> None:
    assert units.clean("a\x00b\tc\nd\x7f") == "a b c d "
    assert units.clean("a\tb\n", lines=True) == "a\tb\n"
    assert units.clean("x\u202ey\u2066z") == "x\ufffdy\ufffdz"
    units.clean("\ud800").encode("utf-8")
    assert units.clean(None) == ""
    assert len(units.clean("x" * 50_000)) == 20_001


@pytest.mark.parametrize("most", [5, 10, 28, 29])
def test_long_names_are_cut_in_the_middle_to_the_length_asked_for(most: int) -> None:
    name = "abcdefghijklmnopqrstuvwxyz0123456789"
    short = units.shorten(name, most)
    assert len(short) == most
    assert short[0] == "a"
    assert short[-1] == "9"
    assert units.shorten(name, len(name)) == name


def test_settings_of_any_type_become_one_line() -> None:
    assert units.setting(True) == "yes"
    assert units.setting([256, 16384]) == "256, 16,384"
    assert units.setting({"a": [1, None]}) == f"a: 1, {MISSING}"
    assert units.setting(float("nan")) == MISSING
    assert units.setting("a\nb") == "a b"
