"""Errors of the commands."""


class CommandError(ValueError):
    """A command cannot do what was asked; the message tells the user why and what to do."""
