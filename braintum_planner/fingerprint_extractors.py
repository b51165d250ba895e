"""The fingerprint that our planner reads: nnU-Net's, with intensities, tumours, classes and patients."""

import json
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name

from braintum.conversion.files.atomic import write_json_atomic
from braintum.conversion.files.json_files import check_is_v2
from braintum.conversion.files.orientation import ORIENTATIONS_ENTRY
from braintum.conversion.files.parallel import run_cases
from braintum.conversion.format.cases import CASES_FILE, ClassSchema, read_cases
from braintum.planner.fingerprint.case_fingerprint import COMPACT_TYPES, CaseFiles, CaseFingerprint, analyse_case
from braintum.planner.fingerprint.intensity_fingerprint import quantiles, summarise_channel
from braintum.planner.fingerprint.tumour_fingerprint import size_unit, summarise_tumours, undeclared_values
from braintum.planner.preprocessing.training_files import training_files

__all__ = ["BrainTumFingerprintExtractor"]

FINGERPRINT_ENTRY = "braintum"
NUM_FOREGROUND_SAMPLES = 10e7
"""nnU-Net's: voxels a channel that its intensity properties are computed from, all cases together."""
_MAX_SAMPLES = 5_000_000
"""Voxels a channel that our percentiles are computed from, all cases together."""
_MAX_SAMPLES_PER_CASE = 100_000
_SECONDS_IN_THIS_PROCESS = 15.0
"""Less work than this is done by this process: workers take several seconds to import nnU-Net and torch."""
_NNUNET_PERCENTILES = (0.5, 50.0, 99.5)
_COUNTED = (-(2**15), 2**16 - 1)  # whole numbers of 16 bits, signed or not
_NO_SPACING = (999.0, 1.0, 1.0)  # of nnU-Net's reader of PNG files


