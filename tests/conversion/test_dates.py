"""Dates of examinations in all the ways that hospitals write them."""

import pytest

from braintum.conversion.format.dates import days_since_first, iso_date, read_date


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2024-02-01", "2024-02-01"),
        ("2024-02-01 10:30:00", "2024-02-01"),
        ("MR_20240201_head", "2024-02-01"),
        ("1.2.2024", "2024-02-01"),
        ("2024_02_01", "2024-02-01"),
        ("P12345678", ""),
        ("2024-13-40", ""),
        ("120240201", ""),
        ("2024121", ""),
        ("baseline", ""),
    ],
)
def test_first_date_in_a_text(text: str, expected: str) -> None:
    assert iso_date(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("13/02/2024", "2024-02-13"), ("02/13/2024", "2024-02-13"), ("5/5/2024", "2024-05-05"), ("visit 2", "visit 2")],
)
def test_dates_of_a_table(text: str, expected: str) -> None:
    assert read_date(text) == expected


def test_date_that_may_be_two_is_refused() -> None:
    with pytest.raises(ValueError, match="may be 2020-03-04 or 2020-04-03"):
        read_date("03/04/2020")


def test_days_count_from_the_first() -> None:
    assert days_since_first(["2024-03-01", "2024-02-01", "x", ""]) == {"2024-03-01": "29", "2024-02-01": "0"}
