"""Conversion of public brain-tumour data sets, and the data format that all of them share.

Imports nothing of this project but `braintum.commands`, and neither torch nor nnunetv2: commands start quickly, and
every other package may import this one.
"""
