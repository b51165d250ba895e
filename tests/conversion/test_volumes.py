"""Volumes that cannot be used: each says what it is, and what to do."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
from volume_data import volume_array, write_dicom_series

from braintum.conversion.files.volumes import VolumeError, check_images, read_volume

SEGMENTATION, STRUCTURES, SLICE = (
    f"1.2.840.10008.5.1.4.1.1.{number}".encode() for number in ("66.4", "481.3", "4")
)  # SOP classes


@pytest.mark.parametrize("read", [read_volume, lambda path: check_images([str(path)])])
def test_sheared_geometry(tmp_path: Path, read: object) -> None:
    file = tmp_path / "sheared.nii.gz"
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    affine[1, 2] = 0.4
    image = nibabel.Nifti1Image(volume_array(0), affine)
    image.set_qform(None, 0)
    nibabel.save(image, file)
    with pytest.raises(
        VolumeError, match="sheared.nii.gz: its axes are not at right angles .sheared.*resampling"
    ) as found:
        read(file)  # type: ignore[operator]
    assert "copy" not in str(found.value)


@pytest.mark.parametrize(
    ("sop_class", "message"), [(SEGMENTATION, "segmentation object .SEG."), (STRUCTURES, "structure set .RTSTRUCT.")]
)
@pytest.mark.parametrize("as_folder", [False, True])
def test_dicom_objects_that_are_no_images(tmp_path: Path, sop_class: bytes, message: str, as_folder: bool) -> None:
    file = tmp_path / "seg" / "a.dcm"
    file.parent.mkdir()
    file.write_bytes(bytes(128) + b"DICM" + b"\x02\x00\x02\x00UI" + bytes([len(sop_class), 0]) + sop_class + bytes(600))
    with pytest.raises(VolumeError, match=f"a.dcm: a DICOM {message}.*write it as a label map") as found:
        read_volume(file.parent if as_folder else file)
    assert "resample" not in str(found.value)


def test_dicom_images_are_read(tmp_path: Path) -> None:
    write_dicom_series(tmp_path / "T1", volume_array(0), "1")
    assert read_volume(tmp_path / "T1").GetDimension() == 3
