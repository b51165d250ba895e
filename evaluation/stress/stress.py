"""Stress test: how Dice and accuracy of a trained model fall when its images get worse.

Images are corrupted in files, predicted by the command that a user types and evaluated as all predictions are: what is
measured is the tool, preprocessing included, and not a network apart from it.
"""

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from braintum.conversion.files.parallel import run_cases
from braintum.conversion.format.cases import Case
from braintum.evaluation.metrics.joint_metrics import UNKNOWN
from braintum.evaluation.metrics.statistics import NUM_RESAMPLES, Estimate, bootstrap_means
from braintum.evaluation.results.case_table import CaseTable, case_table
from braintum.evaluation.results.predictions import Predictions, read_class_results
from braintum.evaluation.stress.corruptions import SEVERITIES
from braintum.evaluation.stress.stress_images import CLEAN, Condition, ImageTask, write_images

METRICS = ("Dice", "accuracy")
DISK_BUDGET = 4 * 2**30
"""Bytes of corrupted images that may lie on the disk at one time."""
GROWTH = 4
"""How much larger files may become: noise compresses badly."""


@dataclass(frozen=True)
class CaseGroup:
    """Cases that are predicted together.

    Attributes:
        folds: of the model; None for all that are trained.
        images: case → files, one a sequence.
        references: case → true segmentation.
    """

    folds: tuple[int, ...] | None
    images: Mapping[str, tuple[Path, ...]]
    references: Mapping[str, Path]


@dataclass(frozen=True)
class StressTest:
    """What to test.

    Attributes:
        name: of the model.
        groups: no case in two of them.
        corruptions: names of the faults.
        dataset_json: of the model.
        cases: case → row of ``cases.csv``; empty if there is none.
        keep_background: see :func:`braintum.evaluation.stress.corruptions.corrupt`.
    """

    name: str
    groups: Sequence[CaseGroup]
    corruptions: Sequence[str]
    dataset_json: Mapping[str, Any]
    cases: Mapping[str, Case] = field(default_factory=dict)
    keep_background: bool = False

    @property
    def conditions(self) -> list[Condition]:
        """The images themselves, and every fault at every severity."""
        return [
            Condition(CLEAN, 0),
            *(Condition(name, severity) for name in self.corruptions for severity in SEVERITIES),
        ]

    @property
    def ending(self) -> str:
        """Ending of all image files."""
        return str(self.dataset_json["file_ending"])


Predictor = Callable[[Path, Path, tuple[int, ...] | None], None]
"""Predicts a folder of images into another folder, with these folds of the model."""


@dataclass(frozen=True)
class PredictionCommand:
    """``braintum_predict``, or ``nnUNetv2_predict`` for a model without classes, as a command of its own.

    Attributes:
        model: arguments that name the model, such as ``-d 511 -c 2d -p BrainTumPlans -tr nnUNetTrainerMultiTask``.
        predicts_classes: whether the model has a classification head.
        options: more arguments, such as ``-device cpu``.
    """

    model: tuple[str, ...]
    predicts_classes: bool = True
    options: tuple[str, ...] = ()

    def __call__(self, images: Path, output: Path, folds: tuple[int, ...] | None) -> None:
        """Predict a folder.

        Raises:
            ValueError: the command failed, or there is none.
        """
        name = "braintum_predict" if self.predicts_classes else "nnUNetv2_predict"
        program = Path(sys.executable).parent / name
        command = [str(program), "-i", str(images), "-o", str(output), *self.model, *self.options]
        if folds is not None:
            command += ["-f", *map(str, folds)]
        try:
            code = subprocess.run(command, check=False).returncode
        except FileNotFoundError as error:
            raise ValueError(f"{program} does not exist; install braintum where this Python is") from error
        if code != 0:
            raise ValueError(f"{' '.join(command)} failed with exit code {code}; its message is above")


@dataclass(frozen=True)
class StressResult:
    """Figures of every condition.

    Attributes:
        test: what was tested.
        table: every figure of every case under every condition.
        figures: condition → metric → estimate, with an interval over patients.
    """

    test: StressTest
    table: CaseTable
    figures: Mapping[Condition, Mapping[str, Estimate]]


def run_stress_test(
    test: StressTest, predict: Predictor, folder: Path, n_processes: int = 1, num_resamples: int = NUM_RESAMPLES
) -> StressResult:
    """Corrupt, predict and evaluate.

    Args:
        test: what to test.
        predict: such as :class:`PredictionCommand`.
        folder: gets temporary files, which are removed again.
        n_processes: for corrupting and evaluating.
        num_resamples: of the bootstrap over patients.

    Raises:
        ValueError: an image that cannot be read, or a failed prediction.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".stress-", dir=folder) as temporary:
        predicted = Path(temporary) / "predictions"
        for number, group in enumerate(test.groups):
            for part, conditions in enumerate(_portions(test.conditions, group)):
                images = Path(temporary) / f"images_{number}_{part}"
                images.mkdir()
                tasks = [
                    ImageTask(case, files, condition, images, test.ending, test.keep_background)
                    for case, files in group.images.items()
                    for condition in conditions
                ]
                run_cases(write_images, tasks, n_processes, "corrupting")
                predict(images, predicted, group.folds)
                for file in images.iterdir():
                    file.unlink()
        table = case_table(_predictions(test, predicted), n_processes)
    return StressResult(test, table, _figures(test, table, num_resamples))


def _portions(conditions: Sequence[Condition], group: CaseGroup) -> Iterator[Sequence[Condition]]:
    """Conditions whose images fit on the disk together: starting the prediction takes seconds."""
    size = GROWTH * sum(file.stat().st_size for files in group.images.values() for file in files)
    number = max(1, DISK_BUDGET // max(1, size))
    for start in range(0, len(conditions), number):
        yield conditions[start : start + number]


def _predictions(test: StressTest, predicted: Path) -> Predictions:
    """All predictions, condition by condition; case names carry the condition."""
    references = {case: file for group in test.groups for case, file in group.references.items()}
    named = {
        condition.case_name(case): (case, predicted / f"{condition.case_name(case)}{test.ending}")
        for condition in test.conditions
        for case in references
    }
    if missing := [str(mask) for _, mask in named.values() if not mask.is_file()]:
        raise ValueError(f"{len(missing)} cases were not predicted, such as {missing[0]}; see the messages above")
    predictions = Predictions(
        test.name,
        {name: mask for name, (_, mask) in named.items()},
        {name: references[case] for name, (case, _) in named.items()},
        test.dataset_json,
        cases={name: replace(test.cases[case], case=name) for name, (case, _) in named.items() if case in test.cases},
    )
    schema = predictions.schema
    results = {} if schema is None else read_class_results(predicted, schema)
    return replace(predictions, class_results={name: results[name] for name in named} if results else {})


def _figures(test: StressTest, table: CaseTable, num_resamples: int) -> dict[Condition, dict[str, Estimate]]:
    judged = (table.true_class != UNKNOWN) & (table.predicted_class != UNKNOWN)
    right = np.where(judged, table.true_class == table.predicted_class, np.nan)
    num_cases = len(table.cases) // len(test.conditions)
    figures = {}
    for number, condition in enumerate(test.conditions):
        rows = slice(number * num_cases, (number + 1) * num_cases)
        # a case without a patient is its own cluster, whatever its name under this condition
        clusters = table.clusters[rows]
        figures[condition] = bootstrap_means(
            {"Dice": table.dice[rows], "accuracy": right[rows]}, clusters, num_resamples
        )
    return figures
