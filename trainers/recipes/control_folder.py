"""Where models go that are trained for comparison only, and must not be taken for the data set's own."""

from pathlib import Path

from braintum.trainers.recipes.settings import TrainingSettings


def control_folder(folder: str | None, fold: int | str) -> str | None:
    """The folder of a model; a control's is within ``nnUNet_results/permuted_labels_SEED`` or ``split_by_…``.

    nnU-Net's commands find the model with ``nnUNet_results`` set to that folder.

    Args:
        folder: ``nnUNet_results/DATASET/MODEL``, or None where there is no such variable.
        fold: that is trained.

    Returns:
        The folder, as it is where no control is asked for.

    Raises:
        NotImplementedError: a control of fold "all", which holds nothing out.
    """
    settings = TrainingSettings.from_environment()
    controls = {
        "braintum_permuted_labels": f"permuted_labels_{settings.permuted_labels}",
        "braintum_split_by": f"split_by_{settings.split_by}",
    }
    if settings.permuted_labels is None:
        del controls["braintum_permuted_labels"]
    if settings.split_by == "patient":
        del controls["braintum_split_by"]
    if controls and fold == "all":
        raise NotImplementedError(f"{next(iter(controls))} needs held-out cases: train a numbered fold, not all")
    if folder is None or not controls:
        return folder
    *results, dataset, model = Path(folder).parts
    return str(Path(*results, *controls.values(), dataset, model))
