"""Python API: prediction, explanation, and trained models as networks."""

import os
import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from torch import nn
from torch._dynamo import OptimizedModule

from braintum.commands.boundary import api_function
from braintum.commands.errors import BraintumWarning
from braintum.commands.model_arguments import DEFAULT_CHECKPOINT
from braintum.conversion.format.calibration import Calibration
from braintum.inference import explain_folder as explanation
from braintum.inference import predict_folder as folders
from braintum.inference.explanation.explainers import choose_explainer
from braintum.inference.export.sessions import Engine
from braintum.inference.models.segmentation_predictor import SegmentationPredictor
from braintum.inference.predict_case import Image, Prediction, one_case, predict_case
from braintum.inference.prediction.aggregation_modes import AggregationMode
from braintum.inference.prediction.devices import usable_device
from braintum.inference.prediction.joint_predictor import JointPredictor
from braintum.inference.prediction.precision import Precision
from braintum.inference.prediction.preprocessing import ModelDescription, preprocess_array, preprocess_case
from braintum.inference.results.calibration import calibration_of

__all__ = ["explain", "load_model", "load_predictor", "predict", "predict_folder", "preprocess"]

FilePath = str | os.PathLike[str]
Model = FilePath | SegmentationPredictor
"""A model folder, which is then loaded as by :func:`load_predictor`, or what that returned."""


@api_function()
def load_predictor(
    model: FilePath,
    *,
    folds: Sequence[int | str] | None = None,
    checkpoint: str = DEFAULT_CHECKPOINT,
    device: str | torch.device | None = None,
    step_size: float = 0.5,
    mirroring: bool = True,
    classes: bool | None = None,
    onnx: bool | Engine = False,
    trust_checkpoint: bool = False,
    verbose: bool = False,
) -> SegmentationPredictor:
    """Load a trained model once, for many calls of :func:`predict`, :func:`predict_folder` and :func:`explain`.

    Example:
        >>> predictor = bt.load_predictor(folder.parent, folds=[0], device="cpu")
        >>> predictor.folds
        [0]

    Args:
        model: folder of a trained model, with ``plans.json`` and ``fold_X``.
        folds: to average, or ``["all"]``; None for all that are trained.
        checkpoint: file within each fold.
        device: such as ``cuda`` or ``cpu``; None for CUDA where there is it, else the CPU.
        step_size: of the sliding window, as a share of the patch.
        mirroring: average over mirrored images: slower, a little more accurate.
        classes: True to refuse models that predict none, False for the masks alone; None for classes where the model
            predicts them.
        onnx: run what ``braintum_export`` exported, on the CPU: by ``"onnxruntime"`` (or True) or ``"openvino"``.
        trust_checkpoint: load checkpoints that run code; know who made them.
        verbose: let nnU-Net say what it does.

    Raises:
        InputError: a file of the model is damaged or not safe, or it predicts no classes and is to; or no such device.
        MissingFileError: a file of the model is missing.
    """
    chosen = usable_device("cpu" if onnx and device is None else device)
    segmentation_class, joint_class = SegmentationPredictor, JointPredictor
    if onnx:
        from braintum.inference.export import onnx_predictor

        segmentation_class = onnx_predictor.OnnxSegmentationPredictor
        joint_class = onnx_predictor.OnnxJointPredictor
    with redirect_stdout(None):  # nnU-Net prints of every other device that it is not CUDA
        predictor = segmentation_class(
            tile_step_size=step_size,
            use_mirroring=mirroring,
            perform_everything_on_device=chosen.type == "cuda",
            device=chosen,
            verbose=verbose,
            allow_tqdm=False,  # nnU-Net shows a bar a case; ours counts cases
        )
    if isinstance(onnx, str):
        predictor.engine = onnx
    predictor.initialize_from_trained_model_folder(os.fspath(model), folds, checkpoint, trust_checkpoint)
    return joint_class.of(predictor) if classes or (classes is None and predictor.predicts_classes) else predictor