class BrainTumFingerprintExtractor(DatasetFingerprintExtractor):
    """nnU-Net's fingerprint with an entry ``braintum`` of its own; each file is read once.

    Stock planners read it like their own: what nnU-Net records is the same to the last bit, except that voxels of the
    ignore label do not count as foreground, and that a data set without any foreground (on which nnU-Net fails) gets
    the intensities of its non-zero voxels there.

    Args:
        dataset_name_or_id: as in nnU-Net.
        num_processes: upper limit; never more than there are processors.
        verbose: as in nnU-Net.

    Raises:
        FileNotFoundError: there are no training images.
        ValueError: ``dataset.json`` is of nnU-Net v1.
    """

    def __init__(self, dataset_name_or_id: int | str, num_processes: int = 8, verbose: bool = False) -> None:
        # not nnU-Net's own: it lists the training cases in a time that grows with their square
        self.verbose = verbose
        self.show_progress_bar = True
        self.dataset_name = maybe_convert_to_dataset_name(dataset_name_or_id)
        self.input_folder = str(Path(nnUNet_raw) / self.dataset_name)
        self.num_processes = num_processes
        dataset_json = Path(self.input_folder) / "dataset.json"
        self.dataset_json = json.loads(dataset_json.read_text(encoding="utf-8"))
        check_is_v2(self.dataset_json, dataset_json)
        self.dataset = training_files(Path(self.input_folder), self.dataset_json)
        self.num_foreground_voxels_for_intensitystats = NUM_FOREGROUND_SAMPLES

    def run(self, overwrite_existing: bool = False) -> dict:
        """Extract and save the fingerprint, unless there is one of ours; one of nnU-Net's is replaced.

        Raises:
            ValueError: bad class schema, ``cases.csv``, image or label map; the message names it.
            FileNotFoundError: the data set declares classes but has no ``cases.csv``.
        """
        file = Path(nnUNet_preprocessed) / self.dataset_name / "dataset_fingerprint.json"
        if file.is_file() and not overwrite_existing:
            existing = json.loads(file.read_text(encoding="utf-8"))
            if FINGERPRINT_ENTRY in existing:
                return existing
        schema = ClassSchema.from_dataset_json(self.dataset_json)
        cases_file = Path(self.input_folder) / CASES_FILE
        cases = None
        if schema is not None or cases_file.is_file():
            cases = read_cases(cases_file, None if schema is None else schema.class_names)
        channel_names = list((self.dataset_json.get("channel_names") or self.dataset_json["modality"]).values())
        analysed = self._analyse(len(channel_names))
        fingerprint = _nnunet_entries(list(analysed.values()), len(channel_names))
        tumours = {case: found.tumour for case, found in analysed.items()}
        label_files = {str(case): files["label"] for case, files in self.dataset.items()}
        fingerprint[FINGERPRINT_ENTRY] = {
            **_geometry(list(analysed.values())),
            "channels": [
                summarise_channel(name, {case: found.channels[number] for case, found in analysed.items()})
                for number, name in enumerate(channel_names)
            ],
            "tumours": summarise_tumours(tumours, self.dataset_json["labels"], schema, cases),
            "undeclared_values": undeclared_values(tumours, label_files, self.dataset_json["labels"]),
        }
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json_atomic(file, fingerprint)
        return fingerprint

    def _analyse(self, num_channels: int) -> dict[str, CaseFingerprint]:
        """Case -> what it adds.

        Raises:
            ValueError: a case is unusable or has another number of channels than ``dataset.json`` says.
        """
        first = next(iter(self.dataset.values()))["images"][0]
        reader = determine_reader_writer_from_dataset_json(self.dataset_json, first, verbose=self.verbose)
        num_foreground_samples = int(self.num_foreground_voxels_for_intensitystats // len(self.dataset))
        tasks = [
            CaseFiles(
                case=str(case),
                images=tuple(files["images"]),
                label=files["label"],
                reader=reader,
                ignore_label=self.dataset_json["labels"].get("ignore"),
                num_foreground_samples=num_foreground_samples,
                num_samples=max(1, min(_MAX_SAMPLES_PER_CASE, _MAX_SAMPLES // len(self.dataset))),
            )
            for case, files in self.dataset.items()
        ]
        start = time.perf_counter()
        analysed = [analyse_case(tasks[0])]
        expected_seconds = (time.perf_counter() - start) * len(tasks)
        workers = min(self.num_processes, os.cpu_count() or 1)
        if expected_seconds < _SECONDS_IN_THIS_PROCESS:
            workers = 1
        analysed += run_cases(analyse_case, tasks[1:], max(1, workers), "Extracting dataset fingerprint")
        for task, found in zip(tasks, analysed, strict=True):
            if len(found.channels) != num_channels:
                raise ValueError(
                    f"{', '.join(task.images)}: {len(found.channels)} channels, but dataset.json names {num_channels}; "
                    "every case needs one file CASE_XXXX for each (a missing sequence: a file of zeros)"
                )
        return {task.case: found for task, found in zip(tasks, analysed, strict=True)}


def _nnunet_entries(cases: Sequence[CaseFingerprint], num_channels: int) -> dict[str, Any]:
    """What nnU-Net's extractor records, computed as it computes it."""
    intensities = {}
    for channel in range(num_channels):
        samples = [case.foreground_samples[channel] for case in cases]
        if not any(sample.size for sample in samples):
            samples = [case.channels[channel].nonzero_sample for case in cases]
        # nnU-Net joins arrays of float32 with an empty list, which is of float64, for a case without foreground
        precision = np.float64 if any(not sample.size for sample in samples) else np.float32
        pooled = np.concatenate(samples, dtype=precision, casting="unsafe")
        intensities[str(channel)] = _intensity_properties(samples, pooled if pooled.size else np.zeros(1, precision))
    relative_sizes = [np.prod(case.shape_after_crop) / np.prod(case.shape) for case in cases]
    return {
        "spacings": [list(case.spacing) for case in cases],
        "shapes_after_crop": [list(case.shape_after_crop) for case in cases],
        "foreground_intensity_properties_per_channel": intensities,
        "median_relative_size_after_cropping": float(np.median(relative_sizes, 0)),
    }


def _intensity_properties(samples: Sequence[np.ndarray], pooled: np.ndarray) -> dict[str, float]:
    """nnU-Net's statistics of ``pooled``, which holds the same values as ``samples``."""
    percentiles = _percentiles_by_counting(samples, _NNUNET_PERCENTILES)
    if percentiles is None:
        percentiles = np.percentile(pooled, np.array(_NNUNET_PERCENTILES)).tolist()
    percentile_00_5, median, percentile_99_5 = percentiles
    return {
        "mean": float(np.mean(pooled)),
        "median": float(median),
        "std": float(np.std(pooled)),
        "min": float(np.min(pooled)),
        "max": float(np.max(pooled)),
        "percentile_99_5": float(percentile_99_5),
        "percentile_00_5": float(percentile_00_5),
    }


def _percentiles_by_counting(samples: Sequence[np.ndarray], percentiles: Sequence[float]) -> list[float] | None:
    """Percentiles of whole numbers without sorting: seconds less for nnU-Net's 100 million voxels.

    Returns:
        The percentiles, or None where they lie between two different values or a sample is not of a small integer type.
    """
    counts = np.zeros(_COUNTED[1] - _COUNTED[0] + 1, np.int64)
    for sample in samples:
        if sample.size and sample.dtype not in COMPACT_TYPES:
            return None
        counts += np.bincount(sample.astype(np.int64) - _COUNTED[0], minlength=counts.size)
    below = np.cumsum(counts)
    total = int(below[-1])
    if not total:
        return None
    found = []
    for percentile in percentiles:
        rank = percentile / 100 * (total - 1)
        # one rank further on either side than interpolation looks: rounding of the rank then decides nothing
        ranks = np.clip([np.floor(rank) - 1, np.ceil(rank) + 1], 0, total - 1)
        low, high = np.searchsorted(below, ranks, side="right")
        if low != high:
            return None
        found.append(float(low + _COUNTED[0]))
    return found


def _geometry(cases: Sequence[CaseFingerprint]) -> dict[str, Any]:
    spacings, shapes = np.array([case.spacing for case in cases]), np.array([case.shape for case in cases])
    is_2d = bool((shapes[:, 0] == 1).all())
    has_spacing = not all(case.spacing == _NO_SPACING for case in cases)
    return {
        "is_2d": is_2d,
        "unit": size_unit(is_2d, has_spacing),
        "spacing": _per_axis(spacings),
        "shape": _per_axis(shapes),
        "different_shapes": len({case.shape for case in cases}),
        "different_spacings": len({tuple(np.round(case.spacing, 4)) for case in cases}),
        ORIENTATIONS_ENTRY: dict(Counter(case.orientation for case in cases if case.orientation).most_common()),
        "anisotropy": quantiles((spacings[:, 1:] if is_2d else spacings).max(1) / spacings[:, 1:].min(1)),
    }


def _per_axis(values: np.ndarray) -> Mapping[str, Any]:
    return {axis: quantiles(values[:, index]) for index, axis in enumerate("zyx")}
