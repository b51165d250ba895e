"""DICOM as it comes out of an archive: which series there are, their images and masks."""
