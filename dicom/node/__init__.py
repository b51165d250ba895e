"""A DICOM node: studies come in by C-STORE, are predicted one after the other, and their results are sent on."""
