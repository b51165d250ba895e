"""Whole experiments: many trainings or predictions with one command, on this machine or on a SLURM cluster."""
