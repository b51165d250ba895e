"""nnU-Net's preprocessing of one case, of files or of an array in memory, and what is checked before and after."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from braintum.architectures.input_channels import num_network_channels
from braintum.conversion.building.resampling import Resampling, files_on_one_grid
from braintum.conversion.files.file_checks import DamagedFileError
from braintum.conversion.files.orientation import plane_across
from braintum.conversion.files.volumes import VolumeError, check_images
from braintum.inference.models.segmentation_predictor import SegmentationPredictor
from braintum.inference.models.two_models import check_same_input, preprocessed_alike
from braintum.inference.prediction.joint_predictor import JointPredictor
from braintum.inference.prediction.known_input import KnownInput

DOUBTS = "warnings"
"""Entry of the properties of a preprocessed image, see :class:`KnownInput`; of a case's result, too."""
_PLACEHOLDER = 999  # times the spacing within a single slice: what nnU-Net takes for the distance to the next one


@dataclass(frozen=True)
class ModelDescription:
    """What worker processes need to know of a model."""

    plans_manager: PlansManager
    configuration_manager: ConfigurationManager
    dataset_json: dict
    known_input: KnownInput = field(default_factory=KnownInput)
    resampling: Resampling | None = None

    @staticmethod
    def of(predictor: SegmentationPredictor, resample_to: str | None = None) -> "ModelDescription":
        """What a predictor knows of its model.

        Args:
            predictor: initialised.
            resample_to: name of the channel on whose grid the files of a case are brought; None: they have to lie on
                one.

        Raises:
            ValueError: the model is the second stage of a cascade, its fingerprint is damaged, or there is no such
                channel.
        """
        if predictor.configuration_manager.previous_stage_name is not None:
            raise ValueError(
                f"{predictor.model_folder or predictor.trainer_name}: the second stage of a cascade needs a first; "
                "predict with 3d_fullres or 2d instead"
            )
        configuration = predictor.configuration_manager
        known = KnownInput.of(predictor.model_folder, configuration.normalization_schemes)
        model = ModelDescription(predictor.plans_manager, configuration, predictor.dataset_json, known)
        if resample_to is None:
            return model
        if model.reads_pictures:
            raise ValueError("the model takes pictures, which lie on no grid in space; leave --resample-to out")
        names = predictor.dataset_json.get("channel_names") or predictor.dataset_json["modality"]
        resampling = Resampling.to(resample_to, [names[number] for number in sorted(names, key=int)])
        return replace(model, resampling=resampling)

    @property
    def num_channels(self) -> int:
        """Of an image file, or an array."""
        return determine_num_input_channels(self.plans_manager, self.configuration_manager, self.dataset_json)

    @property
    def reads_pictures(self) -> bool:
        """Whether its images are PNG or the like, which have no spacing."""
        return issubclass(self.plans_manager.image_reader_writer_class, NaturalImage2DIO)

    def slicing_note(self, properties: dict) -> str | None:
        """What is to be said of a volume that a 2-D model predicts; None for slices, and for 3-D models.

        Args:
            properties: of a preprocessed image.
        """
        if len(self.configuration_manager.patch_size) == 3 or properties["shape_before_cropping"][0] == 1:
            return None
        plane = plane_across(self.plans_manager.transpose_forward[0], properties)
        across = f"in {plane} slices" if plane else "in slices across the first axis of the array"
        neighbours = self.configuration_manager.configuration.get("neighbouring_slices", 0)
        context = f"each with {neighbours} neighbours on both sides" if neighbours else "none sees its neighbours"
        note = f"The model is 2-D: volumes are predicted slice by slice, {across}, {context}"
        if self.known_input.sizes and "z" not in self.known_input.sizes:
            note += "; it was trained on single slices, so see that they were of this plane"
        return note


def with_class_predictor(
    predictor: SegmentationPredictor, class_predictor: JointPredictor | None, resample_to: str | None = None
) -> tuple[JointPredictor | None, list[ModelDescription]]:
    """Who predicts the classes, and what a case is to be preprocessed for.

    Args:
        predictor: of the masks.
        class_predictor: of the classes; None for the same, if it predicts any.
        resample_to: see :meth:`ModelDescription.of`.

    Returns:
        The predictor of the classes, if there is one, and the description of ``predictor``'s model; of the class model
        too, where its preprocessed images are other arrays.

    Raises:
        ValueError: the models do not take the same images, or one is the second stage of a cascade.
    """
    if class_predictor is None and isinstance(predictor, JointPredictor):
        class_predictor = predictor
    models = [ModelDescription.of(predictor, resample_to)]
    if class_predictor is not None and class_predictor is not predictor:
        check_same_input(predictor, class_predictor)
        if not preprocessed_alike(predictor, class_predictor):
            models.append(ModelDescription.of(class_predictor, resample_to))
    return class_predictor, models


def preprocess_case(files: Sequence[str], model: ModelDescription) -> tuple[np.ndarray, dict]:
    """nnU-Net's preprocessing of one case; (C, Z, Y, X) float32.

    Raises:
        ValueError: the images cannot be read, or are not what the model takes.
    """

    def run(preprocessor: Any) -> tuple[np.ndarray, Any, dict]:
        with files_on_one_grid(files, model.resampling) as (readable, remarks):
            check_images(readable)
            data, seg, properties = preprocessor.run_case(
                readable, None, model.plans_manager, model.configuration_manager, model.dataset_json
            )
        resampling_remarks.extend(remarks)
        return data, seg, properties

    resampling_remarks: list[str] = []
    data, properties = _checked(run, model, ", ".join(files), "file")
    properties[DOUBTS] += resampling_remarks
    return data, properties


