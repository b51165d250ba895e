"""Fingerprints that know of classes."""

from collections import Counter
from pathlib import Path

from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
from nnunetv2.paths import nnUNet_preprocessed

from dataset_conversion.atomic import write_json_atomic
from dataset_conversion.cases import CASES_FILE, ClassSchema, read_cases

__all__ = ["BrainTumFingerprintExtractor"]


class BrainTumFingerprintExtractor(DatasetFingerprintExtractor):
    """nnU-Net's fingerprint, unchanged, with ``classification``: training cases and patients of each class.

    Stock planners read it like their own.
    """

    def run(self, overwrite_existing: bool = False) -> dict:
        """Extract and save the fingerprint.

        Raises:
            ValueError: bad class schema or ``cases.csv``.
            FileNotFoundError: the data set declares classes but has no ``cases.csv``.
        """
        schema = ClassSchema.from_dataset_json(self.dataset_json)
        cases = None if schema is None else read_cases(Path(self.input_folder) / CASES_FILE, schema.class_names)
        fingerprint = super().run(overwrite_existing)
        if schema is not None and cases is not None:
            training = [cases[name] for name in self.dataset if name in cases]
            patients = {
                name: {case.patient for case in training if case.tumour_class == name}
                for name in ("", *schema.class_names)
            }
            counts = Counter(case.tumour_class for case in training)
            fingerprint["classification"] = {
                name or "unknown": {"cases": counts[name], "patients": len(patients[name] - {""})} for name in patients
            }
            write_json_atomic(Path(nnUNet_preprocessed) / self.dataset_name / "dataset_fingerprint.json", fingerprint)
        return fingerprint
