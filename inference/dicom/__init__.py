"""Predictions as DICOM objects: segmentation, structured report, picture, contours."""
