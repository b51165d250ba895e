"""Which series of a study is which channel of a model, and why."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from braintum.conversion.dicom.sequences import recognise, sequence_of_channel
from braintum.conversion.dicom.series import SeriesFiles
from braintum.conversion.files.volumes import VolumeError


@dataclass(frozen=True)
class Choice:
    """A series for a channel, with the reason."""

    series: SeriesFiles
    reason: str


def choose_series(
    study: Sequence[SeriesFiles], channels: Sequence[str], patterns: Mapping[str, str]
) -> dict[str, Choice]:
    """Chooses a series for each channel.

    Args:
        study: its series.
        channels: of the model, in order.
        patterns: channel -> pattern with `*` and `?` of SeriesDescription, ProtocolName or SequenceName, or a
            SeriesInstanceUID; other channels are recognised by the headers.

    Raises:
        VolumeError: for a channel there is no series, or there are several; the candidates are named.
    """
    chosen: dict[str, Choice] = {}
    problems: list[str] = []
    for channel in channels:
        pattern = patterns.get(channel, "")
        found = _matching(study, pattern) if pattern else _recognised(study, channel)
        if len(found) == 1:
            chosen[channel] = found[0]
        elif found:
            listed = "; ".join(f"{_named(one.series)}: {one.reason}" for one in found)
            problems.append(f"{len(found)} series could be {channel}: {listed}. Choose one: {_example(channel)}")
        else:
            asked = f"matches {pattern!r}" if pattern else "was recognised"
            listed = "; ".join(f"{_named(one)}: {_said(one)}" for one in study)
            problems.append(f"no series {asked} as {channel}; there is {listed}. Choose one: {_example(channel)}")
    taken = [id(choice.series) for choice in chosen.values()]
    problems += [
        f"{_named(choice.series)} would be {channel} and another channel; correct the patterns"
        for channel, choice in chosen.items()
        if taken.count(id(choice.series)) > 1
    ]
    if problems:
        raise VolumeError(*problems)
    return chosen


def _example(channel: str) -> str:
    return f"--channel {channel}='PATTERN OF ITS DESCRIPTION'"


def _named(series: SeriesFiles) -> str:
    number = f"{series.text('SeriesNumber').removesuffix('.0')}, " if "SeriesNumber" in series.facts else ""
    return f"'{series.title}' ({number}{len(series.frames)} slices)"


def _said(series: SeriesFiles) -> str:
    found = recognise(series)
    return f"{found.sequence or 'not recognised'}, {found.reason}"


def _matching(study: Sequence[SeriesFiles], pattern: str) -> list[Choice]:
    def matches(series: SeriesFiles) -> bool:
        names = (*series.names, series.text("SeriesInstanceUID"))
        return any(fnmatchcase(name.lower(), pattern.lower()) for name in names)

    return [Choice(series, f"matches {pattern!r}") for series in study if matches(series)]


def _recognised(study: Sequence[SeriesFiles], channel: str) -> list[Choice]:
    wanted = sequence_of_channel(channel)
    said = [(series, recognise(series)) for series in study]
    if len(study) == 1 and (said[0][1].is_open or not wanted):
        return [Choice(study[0], f"the only series; {said[0][1].reason}")]
    if not wanted:
        return []
    found = [Choice(series, one.reason) for series, one in said if one.sequence == wanted]
    originals = [choice for choice in found if "DERIVED" not in choice.series.image_type]
    if len(found) > 1 and len(originals) == 1:  # the others are reformatted from it
        return [Choice(originals[0].series, f"{originals[0].reason}; the only original one of {len(found)}")]
    return found