@api_function()
def predict(
    image: Image,
    model: Model,
    *,
    spacing: Sequence[float] | None = None,
    class_model: Model | None = None,
    probabilities: bool = False,
    calibrated: bool = False,
    aggregation: AggregationMode = "weighted",
    exact: bool = False,
    precision: Precision = "float32",
    resample_to: str | None = None,
) -> Prediction:
    """Predict mask and, where a model does so, class of one case: what ``braintum_predict`` writes of it, in memory.

    Example:
        >>> found = bt.predict("case_0000.nii.gz", predictor)
        >>> found.mask.shape, found.volume_unit
        ((64, 64), 'mm2')
        >>> found.predicted_class in found.class_probabilities
        True
        >>> array = np.random.default_rng(0).random((1, 64, 64), np.float32)  # (channel, [Z,] Y, X)
        >>> bt.predict(array, predictor, spacing=(0.9, 0.9)).mask.shape
        (64, 64)

    Args:
        image: the channels' files; or an array (channel, [Z,] Y, X), or one array ([Z,] Y, X) a channel, with the
            intensities and the orientation that a file of the training data would have.
        model: folder of a trained model, or what :func:`load_predictor` returned.
        spacing: of an array in mm, [Z,] Y, X; files have their own, and models of pictures (PNG) know none.
        class_model: predicts the classes, where ``model`` is to predict the masks only.
        probabilities: also return those of the voxels.
        calibrated: calibrate the probabilities with what ``braintum_calibrate`` stored in the model; ``details`` then
            also holds ``trust``: expected Dice, class sets, an interval of the size, and whether to review the case.
        aggregation: of class evidence over windows: ``weighted``, ``mean`` or ``max``.
        exact: nnU-Net's order of computation, whose masks are nnU-Net's; slower.
        precision: of the network on CPUs, as ``-precision``.
        resample_to: name of the channel on whose grid the files of a case are brought, by their headers, and its mask
            lies; None: they have to lie on one grid.

    Raises:
        InputError: the image cannot be read, is not what the model takes, or lacks its spacing.
        MissingFileError: a file is missing.
        UnsupportedError: the model turns images while it reads them.
    """
    predictor, class_predictor = _pair(model, class_model)
    case, given = one_case(image, spacing, ModelDescription.of(predictor))
    return predict_case(
        predictor,
        given,
        spacing,
        case,
        probabilities,
        class_predictor,
        aggregation,
        exact,
        precision,
        _calibration(predictor, class_predictor, aggregation) if calibrated else None,
        resample_to,
    )


@api_function()
def predict_folder(
    images: FilePath,
    output: FilePath,
    model: Model,
    *,
    class_model: Model | None = None,
    save_probabilities: bool = False,
    calibrated: bool = False,
    bounds: bool = False,
    continue_prediction: bool = False,
    num_parts: int = 1,
    part_id: int = 0,
    num_workers: int = 0,
    aggregation: AggregationMode = "weighted",
    cases: FilePath | None = None,
    exact: bool = False,
    precision: Precision = "float32",
    not_needed: Sequence[str] = (),
    resample_to: str | None = None,
    show_progress: bool = True,
    arguments: dict[str, Any] | None = None,
    part_file: FilePath | None = None,
) -> folders.PredictedFolder:
    """Predict every case in a folder, as ``braintum_predict`` does.

    Example:
        >>> outcome = bt.predict_folder("images", "predictions", predictor)
        >>> outcome.failed
        {}

    Args:
        images: folder of images named ``CASE_0000.<ending>``, …
        output: folder for masks and, where a model predicts classes, ``classes/<case>.json`` and ``classes.csv``; made
            if need be.
        model: folder of a trained model, or what :func:`load_predictor` returned.
        class_model: predicts the classes, where ``model`` is to predict the masks only.
        save_probabilities: also write the voxel probabilities (``.npz``).
        calibrated: see :func:`predict`.
        bounds: also write masks that miss little of a tumour, and masks that hold little else: ``outer``, ``inner``.
        continue_prediction: leave complete cases alone.
        num_parts: number of runs that share the folder.
        part_id: which of them this is, from 0.
        num_workers: processes for reading, preprocessing and writing; 0 for threads.
        aggregation: see :func:`predict`.
        cases: a ``cases.csv`` with patients, for ``patients.csv``.
        exact: see :func:`predict`.
        precision: see :func:`predict`.
        not_needed: patterns of other images in that folder, of which nothing is to be said.
        resample_to: see :func:`predict`.
        show_progress: a bar over the cases.
        arguments: to be recorded in ``predict_from_raw_data_args.json``.
        part_file: of ``braintum_predict --write-parts``: predict what it lists, and write no tables.

    Returns:
        The cases that were predicted, and what is wrong with the others.

    Raises:
        InputError: input and output are one folder, or the models or the files in the output do not fit together.
        MissingFileError: no such folder, or no images in it.
        FileError: the output folder cannot be written to, or a worker process was killed.
    """
    predictor, class_predictor = _pair(model, class_model)
    return folders.predict_folder(
        predictor,
        images,
        output,
        save_probabilities=save_probabilities,
        continue_prediction=continue_prediction,
        num_parts=num_parts,
        part_id=part_id,
        num_workers=num_workers,
        aggregation=aggregation,
        cases_file=cases,
        arguments=arguments,
        show_progress=show_progress,
        class_predictor=class_predictor,
        exact=exact,
        precision=precision,
        calibration=_calibration(predictor, class_predictor, aggregation) if calibrated else None,
        not_needed=not_needed,
        resample_to=resample_to,
        bounds=bounds,
        part_file=part_file,
    )


