"""Experiment planning for multi-task brain-tumour models: planners, and what nnU-Net looks up by name beside them."""
