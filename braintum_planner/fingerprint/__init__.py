"""What is measured in a data set: cases, intensities, tumours."""
