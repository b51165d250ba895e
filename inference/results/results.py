"""What is written of a case's class: one JSON a case, and one table."""

import csv
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO

from braintum.conversion.files.atomic import atomic_path
from braintum.conversion.files.json_files import read_json_object
from braintum.conversion.format.cases import ClassSchema
from braintum.inference.prediction.class_evidence import ClassVerdict

CLASSES_FOLDER = "classes"
CLASSES_FILE = "classes.csv"
CASE_FILES = "[!.]*.json"  # what is being written, or was when a process was killed, begins with a dot
UNCERTAINTIES = ("predictive_entropy", "mutual_information")


def _interval(bounds: Sequence[float | None] | None) -> str:
    """Two numbers in words; empty for none."""
    if bounds is None:
        return ""
    low, high = bounds
    return f"{low:.1f} or more" if high is None else f"{low:.1f} to {high:.1f}"


_TRUST: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "review": lambda found: "yes" if found["review"] else "no",
    "expected_dice": lambda found: f"{found['expected_dice']:.3f}" if "expected_dice" in found else "",
    "class_set": lambda found: "|".join(found["class_set_of_each"]),
    "volume_interval": lambda found: _interval(found.get("volume_interval")),
}
"""Column of ``classes.csv`` → cell, from what :func:`braintum.inference.results.trust.trust_of_case` says."""


def case_result(
    case: str, verdict: ClassVerdict, schema: ClassSchema, tumour_volume: tuple[float, str]
) -> dict[str, Any]:
    """What is known of a predicted case, ready for JSON.

    Args:
        case: identifier.
        verdict: aggregated class evidence.
        schema: class names, in the order of the verdict.
        tumour_volume: of the predicted segmentation, and its unit.

    Returns:
        ``case``, ``predicted_class``, ``confidence``, ``probabilities``, ``per_fold``, ``fold_spread`` and
        ``mirror_spread`` (standard deviations; None where there is one fold or no mirroring), ``predictive_entropy``
        and ``mutual_information`` (in nats; the latter None where there is one fold and no mirroring),
        ``mask_agreement`` (of mirrored passes; None where not known), ``tumour_evidence``, ``tumour_volume`` and
        ``volume_unit``; where the model segments several labels also
        ``by_region``, the probabilities if the classifier sees one of them only.
    """

    def by_class(values: np.ndarray) -> dict[str, float | None]:
        return {
            name: None if np.isnan(value) else float(value)
            for name, value in zip(schema.class_names, values, strict=True)
        }

    volume, unit = tumour_volume
    winner = int(verdict.probabilities.argmax())
    return {
        "case": case,
        "predicted_class": schema.class_names[winner],
        "confidence": float(verdict.probabilities[winner]),
        "probabilities": by_class(verdict.probabilities),
        "per_fold": [by_class(fold) for fold in verdict.per_fold],
        "fold_spread": by_class(verdict.fold_spread),
        "mirror_spread": by_class(verdict.mirror_spread),
        **({"by_region": {name: by_class(p) for name, p in verdict.by_region.items()}} if verdict.by_region else {}),
        "predictive_entropy": verdict.predictive_entropy,
        "mutual_information": None if np.isnan(verdict.mutual_information) else verdict.mutual_information,
        "mask_agreement": None if np.isnan(verdict.agreement) else verdict.agreement,
        "tumour_evidence": verdict.tumour_evidence,
        "tumour_volume": volume,
        "volume_unit": unit,
    }


def tumour_volume_in_file(segmentation_file: Path, reader_writer: BaseReaderWriter) -> tuple[float, str]:
    """As :func:`tumour_volume`, of a segmentation that is written already.

    Args:
        segmentation_file: its file.
        reader_writer: nnU-Net's, for that file.
    """
    segmentation, properties = reader_writer.read_seg(str(segmentation_file))
    return tumour_volume(segmentation[0], properties["spacing"], isinstance(reader_writer, NaturalImage2DIO))


def tumour_volume(segmentation: np.ndarray, spacing: Sequence[float], is_picture: bool) -> tuple[float, str]:
    """Size of the foreground of a segmentation, and its unit.

    Args:
        segmentation: (Z, Y, X).
        spacing: as nnU-Net's readers give it, Z, Y, X.
        is_picture: without a spacing in mm.

    Returns:
        mm3 for volumes, mm2 for single slices with a spacing, px for pictures.
    """
    voxels = int(np.count_nonzero(segmentation))
    if is_picture:
        return float(voxels), "px"
    if segmentation.shape[0] == 1:  # the first spacing of a 2-D file is nnU-Net's placeholder
        return voxels * float(np.prod(spacing[1:])), "mm2"
    return voxels * float(np.prod(spacing)), "mm3"


