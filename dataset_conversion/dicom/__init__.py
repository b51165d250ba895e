"""DICOM as it comes out of an archive: which series there are, their images and masks. Needs pydicom."""

from braintum.commands.errors import CommandError

try:
    import pydicom  # noqa: F401
except ImportError as error:
    raise CommandError('DICOM is read with pydicom, which is not installed: pip install "braintum[dicom]"') from error
