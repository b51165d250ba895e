"""What MRI sequence a series is, by its description and its times, and whether it was taken after contrast agent.

Words of the description come first, since protocols are named by people; echo, repetition and inversion times have to
agree with them, and decide where there are none. The limits are wide ones for 1.5 and 3 T: a T1 weighting has a short
echo (below 30 ms) and, unless inverted, a short repetition; T2 a long echo (from 60 ms) and a long repetition; FLAIR
besides inverts with 1500 ms or more. Whatever is neither, or contradicts itself, is not recognised.
"""

import re
from dataclasses import dataclass

from braintum.conversion.dicom.series import SeriesFiles

T1, T1CE, T2, FLAIR = "T1", "T1ce", "T2", "FLAIR"

_CHANNEL_NAMES = {
    T1: {"t1", "t1n", "t1w", "t1native", "t1pre"},
    T1CE: {"t1ce", "t1c", "t1gd", "t1post", "t1km", "t1wce", "t1cw", "ce", "cet1", "cet1w", "t1contrast", "t1gad"},
    T2: {"t2", "t2w"},
    FLAIR: {"flair", "t2f", "t2flair", "fla"},
}
_NOT_ANATOMY = {
    "a localiser": r"localizer|localiser|scout|survey|\bloc\b|plan scan|aahead",
    "diffusion": r"dwi|dti|\badc\b|diff|trace|\bfa\b|b\d{3,4}\b",
    "perfusion": r"perf|\bdsc\b|\bdce\b|\basl\b|pwi|cbv|cbf|mtt|ttp|ktrans|dynamic",
    "angiography": r"\btof\b|angio|\bmra\b|\bmrv\b|venogra",
    "susceptibility": r"\bswi\b|swan|t2\*|t2 ?star|hemo|\bgre\b|venobold",
    "spectroscopy or function": r"spectro|\bmrs\b|\bcsi\b|bold|fmri|resting",
    "a projection or a subtraction": r"\bmip\b|minip|subtract|\bsub\b",
    "a map or a picture": r"fieldmap|field map|b0 ?map|phase|screen|report|dose",
    "proton density": r"\bpd\b|proton",
}
_WEIGHTINGS = {
    FLAIR: r"flair|dark.?fluid|da.?fl|tirm",
    T1: r"t1|mp.?rage|bravo|spgr|\btfl\b|vibe|thrive|flash",
    T2: r"t2",
}
_AFTER = (
    r"(?<![a-z])(post|gd|gad\w*|ce|c\+|km|kontrast\w*|contrast\w*|dotarem|nach|mdc|t1ce|t1c|t1gd)(?![a-z])|\+ ?c\b|\+gd"
)
_BEFORE = r"(?<![a-z])(pre|nativ\w*|ohne|without|non|plain|unenhanced|vor|sans|w/o)(?![a-z])|\-c\b"
_NO_AGENT = {"", "no", "none", "ohne", "nein", "n", "0", "without"}


@dataclass(frozen=True)
class Recognised:
    """What a series is.

    Attributes:
        sequence: one of T1, T1ce, T2 and FLAIR; empty where it is none of them, or cannot be told.
        reason: why.
        is_open: nothing in the header tells, so that it may be any.
    """

    sequence: str
    reason: str
    is_open: bool = False


def sequence_of_channel(channel: str) -> str:
    """The sequence that a channel of a model means, such as T1ce for t1gd; empty for an unknown name."""
    plain = re.sub(r"[^a-z0-9]", "", channel.lower())
    return next((sequence for sequence, names in _CHANNEL_NAMES.items() if plain in names), "")


def recognise(series: SeriesFiles) -> Recognised:
    """Tells what a series is by its header."""
    facts = series.facts
    text = re.sub(r"[_/.,;()\-]+", " ", " ".join(series.names)).lower().replace("w o", "w/o")
    kinds = series.image_type
    if series.text("Modality") != "MR":
        return Recognised("", f"its modality is {series.text('Modality') or 'not given'}, not MR")
    if "LOCALIZER" in kinds:
        return Recognised("", "its image type is LOCALIZER")
    if found := kinds & {"PROJECTION IMAGE", "SUBTRACTION", "ADC", "DIFFUSION", "PHASE MAP", "P", "PHASE"}:
        return Recognised("", f"its image type is {', '.join(sorted(found))}")
    if _number(facts.get("DiffusionBValue", 0)) > 0:
        return Recognised("", "it has a diffusion weighting")
    for what, words in _NOT_ANATOMY.items():
        if match := re.search(words, text):
            return Recognised("", f"its name has {match[0]!r}: {what}")
    named = {weighting: match[0] for weighting, words in _WEIGHTINGS.items() if (match := re.search(words, text))}
    by_times, times = _by_times(series)
    weighting, reason = _weighting(named, by_times, times)
    if weighting != T1:
        return Recognised(weighting, reason, is_open=not named and not by_times)
    return _contrast(series, text, reason)


def _weighting(named: dict[str, str], by_times: str, times: str) -> tuple[str, str]:
    if FLAIR in named and T1 in named:  # T1 FLAIR is a T1 weighting
        named = {by_times: "flair and t1"} if by_times in named else {}
    elif FLAIR in named:
        named = {FLAIR: named[FLAIR]}
    if len(named) > 1:
        return "", f"its name has {' and '.join(repr(word) for word in named.values())}"
    if not named:
        return by_times, f"by {times}" if by_times else f"neither name nor times tell ({times or 'none given'})"
    ((weighting, word),) = named.items()
    if by_times and by_times != weighting:
        return "", f"its name has {word!r}, but its times are those of {by_times} ({times})"
    return weighting, f"its name has {word!r}" + (f", {times}" if times else "")


def _by_times(series: SeriesFiles) -> tuple[str, str]:
    facts = series.facts
    names = {"TE": "EchoTime", "TR": "RepetitionTime", "TI": "InversionTime"}
    values = {short: _number(facts[name]) for short, name in names.items() if name in facts}
    shown = ", ".join(f"{short} {value:g} ms" for short, value in values.items())
    echo, repetition, inversion = (values.get(short, 0.0) for short in names)
    if not echo:
        return "", shown
    if inversion >= 1500 and echo >= 60:
        return FLAIR, shown
    if echo >= 60 and repetition >= 1500 and not inversion:
        return T2, shown
    if echo < 30 and (0 < repetition <= 1000 or 300 <= inversion < 1500):
        return T1, shown
    return "", shown


def _number(value: object) -> float:
    return float(value[0] if isinstance(value, tuple) else value)  # type: ignore[arg-type]


def _contrast(series: SeriesFiles, text: str, reason: str) -> Recognised:
    agent = series.text("ContrastBolusAgent")
    has_agent = agent.lower() not in _NO_AGENT
    after, before = re.search(_AFTER, text), re.search(_BEFORE, text)
    if before and (has_agent or after):
        other = f"contrast agent {agent!r} in the header" if has_agent else repr(after[0])  # type: ignore[index]
        return Recognised("", f"{reason}; {before[0]!r} contradicts {other}")
    if has_agent or after:
        why = f"contrast agent {agent!r}" if has_agent else f"{after[0]!r} in its name"  # type: ignore[index]
        return Recognised(T1CE, f"{reason}; {why}")
    return Recognised(T1, f"{reason}; no sign of contrast agent")
