"""The papers' planner presets: what they plan, for whom it can be used, and the memory that they promise."""

from nnunetv2.utilities.find_class_by_name import recursive_find_python_class  # noqa: F401
