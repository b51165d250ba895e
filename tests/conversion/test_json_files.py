"""``dataset.json`` of nnU-Net v1."""

import json
from pathlib import Path

import pytest

from braintum.conversion.audit.audit_input import input_from_dataset
from braintum.conversion.files.json_files import read_dataset_json

V1 = {
    "modality": {"0": "T1"},
    "labels": {"0": "background", "1": "tumour"},
    "numTraining": 1,
    "training": [{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}],
    "file_ending": ".nii.gz",
}


@pytest.mark.parametrize("read", [read_dataset_json, lambda path: input_from_dataset(path.parent)])
def test_of_version_1(tmp_path: Path, read: object) -> None:
    (tmp_path / "dataset.json").write_text(json.dumps(V1))
    with pytest.raises(
        ValueError, match="dataset.json is of nnU-Net v1: .*nnUNetv2_convert_old_nnUNet_dataset"
    ) as found:
        read(tmp_path / "dataset.json")  # type: ignore[operator]
    assert '{"background": 0, "tumour": 1}' in str(found.value)