@api_function()
def explain(
    images: FilePath,
    output: FilePath,
    model: Model,
    *,
    method: str = "hirescam",
    stage: int | None = None,
    class_name: str | None = None,
    mask: bool | None = None,
    structures: Sequence[str] = (),
    labels: FilePath | None = None,
    limit: int | None = None,
    controls: bool = True,
    show_progress: bool = True,
) -> explanation.ExplainedFolder:
    """Show where a model looks when it names the class of each image, or marks a structure: ``braintum_explain``.

    Example:
        >>> explained = bt.explain("images", "explanations", predictor, limit=1)
        >>> explained.rows[0]["method"]
        'hirescam'

    Args:
        images: folder of images named ``CASE_0000.<ending>``, …
        output: folder for maps and pictures of each case, and two tables; made if need be.
        model: folder of a trained model, or what :func:`load_predictor` returned.
        method: ``gradcam``, ``hirescam`` or ``integrated_gradients``; or ``attention_masks``, which shows where each
            block of adaptive masked attention looks.
        stage: of the features that are explained, 0 for the deepest; None for the deepest with 7 positions an axis.
        class_name: to explain; None for the predicted one of each case.
        mask: explain the mask, of any model that segments, and show its predictive entropy; None where the model
            predicts no classes, or structures are named.
        structures: names of labels or regions whose mask is explained; empty for all.
        labels: folder of true label maps.
        limit: explain so many cases only, spread evenly over the folder.
        controls: compare with weights drawn anew; takes three times as long.
        show_progress: a bar over the cases.

    Returns:
        A row a case, or of masks a case and structure, and what is wrong with the others.

    Raises:
        InputError: unknown method, class, structure or stage, or a class of a model without classes.
        MissingFileError: a folder is missing.
        UnsupportedError: images that explanations are not supported for.
    """
    predictor = _loaded(model)
    explainer = choose_explainer(predictor, method, stage, class_name, mask, structures, _path(labels), controls)
    return explanation.explain_folder(explainer, Path(images), Path(output), limit, show_progress)


