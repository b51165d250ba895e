"""A DICOM series as a volume, with the objects that results refer to."""

from braintum.conversion.dicom.series import Series, SeriesFiles

__all__ = ["Series", "SeriesFiles"]
