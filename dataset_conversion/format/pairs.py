"""Options of the form `NAME=VALUE`."""

from collections.abc import Sequence


def named_pairs(texts: Sequence[str], option: str, example: str) -> dict[str, str]:
    """Returns name -> value of an option that is given once or more.

    Args:
        texts: as they stand in the command.
        option: its name.
        example: a text that is right, for the message.

    Raises:
        ValueError: a text is of another form, or a name is there twice.
    """
    pairs: dict[str, str] = {}
    for text in texts:
        name, _, value = (part.strip() for part in text.partition("="))
        if not name or not value:
            raise ValueError(f"{option} {text!r} is not of the form NAME=VALUE; write {example}")
        if name in pairs:
            raise ValueError(f"{option}: {name!r} is there twice; choose another name")
        pairs[name] = value
    return pairs
