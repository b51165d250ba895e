"""What the planner decides about batch, patch and network, in words: plans carry them under ``braintum_decisions``."""

from collections.abc import Mapping, Sequence
from typing import Any

from braintum.planner.planning.presets import PlannerPreset

DECISIONS_ENTRY = "braintum_decisions"


def batch_size(
    preset: PlannerPreset,
    *,
    memory_limit: int,
    dataset_limit: int,
    num_classes: int,
    is_2d: bool,
    smallest: int,
    gigabytes: float,
) -> tuple[int, str]:
    """Batch size from what fits the memory and what nnU-Net's 5 % rule allows, and the reason.

    The 5 % rule gives a data set of 60 slices a batch of 3: half the classes are missing from it. A 2-D batch of a
    multi-task model is at least ``min_batch_size_2d`` and ``min_cases_per_class`` a class, if the memory allows.

    Args:
        preset: the rules.
        memory_limit: largest batch that fits.
        dataset_limit: patches that hold 5 % of the data set's voxels.
        num_classes: tumour classes; 0 for a model that only segments.
        is_2d: a 2-D configuration.
        smallest: nnU-Net's own minimum.
        gigabytes: memory target, for the reason.
    """
    wanted, why = dataset_limit, f"5 % of the data set, nnU-Net's limit against overfitting, are {dataset_limit}"
    if is_2d and preset.batch_size_2d is not None:
        wanted = preset.batch_size_2d
        why = f"{preset.paper} has it (nnU-Net's 5 % rule: {dataset_limit}; {gigabytes:g} GB: {memory_limit})"
    elif is_2d and num_classes:
        per_class = preset.min_cases_per_class * num_classes
        wanted = max(dataset_limit, per_class, preset.min_batch_size_2d)
        if wanted > dataset_limit and wanted == per_class:
            why = (
                f"{num_classes} classes need {preset.min_cases_per_class} cases each (nnU-Net's 5 % rule: "
                f"{dataset_limit}; {gigabytes:g} GB: {memory_limit})"
            )
        elif wanted > dataset_limit:
            why = (
                f"a classifier needs {wanted} cases at least (nnU-Net's 5 % rule: {dataset_limit}; {gigabytes:g} GB: "
                f"{memory_limit})"
            )
    if memory_limit < wanted:
        why = f"{gigabytes:g} GB hold no more; without that limit: {wanted}, as {why}"
    size = max(min(memory_limit, wanted), smallest)
    if size > min(memory_limit, wanted):
        why = f"that is nnU-Net's minimum (data set: {wanted}, {gigabytes:g} GB: {memory_limit})"
    return size, f"batch {size} because {why}"


def describe_patch(
    patch_size: Sequence[int], median_shape: Sequence[float], largest_shape: Sequence[int], percentile: int | None
) -> str:
    """The patch and what it covers.

    Args:
        patch_size: ([z,] y, x).
        median_shape: of the images at the target spacing.
        largest_shape: largest edge of the images along each axis, at the target spacing.
        percentile: the percentile of the slices' edges that the patch was made to cover, if there is one.
    """
    patch = f"patch {times(patch_size)}"
    median = f"median {times(round(edge) for edge in median_shape)}"
    if all(edge >= largest for edge, largest in zip(patch_size, largest_shape, strict=True)):
        reason = f"it covers every image (largest edges {times(largest_shape)}, {median}): the class needs the context"
    elif percentile is not None:
        reason = (
            f"it covers the slices up to the {percentile}th percentile of their edges ({median}, largest edges "
            f"{times(largest_shape)}); the largest do not fit the memory or would be mostly padding for the others"
        )
    elif all(edge >= shape for edge, shape in zip(patch_size, median_shape, strict=True)):
        reason = f"it covers the median image (largest edges {times(largest_shape)})"
    else:
        reason = f"more does not fit the memory ({median}); larger images are seen in parts"
    return f"{patch} because {reason}"


def describe_topology(plan: Mapping[str, Any], smallest_edge: int) -> str:
    """Network, stages and features of one configuration.

    Args:
        plan: with ``architecture``.
        smallest_edge: what feature maps are halved down to.
    """
    name = plan["architecture"]["network_class_name"].rpartition(".")[2]
    arguments = plan["architecture"]["arch_kwargs"]
    features = arguments["features_per_stage"]
    factors = [1] * len(plan["patch_size"])
    for stride in arguments["strides"]:
        factors = [factor * step for factor, step in zip(factors, stride, strict=True)]
    deepest = times(edge // factor for edge, factor in zip(plan["patch_size"], factors, strict=True))
    return (
        f"{name} with {len(features)} stages of {features[0]} to {features[-1]} features because halving the patch, "
        f"coarse axes later, ends at {deepest} (no edge below {smallest_edge})"
    )


def times(edges: Any) -> str:
    """Edges as text, such as 512 x 512."""
    return " x ".join(str(int(edge)) for edge in edges)
