"""What every function of the Python API has in common: nnU-Net in order, and errors of one family."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from braintum.commands import command
from braintum.commands.errors import in_family
from braintum.commands.version import check_nnunet_version

__all__ = ["api_function"]

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")


def api_function(
    *, needs_nnunet: bool = True
) -> Callable[[Callable[_Parameters, _Result]], Callable[_Parameters, _Result]]:
    """Make a function one of the Python API, as :func:`braintum.commands.command.run_command` makes a command.

    Args:
        needs_nnunet: check nnU-Net's version and register with it before the function runs.

    Returns:
        The decorator. What the function raises is a :class:`braintum.commands.errors.BraintumError` then.
    """

    def decorate(function: Callable[_Parameters, _Result]) -> Callable[_Parameters, _Result]:
        @functools.wraps(function)
        def checked(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> _Result:
            with in_family():
                if needs_nnunet:
                    check_nnunet_version()
                    command.ensure_registered()
                return function(*args, **kwargs)

        return checked

    return decorate
