"""DICOM studies in and results out. Needs the packages of the extra ``dicom``."""
