"""Numbers in a text: which there are, and their digits after the decimal point."""

import pytest
from hypothesis import given, strategies

from tools.text.numbers import numbers


@pytest.mark.parametrize(
    ("text", "decimals"),
    [
        ("", []),
        ("3.14 and 2.0.", [2, 1]),
        ("1,000 and 1,234,567.89", [0, 2]),
        ("1,00,000.5 rupees", [1]),
        ("1.234.567,8 und 3,14", [1, 2]),
        ("1 000,50 € und 12 345 678,9", [2, 1]),
        ("1\u00a0000,50 et 1\u202f000.5, -2 500,25", [2, 1, 2]),
        ("1'000.50 and 1’000’000.5", [2, 1]),
        ("3 500 000 and 2024 300", [0, 0, 0]),
        ("5 1000.5 and 12 34.5, 1.5 250.25", [0, 1, 0, 1, 1, 2]),
        ("1,2,3", [0, 0, 0]),
        ("(1.5,2.25)", [1, 2]),
        ("-2.50, +1.0, .5, $3.50", [2, 1, 1, 2]),
        ("1e-5, 1.50e-5, 3.14×10^5, 2.5 x 10⁻³", [0, 2, 2, 1]),
        ("3.5-4.25 and 3.5–4", [1, 2, 1, 0]),
        ("1/2 at 16:9", [0, 0, 0, 0]),
        ("on 2024-05-01 or 5/1/2024 at 12:30", []),
        ("version 1.2.3 at 192.168.0.1, v1.2", []),
        ("GPT-4, H2O, COVID-19, 2nd, 3D", []),
        ("in 2024", [0]),
        ("3.5kg and 5km", [1]),
        ("1. Item of 2.5\n2) Item\n(3) Item\n- 4. Item", [1]),
        ("1. 2.5 kg", [1]),
        ("## 1.1 Title\n\nText 4.44", [2]),
        ("wait...5", [0]),
        ("３．１４ 与 共有3个", [2, 0]),
        ("٣٫", [0]),
    ],
)
def test_decimals(text, decimals):
    assert [number.decimals for number in numbers(text)] == decimals


@pytest.mark.parametrize(
    ("text", "decimals"),
    [
        ("5 and 3.5", []),
        ("3.5%, 3.50 %, 3 percent, 1.25 per cent", [1, 2, 0, 2]),
        ("3.5-4.25%", [1, 2]),
        ("７．５％", [1]),
        ("百分之3.5", [1]),
        ("50percentile 5 percentiles", []),
        ("4.5 Prozent, 5 por ciento", [1, 0]),
        ("1,000.5%", [1]),
        ("1 000,50 %", [2]),
    ],
)
def test_percentages(text, decimals):
    assert [number.decimals for number in numbers(text) if number.percentage] == decimals


@given(
    strategies.integers(0, 10**9),
    strategies.integers(0, 6),
    strategies.sampled_from(["", "%", " percent", " kg", "个"]),
)
def test_a_formatted_number_is_read_as_formatted(number, decimals, unit):
    (found,) = numbers(f"It is {number / 1000:,.{decimals}f}{unit}.")
    assert (found.decimals, found.percentage) == (decimals, unit in ("%", " percent"))


@given(strategies.one_of(strategies.text(), strategies.text(alphabet="019.,:/-+eE^x×10 %a\n#()²٣９。")))
def test_any_text_has_numbers(text):
    assert all(number.decimals >= 0 for number in numbers(text))
    if not any(character.isdecimal() for character in text):
        assert not numbers(text)