@api_function()
def load_model(
    model: FilePath,
    *,
    fold: int | str = 0,
    checkpoint: str = DEFAULT_CHECKPOINT,
    device: str | torch.device | None = None,
    trust_checkpoint: bool = False,
) -> nn.Module:
    """The network of a trained model with the weights of one fold, in evaluation mode.

    ``network(x)`` returns the masks' logits (B, label, [Z,] Y, X), and ``network(x, with_classes=True)`` of a model
    that classifies also the classes' logits (B, class), which are in the order of ``dataset.json``. ``x`` holds windows
    (B, channel, [Z,] Y, X) of *preprocessed* images, of the plan's patch size: see :func:`preprocess`.

    Example:
        >>> network = bt.load_model(folder.parent, fold=0, device="cpu")
        >>> windows = bt.preprocess("case_0000.nii.gz", predictor).transpose(0, 1)  # slices as a batch
        >>> masks, classes = network(windows, with_classes=True)
        >>> classes.shape
        torch.Size([1, 3])

    Args:
        model: folder of a trained model, also of a stock one.
        fold: whose weights.
        checkpoint: file within the fold.
        device: that the network is to be on; None for CUDA where there is it, else the CPU.
        trust_checkpoint: load checkpoints that run code; know who made them.

    Raises:
        InputError: a file of the model is damaged or not safe.
        MissingFileError: a file of the model is missing.
    """
    predictor = load_predictor(
        model, folds=[fold], checkpoint=checkpoint, device=device, classes=False, trust_checkpoint=trust_checkpoint
    )
    network = predictor.network
    if isinstance(network, OptimizedModule):
        network = network._orig_mod
    network.load_state_dict(predictor.list_of_parameters[0])
    return network.to(predictor.device).eval()


@api_function()
def preprocess(image: Image, model: Model, *, spacing: Sequence[float] | None = None) -> torch.Tensor:
    """What the network of a model is given of a case: nnU-Net's cropping, normalisation and resampling.

    Smaller images are padded to the plan's patch size, as nnU-Net pads them; larger ones are to be cut into windows of
    it. A 2-D network takes slices: move Z to the front.

    Example:
        >>> bt.preprocess(array, predictor, spacing=(0.9, 0.9)).ndim
        4

    Args:
        image: see :func:`predict`.
        model: folder of a trained model, or what :func:`load_predictor` returned.
        spacing: see :func:`predict`.

    Returns:
        (channel, Z, Y, X), float32, on the CPU; in the plan's order of axes and spacing.

    Raises:
        InputError: see :func:`predict`.
        MissingFileError: see :func:`predict`.
    """
    predictor = _loaded(model, classes=False)
    description = ModelDescription.of(predictor)
    _, given = one_case(image, spacing, description)
    if isinstance(given, np.ndarray):
        data, _ = preprocess_array(given, spacing, description)
    else:
        data, _ = preprocess_case(given, description)
    patch_size = description.configuration_manager.patch_size
    return pad_nd_image(torch.from_numpy(data), patch_size, "constant", {"value": 0})


def _path(path: FilePath | None) -> Path | None:
    return None if path is None else Path(path)


def _loaded(model: Model, classes: bool | None = None) -> SegmentationPredictor:
    return model if isinstance(model, SegmentationPredictor) else load_predictor(model, classes=classes)


def _pair(model: Model, class_model: Model | None) -> tuple[SegmentationPredictor, JointPredictor | None]:
    """Predictors of the masks and, where it is another one, of the classes.

    Raises:
        ValueError: the class model predicts no classes.
    """
    if class_model is None:
        return _loaded(model), None
    class_predictor = _loaded(class_model, classes=True)
    if not isinstance(class_predictor, JointPredictor):
        raise ValueError(f"the class model, of {class_predictor.trainer_name}, was loaded without its classes")
    return _loaded(model, classes=False), class_predictor


def _calibration(
    predictor: SegmentationPredictor, class_predictor: JointPredictor | None, aggregation: str
) -> Calibration:
    classifier = class_predictor or predictor
    if not isinstance(classifier, JointPredictor):
        raise ValueError(f"a model of {classifier.trainer_name} predicts no classes, which could be calibrated")
    calibration, doubts = calibration_of(classifier, classifier.checkpoint_name or DEFAULT_CHECKPOINT, aggregation)
    if class_predictor is not None and calibration.trust is not None:  # masks of another model, which it does not know
        calibration = replace(calibration, trust=replace(calibration.trust, masks=None))
    for doubt in doubts:
        warnings.warn(doubt, BraintumWarning, stacklevel=4)  # the caller of the API's function
    return calibration
