"""The control of permuted labels: the same training on classes that have nothing to do with the images."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from unittest.mock import patch

from braintum.conversion.format.cases import Case
from braintum.evaluation.results.label_permutation import permuted_classes, share_unchanged
from braintum.trainers.classes.class_supervision import ClassLabels
from braintum.trainers.recipes.settings import TrainingSettings

PERMUTATION_SEED = "permuted_labels"
"""Entry of a checkpoint."""

_RESULTS = "nnUNet_results"


@contextmanager
def control_results_folder(fold: int | str) -> Iterator[None]:
    """Within, a control's results folder is ``nnUNet_results/permuted_labels_SEED``: no honest model is ever there.

    nnU-Net's commands find the model with ``nnUNet_results`` set to that folder.

    Raises:
        NotImplementedError: a control of fold "all", which holds nothing out.
    """
    seed = TrainingSettings.from_environment().permuted_labels
    if seed is None:
        yield
        return
    if fold == "all":
        raise NotImplementedError("braintum_permuted_labels needs held-out cases: train a numbered fold, not all")
    results = os.environ.get(_RESULTS)
    changed = {} if results is None else {_RESULTS: os.path.join(results, f"permuted_labels_{seed}")}
    with patch.dict(os.environ, changed):
        yield


def with_permuted_training(
    labels: ClassLabels, cases: Mapping[str, Case], training: Sequence[str], seed: int
) -> tuple[ClassLabels, float]:
    """Labels whose classes are permuted among the training patients; those of all other cases are true.

    Args:
        labels: the true ones.
        cases: rows of ``cases.csv``.
        training: names of the training cases.
        seed: of the permutation.

    Returns:
        The labels, and the share of the training cases whose class happens to be the same.
    """
    schema = labels.schema
    permuted = permuted_classes([cases[case] for case in training if case in cases], seed, schema.negative_class)
    changed = {case: schema.index(tumour_class) for case, tumour_class in permuted.items()}
    mixed = replace(labels, label_of_case={**labels.label_of_case, **changed}, permutation_seed=seed)
    return mixed, share_unchanged(cases, permuted)
