"""The control of permuted labels: the same training on classes that have nothing to do with the images."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from braintum.conversion.format.cases import Case
from braintum.evaluation.results.label_permutation import permuted_classes, share_unchanged
from braintum.trainers.classes.class_supervision import ClassLabels

PERMUTATION_SEED = "permuted_labels"
"""Entry of a checkpoint."""


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
