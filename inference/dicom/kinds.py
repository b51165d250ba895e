"""The kinds of objects, apart so that a command's help needs no DICOM library."""

KINDS = ("seg", "sr", "sc", "rtstruct")
"""Segmentation, structured report, secondary capture, and radiotherapy structure set."""

DEFAULT_KINDS = ("seg", "sr", "sc")
