"""Python API: fingerprint, plans and preprocessing in one call, by nnU-Net's own functions."""

from collections.abc import Sequence
from pathlib import Path

import nnunetv2
from nnunetv2.experiment_planning import plan_and_preprocess_api as stock
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from braintum.commands.boundary import api_function
from braintum.commands.errors import RunError
from braintum.commands.model_arguments import dataset_name
from braintum.conversion.files.parallel import default_processes

__all__ = ["plan"]

_PLANNING = str(Path(nnunetv2.__path__[0]) / "experiment_planning")


@api_function()
def plan(
    dataset: int | str,
    *,
    planner: str = "BrainTumPlanner",
    configurations: Sequence[str] = ("2d",),
    fingerprint_extractor: str = "BrainTumFingerprintExtractor",
    spacing: Sequence[float] | None = None,
    plans_name: str | None = None,
    gpu_memory: float | None = None,
    num_processes: int | None = None,
    check_integrity: bool = True,
    overwrite_fingerprint: bool = False,
    preprocess: bool = True,
) -> Path:
    """Plan a data set and preprocess it, as ``nnUNetv2_plan_and_preprocess`` does.

    Example:
        >>> plans = bt.plan(901, planner="BrainTumPlannerLight", configurations=["2d"])
        >>> plans.name
        'BrainTumLightPlans.json'

    Args:
        dataset: number or name of a data set in ``nnUNet_raw``.
        planner: nnU-Net's or ours, by name.
        configurations: to preprocess, such as ``2d`` and ``3d_fullres``.
        fingerprint_extractor: nnU-Net's or ours, by name.
        spacing: of the preprocessed images in mm, as ``-overwrite_target_spacing``; None leaves it to the planner.
        plans_name: None for the planner's own.
        gpu_memory: that a training may take, in GB; None for the planner's own target.
        num_processes: that work at the same time; None for as many as there are cores to use.
        check_integrity: read every image and label map first, and refuse what does not fit together.
        overwrite_fingerprint: of an earlier run; otherwise it is kept, as by nnU-Net.
        preprocess: False only plans.

    Returns:
        The plans file in ``nnUNet_preprocessed``; its stem is what :func:`braintum.train` calls ``plans``.

    Raises:
        InputError: no such data set, planner, extractor or configuration, or faulty data.
        FileError: a file is missing, or cannot be written.
        RunError: nnU-Net's workers died, or it found faults in the data; its output before says which.
    """
    name = dataset_name(dataset)
    number = int(name[7:10])
    num_processes = num_processes or default_processes()
    for wanted in (fingerprint_extractor, planner):
        if recursive_find_python_class(_PLANNING, wanted, "nnunetv2.experiment_planning") is None:
            raise ValueError(f"nnU-Net finds no class {wanted}; check the name, or run braintum_register")
    try:
        stock.extract_fingerprints(
            [number], fingerprint_extractor, num_processes, check_integrity, overwrite_fingerprint, verbose=False
        )
        identifier = stock.plan_experiments(
            [number],
            planner,
            gpu_memory_target_in_gb=gpu_memory,
            overwrite_target_spacing=None if spacing is None else tuple(spacing),
            overwrite_plans_name=plans_name,
        )
        file = Path(nnUNet_preprocessed) / name / f"{identifier}.json"
        possible = PlansManager(str(file)).available_configurations
        if unknown := [configuration for configuration in configurations if configuration not in possible]:
            raise ValueError(f"{file} has no configuration {unknown[0]}; choose from {', '.join(sorted(possible))}")
        if preprocess:
            stock.preprocess([number], identifier, list(configurations), [num_processes])
    except NotImplementedError:
        raise
    except (RuntimeError, AssertionError) as error:  # assertions: of nnU-Net's check of the data set
        raise RunError(f"planning {name} failed: {error}") from error
    return file
