"""What a model found in a DICOM series, as DICOM objects that an archive takes."""

from braintum.inference.dicom.objects import DEFAULT_KINDS, KINDS, UsedModel, write_objects

__all__ = ["DEFAULT_KINDS", "KINDS", "UsedModel", "write_objects"]
