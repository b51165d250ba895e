"""Dates of examinations, as tables, folders and DICOM headers write them."""

import re
from collections.abc import Iterable, Mapping
from datetime import date

_YEAR_FIRST = re.compile(r"(?<!\d)(?P<year>(?:19|20)\d\d)(?P<by>[-_./]?)(?P<month>\d\d?)(?P=by)(?P<day>\d\d?)(?!\d)")
_DAY_FIRST = re.compile(r"(?<!\d)(?P<day>\d\d?)\.(?P<month>\d\d?)\.(?P<year>(?:19|20)\d\d)(?!\d)")
_SHORT_YEAR = re.compile(r"\d\d?([/.-])\d\d?\1\d\d")
_SLASHES = re.compile(r"(\d\d?)/(\d\d?)/((?:19|20)\d\d)")


def iso_date(text: str) -> str:
    """Returns the first date in a text as YYYY-MM-DD; empty where there is none.

    Known are 2024-02-01, 20240201, 2024_02_01, and 1.2.2024 as in German: day, month, year.
    """
    for pattern in (_YEAR_FIRST, _DAY_FIRST):
        for match in pattern.finditer(text):
            if not match.groupdict().get("by", ".") and len(match[0]) != 8:
                continue  # without separators: two digits each
            try:
                return date(*(int(match[part]) for part in ("year", "month", "day"))).isoformat()
            except ValueError:
                continue
    return ""


def read_date(text: str) -> str:
    """Returns a table's date as YYYY-MM-DD; other texts, such as `baseline`, as they are.

    Raises:
        ValueError: it is not clear which of its numbers is the month, or the year.
    """
    if _SHORT_YEAR.fullmatch(text):
        raise ValueError(f"{text!r} has a year of two digits")
    slashes = _SLASHES.fullmatch(text)
    if slashes is None:
        return iso_date(text) or text
    first, second, year = (int(number) for number in slashes.groups())
    if first <= 12 and second <= 12 and first != second:
        raise ValueError(f"{text!r} may be {year}-{first:02d}-{second:02d} or {year}-{second:02d}-{first:02d}")
    day, month = (first, second) if second <= 12 else (second, first)
    return iso_date(f"{day}.{month}.{year}") or text


def days_since_first(dates: Iterable[str]) -> Mapping[str, str]:
    """Returns days since the earliest date, for each of a patient's dates; empty for what is no date."""
    known = {text: date.fromisoformat(iso_date(text)) for text in dates if iso_date(text)}
    return {text: str((day - min(known.values())).days) for text, day in known.items()}


def in_order(dates: Iterable[str]) -> list[str] | None:
    """Returns the distinct ones of some dates, or numbers of days, from the earliest; a single one whatever it says.

    Returns:
        Without the empty one where there are others; None where several words such as `baseline` have no order that is
        known.
    """
    distinct = set(dates)
    if len(distinct) > 1:
        distinct.discard("")
    order = {text: iso_date(text) or (text.zfill(9) if text.isdigit() else "") for text in distinct}
    if len(order) > 1 and not all(order.values()):
        return None
    return sorted(order, key=order.__getitem__)


def latest_date(dates: Iterable[str]) -> str | None:
    """Returns the latest of some dates, see `in_order`; None where that is not known."""
    ordered = in_order(dates)
    return None if ordered is None else next(reversed(ordered), "")