def write_classes_csv(file: Path, results: Iterable[Mapping[str, Any]], schema: ClassSchema, **columns: Any) -> None:
    """One row a case, sorted: ``case, predicted_class, confidence, probability_<class> …, tumour_volume, volume_unit,
    predictive_entropy, mutual_information``; with calibrated results also ``verdict``, ``review``, ``expected_dice``,
    ``class_set`` and ``volume_interval`` before ``predicted_class``, and where images were looked at ``warnings``,
    last.

    Args:
        file: replaced as a whole.
        results: as of :func:`case_result` or :func:`braintum.inference.results.calibration.result_of`.
        schema: class names.
        **columns: additional columns behind ``case``: name = mapping from case to value.
    """
    results = list(results)
    # a class that post-processing withheld leaves nothing to be certain of
    verdicts = {
        result["case"]: result["calibration"]["verdict"] if result["predicted_class"] else ""
        for result in results
        if "calibration" in result
    }
    if verdicts:
        columns["verdict"] = verdicts
    trusted = {result["case"]: result["trust"] for result in results if "trust" in result}
    if trusted:
        columns |= {name: {case: cell(found) for case, found in trusted.items()} for name, cell in _TRUST.items()}
    warnings = ("warnings",) if any("warnings" in result for result in results) else ()
    write_results_table(file, "case", results, schema, columns, uncertainties=UNCERTAINTIES, remarks=warnings)


def write_results_table(
    file: Path,
    subject: str,
    results: Iterable[Mapping[str, Any]],
    schema: ClassSchema,
    columns: Mapping[str, Mapping[str, Any]],
    counts: Sequence[str] = (),
    uncertainties: Sequence[str] = (),
    remarks: Sequence[str] = (),
) -> None:
    """One row a case or patient, sorted.

    Args:
        file: replaced as a whole.
        subject: key of ``results`` that names the row, and the first column.
        results: with the keys of the table's columns, and ``probabilities``.
        schema: class names.
        columns: additional columns behind the first: name = mapping from its value.
        counts: keys of ``results`` that follow the probabilities.
        uncertainties: keys of ``results`` that follow the volume; empty where a result lacks them.
        remarks: keys of ``results`` with lists of sentences, which come last.
    """
    header = [subject, *columns, "predicted_class", "confidence"]
    header += [f"probability_{name}" for name in schema.class_names]
    header += [*counts, "tumour_volume", "volume_unit", *uncertainties, *remarks]
    with atomic_path(file) as temporary, open(temporary, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(header)
        for result in sorted(results, key=lambda result: result[subject]):
            writer.writerow(
                [
                    result[subject],
                    *(values.get(result[subject], "") for values in columns.values()),
                    result["predicted_class"],
                    f"{result['confidence']:.6f}",
                    *(f"{result['probabilities'][name]:.6f}" for name in schema.class_names),
                    *(result[count] for count in counts),
                    "" if result["tumour_volume"] is None else f"{result['tumour_volume']:.3f}",
                    result["volume_unit"],
                    *("" if (value := result.get(name)) is None else f"{value:.6f}" for name in uncertainties),
                    *("; ".join(result.get(name, ())) for name in remarks),
                ]
            )


def merge_case_results(classes_folder: Path, file: Path, schema: ClassSchema) -> int:
    """Gather all ``<case>.json`` of a folder in one table; parallel and continued runs so compose.

    Returns:
        The number of cases.

    Raises:
        ValueError: see :func:`read_case_results`.
    """
    results = read_case_results(classes_folder, schema)
    write_classes_csv(file, results, schema)
    return len(results)


def read_case_results(classes_folder: Path, schema: ClassSchema) -> list[dict[str, Any]]:
    """All ``<case>.json`` of a folder, as of :func:`case_result`.

    Raises:
        ValueError: a file that is no result of a model with these classes.
    """
    results = []
    for file in sorted(classes_folder.glob(CASE_FILES)):
        with suppress(FileNotFoundError):  # another process predicts this case anew
            results.append(read_case_result(file, schema.class_names))
    return results


def read_case_result(file: Path, class_names: Sequence[str]) -> dict[str, Any]:
    """One ``<case>.json``, as of :func:`case_result`.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is no result of a model with these classes.
    """
    remedy = "predict into another folder, or delete it"
    try:
        result = read_json_object(file, remedy)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ValueError(f"{file}: cannot be read ({error.strerror or error}); {remedy}") from error
    numbers = [result.get("confidence"), result.get("tumour_volume"), result.get("tumour_evidence", 1)]
    numbers += [result[name] for name in UNCERTAINTIES if result.get(name) is not None]
    probabilities = result.get("probabilities")
    if isinstance(probabilities, dict):
        numbers += probabilities.values()
    if (
        not isinstance(probabilities, dict)
        or set(probabilities) != set(class_names)
        or result.get("predicted_class") not in ("", *class_names)
        or result.get("case") != file.stem
        or not isinstance(result.get("volume_unit"), str)
        or not all(type(value) in (int, float) and math.isfinite(value) for value in numbers)
    ):
        raise ValueError(f"{file} is no result of a model with the classes {', '.join(class_names)}; {remedy}")
    return result
