"""All figures of every case of a set of predictions, before any mean."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from braintum.conversion.files.atomic import atomic_path
from braintum.conversion.format.label_names import LabelOrRegion, named_labels, whole_tumour
from braintum.conversion.format.patients import patient_of_cases
from braintum.conversion.format.splits import tied_cases
from braintum.evaluation.metrics.joint_metrics import UNKNOWN
from braintum.evaluation.metrics.segmentation_metrics import folder_metrics
from braintum.evaluation.results.predictions import Predictions


@dataclass(frozen=True)
class CaseTable:
    """One row a case.

    Attributes:
        predictions: what was evaluated; the order of its masks is that of the rows.
        labels: name → label or region.
        per_case: as of :func:`braintum.evaluation.metrics.segmentation_metrics.folder_metrics`.
    """

    predictions: Predictions
    labels: Mapping[str, LabelOrRegion]
    per_case: list[dict[str, Any]]

    @cached_property
    def cases(self) -> list[str]:
        """Case names."""
        return list(self.predictions.masks)

    @property
    def unit(self) -> str:
        """Unit of length: mm, or px where the files know no spacing."""
        return self.per_case[0]["length_unit"]

    def metric(self, label: str, name: str) -> np.ndarray:
        """One metric of one label, (cases,); NaN where undefined."""
        key = self.labels[label]
        return np.array([case["metrics"][key][name] for case in self.per_case], dtype=np.float64)

    @cached_property
    def metric_names(self) -> list[str]:
        """Names of all mask metrics."""
        return list(next(iter(self.per_case[0]["metrics"].values())))

    @cached_property
    def dice(self) -> np.ndarray:
        """Mean Dice over the labels of ``dataset.json`` that a case truly has, (cases,); NaN where it has none."""
        declared = [label for label in self.labels if label in self.predictions.dataset_json["labels"]]
        return _mean_over_defined(
            np.stack([np.where(self.shows(label), self.metric(label, "Dice"), np.nan) for label in declared])
        )

    def shows(self, label: str) -> np.ndarray:
        """Which cases truly have voxels of a label, (cases,) bool."""
        return self.metric(label, "n_ref") > 0

    @property
    def whole_tumour(self) -> str:
        """Name of the label or region that holds all others."""
        name = whole_tumour(self.labels)
        if name is None:
            raise RuntimeError("named_labels() always gives a label that holds all others")
        return name

    @cached_property
    def true_volume(self) -> np.ndarray:
        """Size of the true foreground, (cases,), mm³ or mm² or px; NaN where everything is ignored (no mask known)."""
        return np.where(self.has_truth, self.metric(self.whole_tumour, "true_volume"), np.nan)

    @cached_property
    def has_truth(self) -> np.ndarray:
        """Cases with any voxel that is not ignored, (cases,) bool."""
        counts = [self.metric(self.whole_tumour, name) for name in ("TP", "FP", "FN", "TN")]
        return np.sum(counts, axis=0) > 0

    @cached_property
    def predicted_volume(self) -> np.ndarray:
        """Size of the predicted foreground, (cases,); NaN where everything is ignored, and nothing of it is counted."""
        return np.where(self.has_truth, self.metric(self.whole_tumour, "predicted_volume"), np.nan)

    @cached_property
    def true_class(self) -> np.ndarray:
        """Index of each true class, (cases,) int64; ``UNKNOWN`` without one."""
        rows = self.predictions.cases
        return self._indices({case: rows[case].tumour_class for case in self.cases if case in rows})

    @cached_property
    def predicted_class(self) -> np.ndarray:
        """Index of each predicted class, (cases,) int64; ``UNKNOWN`` where withheld or not predicted."""
        results = self.predictions.class_results
        return self._indices({case: str(result["predicted_class"]) for case, result in results.items()})

    def _indices(self, class_of_case: Mapping[str, str]) -> np.ndarray:
        schema = self.predictions.schema
        names = [class_of_case.get(case, "") for case in self.cases]
        return np.array([schema.index(name) if schema is not None and name else UNKNOWN for name in names], np.int64)

    @cached_property
    def probabilities(self) -> np.ndarray | None:
        """Class probabilities, (cases, classes); None for a model without classes."""
        return self.probabilities_of("probabilities")

    @property
    def class_is_predicted(self) -> bool:
        """Whether the model predicts classes."""
        return self.probabilities is not None

    def probabilities_of(self, entry: str, key: str | None = None) -> np.ndarray | None:
        """Class probabilities that the class results hold under ``entry`` (and ``key`` in it), (cases, classes).

        Returns:
            None where the results of some case lack them.
        """
        schema, results = self.predictions.schema, self.predictions.class_results
        if schema is None or not results:
            return None
        rows = []
        for case in self.cases:
            found = results[case].get(entry)
            found = found.get(key) if key is not None and isinstance(found, Mapping) else found
            if not found:
                return None
            rows.append([float(found[name]) for name in schema.class_names])
        table = np.array(rows)
        return table / table.sum(1, keepdims=True)  # written with six digits

    @cached_property
    def negative_index(self) -> int | None:
        """Index of the healthy class."""
        schema = self.predictions.schema
        return None if schema is None or schema.negative_class is None else schema.index(schema.negative_class)

    @cached_property
    def patients(self) -> list[str]:
        """Patient of each case; a case without one is its own."""
        rows = self.predictions.cases
        found = patient_of_cases(self.cases, {case: row.patient for case, row in rows.items()})
        return [found[case] for case in self.cases]

    @cached_property
    def clusters(self) -> list[str]:
        """What each case belongs to when cases are resampled: its patient and near-duplicate group."""
        rows = self.predictions.cases
        cluster = {case: group[0] for group in tied_cases(rows.values()) for case in group}
        return [cluster.get(case, case) for case in self.cases]

    @property
    def knows_patients(self) -> bool:
        """Whether ``cases.csv`` names the patients."""
        return any(row.patient for row in self.predictions.cases.values())

    def without(self, faults: Mapping[str, str]) -> "CaseTable":
        """The same without some cases: of models side by side, those that cannot be evaluated for one of them.

        Args:
            faults: case → what is wrong with it.
        """
        rows = [row for row in self.per_case if row["case"] not in faults]
        return CaseTable(self.predictions.without(faults), self.labels, rows)

    def write_csv(self, file: Path) -> None:
        """One row a case: truth, prediction, and every metric of every label."""
        schema, rows, results = self.predictions.schema, self.predictions.cases, self.predictions.class_results
        classes = [] if schema is None or self.probabilities is None else list(schema.class_names)
        header = ["case", "fold", "patient", "true_class", "predicted_class"]
        header += [f"probability_{name}" for name in classes]
        header += [f"{label}: {metric}" for label in self.labels for metric in self.metric_names]
        with atomic_path(file) as temporary, open(temporary, "w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(header)
            for case, figures in zip(self.cases, self.per_case, strict=True):
                row, result = rows.get(case), results.get(case)
                probabilities = result["probabilities"] if result else {}
                writer.writerow(
                    [
                        case,
                        self.predictions.fold_of_case.get(case, ""),
                        row.patient if row else "",
                        row.tumour_class if row else "",
                        result["predicted_class"] if result else "",
                        *(f"{probabilities[name]:.6f}" for name in classes),
                        *(
                            _cell(figures["metrics"][key][metric])
                            for key in self.labels.values()
                            for metric in self.metric_names
                        ),
                    ]
                )


def case_table(predictions: Predictions, n_processes: int = 1, strict: bool = True) -> CaseTable:
    """Compute every figure of every case.

    Args:
        predictions: what to evaluate.
        n_processes: number of processes.
        strict: a case whose files are damaged or do not match is an error; otherwise it is left out and noted in the
            table's ``predictions.failed``.

    Raises:
        ValueError: prediction and truth of a case do not match, or of all of them.
    """
    labels = named_labels(predictions.dataset_json)
    files = [(case, predictions.references[case], mask) for case, mask in predictions.masks.items()]
    per_case = folder_metrics(
        files,
        predictions.reader_writer,
        list(labels.values()),
        predictions.dataset_json["labels"].get("ignore"),
        n_processes,
        strict=strict,
    )
    faults = {case["case"]: case["fault"] for case in per_case if "fault" in case}
    return CaseTable(
        predictions.without(faults) if faults else predictions,
        labels,
        [case for case in per_case if "fault" not in case],
    )


def _mean_over_defined(values: np.ndarray) -> np.ndarray:
    """Mean over the first axis of what is defined; NaN where nothing is."""
    defined = np.isfinite(values)
    counts = defined.sum(0)
    sums = np.where(defined, values, 0).sum(0)
    return np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)


def _cell(value: float) -> str:
    return "" if not np.isfinite(value) else f"{value:.6g}"
