"""Sphinx configuration; `make docs` builds with every warning an error."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))
for _name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):  # nnU-Net prints three lines where they are unset
    os.environ.setdefault(_name, "unset")
os.environ["COLUMNS"] = "96"  # width of the usage lines of commands

from braintum import __version__  # noqa: E402

project = "braintum"
copyright = "braintum's authors, Apache-2.0"
release = version = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "generated",
    "our_docstrings",
]
exclude_patterns = ["_build"]
default_role = "code"  # some docstrings mark code with single backticks
smartquotes = False  # or --option becomes a dash
nitpicky = True
# what is documented elsewhere
_FOREIGN = (
    "argparse batchgenerators batchgeneratorsv2 collections concurrent copy dynamic_network_architectures functools "
    "highdicom jinja2 matplotlib monai nnunetv2 numpy os pathlib PIL pydicom pynetdicom SimpleITK torch types zipfile"
)
nitpick_ignore_regex = [
    (r"py:.*", rf"({'|'.join(_FOREIGN.split())})\..*"),
    (r"py:class", r"braintum\..*\.(Item|Result|_\w+)|~?_\w+"),  # type variables and what is private
    (r"py:class", r"ScalarImage|SeriesFiles|MaskFile"),  # imported for type checkers alone
]

myst_heading_anchors = 3
myst_enable_extensions = ["attrs_inline", "colon_fence"]

toc_object_entries = False  # the contents of a page are its modules
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
napoleon_google_docstring = True
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = f"braintum {version}"
html_static_path = ["_static"]
html_css_files = ["wider.css"]
