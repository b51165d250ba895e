"""The family of errors that the functions of ``braintum`` raise, and that commands report in one line.

Every member is a :class:`BraintumError` and also the built-in error that it resembles, so that code which catches
``ValueError`` or ``OSError`` goes on working. Whatever else is raised is a bug, or torch's own
(``torch.OutOfMemoryError``).
"""

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = [
    "BraintumError",
    "BraintumWarning",
    "CommandError",
    "FileError",
    "InputError",
    "MissingFileError",
    "RunError",
    "UnsupportedError",
    "in_family",
]


class BraintumError(Exception):
    """Something cannot be done as asked; the message says what is wrong, with what, and what to do."""


class InputError(BraintumError, ValueError):
    """An argument, or the content of a file, is not as it should be."""


class CommandError(InputError):
    """A command cannot do what was asked; the message tells the user why and what to do."""


class FileError(BraintumError, OSError):
    """A file cannot be read or written; ``errno`` and ``filename`` are those of the system's error, where it is one."""


class MissingFileError(FileError, FileNotFoundError):
    """A file or folder is not there."""


class UnsupportedError(BraintumError, NotImplementedError):
    """Possible in nnU-Net, but not supported here."""


class RunError(BraintumError, RuntimeError):
    """nnU-Net gave up while planning, preprocessing or training; its own output before says more."""


class BraintumWarning(UserWarning):
    """What was asked for is done, but may not mean what it seems to."""


@contextmanager
def in_family() -> Iterator[None]:
    """Turns errors of bad input and of files into members of the family, message and cause kept.

    Raises:
        BraintumError: for a ``ValueError``, an ``OSError`` or a ``NotImplementedError`` within the block.
    """
    try:
        yield
    except BraintumError:
        raise
    except OSError as error:
        member = MissingFileError if isinstance(error, FileNotFoundError) else FileError
        converted = member(*error.args)
        for name in ("filename", "filename2"):  # not among the arguments; None would be shown
            if getattr(error, name) is not None:
                setattr(converted, name, getattr(error, name))
        raise converted from error
    except ValueError as error:
        raise InputError(str(error) or type(error).__name__) from error
    except NotImplementedError as error:
        raise UnsupportedError(str(error) or type(error).__name__) from error
