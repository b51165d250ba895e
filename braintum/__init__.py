"""nnU-Net v2 extension that segments brain tumours in MRI and classifies their type in one model."""

from braintum.commands.version import __version__

__all__ = ["__version__"]
