"""Which slices of a volume a 2-D configuration trains on.

nnU-Net takes two thirds of the patches from any slice and the rest around a random foreground voxel, so that slices
count by the area of the tumour in them, and a small tumour is hardly seen. Here each kind of slice has a stated share.
The label of a volume says little about a slice without tumour;
:func:`braintum.trainers.classes.class_supervision.patch_weights` takes care of that, whatever is drawn.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader

ClassLocations = Mapping[Any, Sequence[Any] | np.ndarray]
"""nnU-Net's: label, or tuple of the labels of a region → foreground voxels (N, 4), as (0, z, y, x)."""


@dataclass(frozen=True)
class SliceSampling:
    """Shares of the slices that are drawn from a volume, for 2-D configurations.

    nnU-Net's oversampling comes first: the patches that it forces onto foreground (a third of a batch, unless a trainer
    says otherwise) stay around a voxel of a random class, but each slice with that class is now as likely as any other.
    The shares are those of the remaining patches; with the defaults half of all patches come from tumour slices. A kind
    that a volume lacks leaves its share to the others, so a healthy volume is drawn evenly. Slices without an image
    (all channels constant) are passed over, and so are those without annotation in a volume that is partly annotated.

    Attributes:
        tumour_share: slices with tumour, each as likely as any other: the thin ends count like the middle.
        neighbour_share: slices without tumour next to tumour slices: where along the axis a mask has to end.
        elsewhere_share: all other slices: what prediction, which takes every slice, meets most often.
        neighbour_slices: how many slices away from a tumour slice a neighbour may be.

    Raises:
        ValueError: shares that are negative or do not sum to one, or ``neighbour_slices`` below 1.
    """

    tumour_share: float = 0.25
    neighbour_share: float = 0.25
    elsewhere_share: float = 0.5
    neighbour_slices: int = 3

    def __post_init__(self) -> None:
        if min(self.shares) < 0 or not np.isclose(sum(self.shares), 1):
            raise ValueError(f"the shares of slices have to be at least 0 and to sum to 1, not {self.shares}")
        if self.neighbour_slices < 1:
            raise ValueError(f"neighbour_slices has to be at least 1, not {self.neighbour_slices}")

    @property
    def shares(self) -> tuple[float, float, float]:
        """Of tumour slices, neighbours and all others."""
        return self.tumour_share, self.neighbour_share, self.elsewhere_share


