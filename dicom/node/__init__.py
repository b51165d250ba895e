"""A DICOM node: studies come in by C-STORE, are predicted one after the other, and their results are sent on."""

import braintum.conversion.dicom  # noqa: F401  says what is to be installed, where it is not
