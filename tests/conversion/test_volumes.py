"""Volumes that cannot be used: each says what it is, and what to do."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
from dicom_data import write_structures
from volume_data import as_image, volume_array, write_dicom_series

from braintum.conversion.building.volume_reading import read_any
from braintum.conversion.files.volumes import VolumeError, check_images, read_volume


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


@pytest.mark.parametrize("as_folder", [False, True])
def test_dicom_objects_that_are_no_images(tmp_path: Path, as_folder: bool) -> None:
    file = write_structures(tmp_path / "seg" / "a.dcm", as_image(volume_array(0)), {})
    with pytest.raises(VolumeError, match="a.dcm: a DICOM segmentation or structure set, no image: name it"):
        read_any(file.parent if as_folder else file)


def test_dicom_images_are_read(tmp_path: Path) -> None:
    write_dicom_series(tmp_path / "T1", volume_array(0), "1")
    assert read_any(tmp_path / "T1").GetDimension() == 3
