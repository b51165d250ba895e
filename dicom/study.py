"""The series of a folder or ZIP archive, whatever lies in it."""

from braintum.conversion.dicom.study import FoundSeries, find_series

__all__ = ["FoundSeries", "find_series"]