def kinds_of_slices(
    num_slices: int,
    class_locations: ClassLocations,
    annotated_key: tuple[int, ...],
    neighbour_slices: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The slices of a volume that may be drawn, by kind.

    Args:
        num_slices: of the volume.
        class_locations: nnU-Net keeps at least 10 000 voxels a class: in a large tumour a slice with a few voxels of
            it may be missing, and counts as a neighbour.
        annotated_key: under which they hold the annotated voxels, if the data set declares an ignore label.
        neighbour_slices: see :class:`SliceSampling`.

    Returns:
        Sorted indices of the tumour slices, their neighbours, and all others. Slices without annotation are left out
        unless none has one.
    """
    annotated = _slices_of(class_locations.get(annotated_key, ()))
    candidates = annotated if len(annotated) else np.arange(num_slices)
    tumour = np.unique(
        np.concatenate([_slices_of(voxels) for key, voxels in class_locations.items() if key != annotated_key])
    )
    free = np.setdiff1d(candidates, tumour)
    is_near = (np.abs(free[:, None] - tumour[None]) <= neighbour_slices).any(1)  # (free, tumour) → (free,)
    return tumour, free[is_near], free[~is_near]


def draw_slice(
    policy: SliceSampling,
    num_slices: int,
    class_locations: ClassLocations,
    annotated_key: tuple[int, ...],
    force_foreground: bool,
    is_empty: Callable[[int], bool],
) -> tuple[int, Any]:
    """Draw a slice, from numpy's global generator as nnU-Net does.

    Args:
        policy: the shares.
        num_slices: of the volume.
        class_locations: of its foreground.
        annotated_key: see :func:`kinds_of_slices`.
        force_foreground: whether nnU-Net wants foreground in this patch.
        is_empty: whether a slice shows nothing.

    Returns:
        The slice, and the class or region to show, or None where nothing is forced or there is no foreground.
    """
    classes = [key for key, voxels in class_locations.items() if key != annotated_key and len(voxels)]
    if force_foreground and classes:
        shown = classes[np.random.choice(len(classes))]
        return int(np.random.choice(_slices_of(class_locations[shown]))), shown
    kinds = kinds_of_slices(num_slices, class_locations, annotated_key, policy.neighbour_slices)
    available = np.array([len(slices) > 0 for slices in kinds], float)
    shares = available * policy.shares
    if not shares.any():
        shares = available
    order = np.random.permutation(kinds[np.random.choice(3, p=shares / shares.sum())])
    return int(next((index for index in order if not is_empty(index)), order[0])), None


def _slices_of(voxels: Sequence[Any] | np.ndarray) -> np.ndarray:
    return np.flatnonzero(np.bincount(_as_array(voxels)[:, 1]))


def _as_array(voxels: Sequence[Any] | np.ndarray) -> np.ndarray:
    return np.asarray(voxels, np.int64).reshape(-1, 4)  # a class without voxels has an empty list


class _ClassLocations(dict):
    """nnU-Net's ``class_locations``, which also know their image: all that the loader tells :meth:`get_bbox`."""

    def __init__(self, locations: ClassLocations, image: Any) -> None:
        super().__init__(locations)
        self.image = image

    def is_empty(self, index: int) -> bool:
        """Whether all channels of a slice are constant."""
        return bool(np.ptp(np.asarray(self.image[:, index]).reshape(len(self.image), -1), axis=1).max() == 0)

    def in_slice(self, index: int, key: Any) -> dict[Any, np.ndarray]:
        """The voxels of one class within one slice, as if it were a volume of its own; empty where nothing is known."""
        if key not in self:
            return {}
        voxels = _as_array(self[key])
        return {key: voxels[voxels[:, 1] == index] * (1, 0, 1, 1)}


class _CasesWithImages:
    """A data set of nnU-Net whose ``class_locations`` know their image."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def load_case(self, identifier: str) -> tuple[Any, Any, Any, dict]:
        data, segmentation, previous_stage, properties = self._dataset.load_case(identifier)
        locations = _ClassLocations(properties["class_locations"], data)
        return data, segmentation, previous_stage, {**properties, "class_locations": locations}


class SliceSamplingLoader(nnUNetDataLoader):
    """nnU-Net's loader; 2-D patches of volumes come from slices that a policy draws, all others are stock's.

    Args:
        data: nnU-Net's data set.
        *args: see ``nnUNetDataLoader``.
        slice_sampling: the policy.
        **kwargs: see ``nnUNetDataLoader``.
    """

    def __init__(self, data: Any, *args: Any, slice_sampling: SliceSampling, **kwargs: Any) -> None:
        super().__init__(data, *args, **kwargs)
        self._data = _CasesWithImages(data)
        self.slice_sampling = slice_sampling

    def get_bbox(
        self,
        data_shape: Any,
        force_fg: bool,
        class_locations: Any,
        overwrite_class: Any = None,
        verbose: bool = False,
    ) -> tuple[list[int], list[int]]:
        """Corners of a patch, as in stock: within one drawn slice of a volume, nnU-Net chooses the place."""
        num_slices = data_shape[0]
        if not self.patch_size_was_2d or num_slices == 1 or overwrite_class is not None:
            return super().get_bbox(data_shape, force_fg, class_locations, overwrite_class, verbose)
        index, shown = draw_slice(
            self.slice_sampling,
            num_slices,
            class_locations,
            self.annotated_classes_key,
            force_fg,
            class_locations.is_empty,
        )
        # without a class to show, nnU-Net looks for annotated voxels where there is an ignore label
        in_slice = class_locations.in_slice(index, self.annotated_classes_key if shown is None else shown)
        lower, upper = super().get_bbox((1, *data_shape[1:]), force_fg, in_slice, shown, verbose)
        return [index, *lower[1:]], [index + 1, *upper[1:]]


def data_loader_class(policy: SliceSampling | None) -> Callable[..., nnUNetDataLoader]:
    """What to make nnU-Net's loaders with; None for its own class."""
    return nnUNetDataLoader if policy is None else partial(SliceSamplingLoader, slice_sampling=policy)
