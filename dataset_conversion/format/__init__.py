"""What stands beside the images: cases, classes, labels, patients, splits, calibration."""