def preprocess_for_all(files: Sequence[str], models: Sequence[ModelDescription]) -> list[tuple[np.ndarray, dict]]:
    """As :func:`preprocess_case`, for one model after the other."""
    return [preprocess_case(files, model) for model in models]


def preprocess_array(
    image: np.ndarray, spacing: Sequence[float] | None, model: ModelDescription
) -> tuple[np.ndarray, dict]:
    """As :func:`preprocess_case`, of an array that holds what nnU-Net would read from a file.

    Args:
        image: (C, [Z,] Y, X); a single slice without Z is what a 2-D file is.
        spacing: in mm, [Z,] Y, X; None for models of pictures, which know none.
        model: that is to take it.

    Raises:
        ValueError: the array or its spacing is not what the model takes.
    """
    if image.dtype.kind not in "uif" or image.ndim not in (3, 4):
        raise ValueError(
            f"the image is an array of {image.ndim} axes and type {image.dtype}; give numbers, (channel, [Z,] Y, X)"
        )
    if 0 in image.shape or image.shape[0] != model.num_channels:
        raise ValueError(
            f"the image has shape {image.shape}, but the model takes {model.num_channels} channel(s); give an array "
            "(channel, [Z,] Y, X)"
        )
    if not np.isfinite(image).all():
        raise ValueError("the image: NaN or infinite intensities; repair the image")
    num_axes = image.ndim - 1
    if model.reads_pictures:
        if spacing is not None or num_axes != 2:
            raise ValueError("the model takes pictures (channel, Y, X) without a spacing; leave the spacing away")
        properties: dict[str, Any] = {"spacing": (_PLACEHOLDER, 1, 1)}
    else:
        values = [] if spacing is None else [float(value) for value in spacing]
        if len(values) != num_axes or not np.isfinite(values).all() or min(values) <= 0:
            raise ValueError(
                f"spacing={spacing}: an image of shape {image.shape} needs its spacing in mm, a positive number "
                f"for each of {'Y, X' if num_axes == 2 else 'Z, Y, X'}"
            )
        slices = [_PLACEHOLDER * max(values)] if num_axes == 2 else []
        # as nnU-Net's reader of NIfTI notes it
        properties = {"spacing": [*slices, *values], "sitk_stuff": {"spacing": tuple(reversed(values))}}
    image = image.reshape(image.shape[0], -1, *image.shape[-2:])

    def run(preprocessor: Any) -> tuple[np.ndarray, Any, dict]:
        return preprocessor.run_case_npy(
            image, None, properties, model.plans_manager, model.configuration_manager, model.dataset_json
        )

    return _checked(run, model, "the image", "array")


def image_spacing(properties: dict, model: ModelDescription) -> tuple[float, ...] | None:
    """Spacing of an image along its own axes, [Z,] Y, X in mm; None for pictures, which have none.

    Args:
        properties: of the preprocessed image.
        model: that it was preprocessed for.
    """
    if model.reads_pictures:
        return None
    itk = properties.get("sitk_stuff")  # of the other readers, which know volumes only, there is none
    num_axes = 3 if itk is None else min(3, len(itk["spacing"]))
    return tuple(float(value) for value in properties["spacing"][-num_axes:])


def _checked(
    run: Callable[[Any], tuple[np.ndarray, Any, dict]], model: ModelDescription, image: str, kind: str
) -> tuple[np.ndarray, dict]:
    """The preprocessed image, if it is what the network takes.

    Args:
        run: gets the preprocessor and returns image, segmentation and properties.
        model: with the preprocessor.
        image: what messages call the image.
        kind: of thing that it is in.

    Returns:
        The image, and its properties with :data:`DOUBTS`.
    """
    preprocessor = model.configuration_manager.preprocessor_class(verbose=False)
    preprocess, doubts = preprocessor.run_case_npy, []

    def look_at(array: np.ndarray, seg: Any, properties: dict, *description: Any) -> tuple[np.ndarray, Any, dict]:
        if len(array) != model.num_channels:
            colour = ", a colour picture," if model.reads_pictures and len(array) in (3, 4) else ""
            raise VolumeError(
                f"{image}:{colour} {len(array)} channels, but the model takes {model.num_channels}; convert the image "
                "as the training data was converted"
            )
        doubts.extend(model.known_input.doubts(array, properties["spacing"], image))
        return preprocess(array, seg, properties, *description)

    preprocessor.run_case_npy = look_at  # where nnU-Net's method has read the files
    try:
        data, _, properties = run(preprocessor)
    except Exception as error:  # the readers and nnU-Net raise whatever they like, bare assertions included
        reason = str(error).strip().splitlines() or [type(error).__name__]
        if isinstance(error, (DamagedFileError, VolumeError)):
            raise ValueError(" ".join(reason)) from error
        raise ValueError(f"{image}: cannot be read or preprocessed ({reason[-1]}); check the {kind}") from error
    expected = num_network_channels(model.num_channels, model.configuration_manager.configuration)
    if data.shape[0] != expected:
        raise ValueError(
            f"{image}: {data.shape[0]} channels, but the model takes {expected}; convert the "
            "image as the training data was converted"
        )
    if not np.isfinite(data).all():
        raise ValueError(f"{image}: NaN or infinite intensities; repair the image")
    properties[DOUBTS] = doubts
    return np.ascontiguousarray(data, dtype=np.float32), properties
