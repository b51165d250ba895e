"""batchgeneratorsv2's rotation, scaling, random crop and flips, on batches and on any device.

The loader cuts a patch from the image that is larger than the network's, so that a rotated patch finds data at its
corners. Most samples are neither rotated nor scaled and need only the middle of it. The parameters are therefore drawn
before loading: samples that stay as they are come as patches of the final size ("plain"), the others as boxes that hold
all that their grid reaches ("transformed"), all of one size in a batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from math import ceil, floor
from typing import Any

import torch

from braintum.trainers.augmentation.augmentation_parameters import (
    Distribution,
    Parameters,
    Step,
    UnsupportedAugmentation,
    draw_events,
)
from braintum.trainers.augmentation.device_grid import affine_matrices, sample, sample_labels, sampling_grid

_REACH = 3  # pixels around a sampled point that the widest kernel (bicubic) uses, and one for rounding


@dataclass(frozen=True)
class Boxes:
    """What to cut from the larger patch for each sample, in its coordinates.

    Attributes:
        lower: B lists of first indices.
        upper: B lists of indices after the last.
        is_transformed: B times, whether the sample is rotated or scaled.
    """

    lower: list[list[int]]
    upper: list[list[int]]
    is_transformed: list[bool]


@dataclass(frozen=True)
class Spatial:
    """batchgeneratorsv2's ``SpatialTransform`` without elastic deformation.

    Attributes:
        patch_size: of the result, ([Z,] Y, X).
        in_plane: whether the first axis of a 3-D patch is left alone; ``patch_size`` then has the last two axes.
        p_rotation: probability of a rotation.
        p_rotation_per_axis: probability of each axis to take part in it.
        angle: in radians.
        p_scaling: probability of a scaling.
        scale: factor on the grid: a larger one makes objects smaller.
        p_synchronize_scaling: probability of one factor for all axes.
        border_distance: how far from the border of the larger patch a random crop's centre stays; None for the middle.
        labels: that segmentations may contain, ascending.
        mode_image: interpolation of images.
        mode_target: interpolation of segmentations; any but ``nearest`` means that of one-hot labels.
        border_image: what images show beyond the larger patch: zeros, constant, border or reflection.
        border_target: the same of segmentations.
        padding_image: the constant.
        padding_target: the constant.
        tiebreak: of labels with the same score: nearest, lowest or highest.
        align_corners: see ``torch.nn.functional.grid_sample``.
    """

    patch_size: tuple[int, ...]
    in_plane: bool
    p_rotation: float
    p_rotation_per_axis: float
    angle: Distribution
    p_scaling: float
    scale: Distribution
    p_synchronize_scaling: float
    border_distance: tuple[float, ...] | None
    labels: tuple[int, ...]
    mode_image: str = "bilinear"
    mode_target: str = "bilinear"
    border_image: str = "zeros"
    border_target: str = "zeros"
    padding_image: float = 0.0
    padding_target: int = 0
    tiebreak: str = "nearest"
    align_corners: bool = False

    @staticmethod
    def of(transform: Any, in_plane: bool, labels: Sequence[int]) -> "Spatial":
        """From ``SpatialTransform``.

        Args:
            transform: of batchgeneratorsv2.
            in_plane: whether it stands between ``Convert3DTo2DTransform`` and its inverse.
            labels: that segmentations may contain, besides what lies beyond the image.

        Raises:
            UnsupportedAugmentation: elastic deformation.
        """
        if transform.p_elastic_deform > 0:
            raise UnsupportedAugmentation("the elastic deformation of SpatialTransform")
        padding = int(transform.padding_value_seg) if transform.border_mode_seg == "constant" else 0
        distance = transform.patch_center_dist_from_border
        return Spatial(
            patch_size=tuple(int(edge) for edge in transform.patch_size),
            in_plane=in_plane,
            p_rotation=transform.p_rotation,
            p_rotation_per_axis=transform.p_rot_per_axis,
            angle=Distribution.of(transform.rotation),
            p_scaling=transform.p_scaling,
            scale=Distribution.of(transform.scaling),
            p_synchronize_scaling=transform.p_synchronize_scaling_across_axes,
            border_distance=tuple(float(edge) for edge in distance) if transform.random_crop else None,
            labels=tuple(sorted({*labels, padding})),
            mode_image=transform.mode_image,
            mode_target=transform.mode_seg,
            border_image=transform.padding_mode_image,
            border_target=transform.border_mode_seg,
            padding_image=float(transform.padding_value_image),
            padding_target=padding,
            tiebreak=getattr(transform, "seg_tiebreak", "nearest"),  # since batchgeneratorsv2 0.3.6
            align_corners=transform.align_corners,
        )

    def check(self, initial_size: Sequence[int]) -> None:
        """Whether the larger patch holds every patch that is cut from it.

        Args:
            initial_size: of the larger patch, all axes.

        Raises:
            UnsupportedAugmentation: it does not: nnU-Net would pad.
        """
        size = initial_size[1:] if self.in_plane else initial_size
        for axis, (edge, final) in enumerate(zip(size, self.patch_size, strict=True)):
            lowest = edge / 2 if self.border_distance is None else min(self.border_distance[axis], edge / 2)
            highest = edge - lowest  # of a random crop never quite reached
            last = floor(highest) if lowest == highest else ceil(highest) - 1
            if floor(lowest) < final // 2 or last - final // 2 + final > edge:
                raise UnsupportedAugmentation(
                    f"SpatialTransform with a patch of {tuple(self.patch_size)}, which reaches over the border of the "
                    f"{tuple(int(edge) for edge in size)} that the loader cuts,"
                )

    # ------------------------------------------------------------------ parameters

    def draw(self, batch_size: int, initial_size: Sequence[int], generator: torch.Generator) -> Parameters:
        """Draw the parameters of a batch.

        Args:
            batch_size: B.
            initial_size: of the larger patch, all axes.
            generator: on the CPU.

        Returns:
            ``is_transformed``: B times whether there is a rotation or a scaling. ``affine`` (B, d, d) float64 maps the
            distance from the centre in the result to that in the larger patch, where ``centre`` (B, d) float64 lies.
        """
        size = initial_size[1:] if self.in_plane else initial_size
        num_axes = len(self.patch_size)
        rotates = draw_events(self.p_rotation, (batch_size, 1), generator)
        scales = draw_events(self.p_scaling, (batch_size, 1), generator)
        angles = self.angle.draw((batch_size, num_axes), generator)
        takes_part = draw_events(self.p_rotation_per_axis, (batch_size, num_axes), generator)
        angles = torch.where(rotates & takes_part, angles, 0.0)
        synchronized = draw_events(self.p_synchronize_scaling, (batch_size, 1), generator)
        one_each = self.scale.draw((batch_size, num_axes), generator)
        factors = torch.where(synchronized, one_each[:, :1], one_each)
        factors = torch.where(scales, factors, 1.0)
        centre = torch.tensor([edge / 2 for edge in size], dtype=torch.float64).expand(batch_size, -1)
        if self.border_distance is not None:
            reach = (centre - torch.tensor(self.border_distance, dtype=torch.float64)).clamp(min=0)
            share = torch.rand((batch_size, num_axes), generator=generator, dtype=torch.float64)
            centre = centre + (2 * share - 1) * reach
        return {
            "is_transformed": (rotates | scales)[:, 0].tolist(),
            "affine": affine_matrices(angles, factors),
            "centre": centre,
        }

    def boxes(self, parameters: Parameters, initial_size: Sequence[int]) -> Boxes:
        """What to cut from the larger patch, all axes; see :class:`Boxes`."""
        first_axis, size = ([initial_size[0]], initial_size[1:]) if self.in_plane else ([], initial_size)
        lower, upper = [], []
        for is_transformed, affine, centre in zip(
            parameters["is_transformed"], parameters["affine"], parameters["centre"].tolist(), strict=True
        ):
            if is_transformed:
                low, high = self._reached(affine, centre, size)
            else:
                low = [floor(middle) - edge // 2 for middle, edge in zip(centre, self.patch_size, strict=True)]
                high = [start + edge for start, edge in zip(low, self.patch_size, strict=True)]
            lower.append(low)
            upper.append(high)
        which = [index for index, is_transformed in enumerate(parameters["is_transformed"]) if is_transformed]
        for axis, edge in enumerate(size):  # one size for all
            extent = max((upper[index][axis] - lower[index][axis] for index in which), default=0)
            for index in which:
                lower[index][axis] = min(lower[index][axis], edge - extent)
                upper[index][axis] = lower[index][axis] + extent
        return Boxes(
            [[0] * len(first_axis) + low for low in lower],
            [first_axis + high for high in upper],
            parameters["is_transformed"],
        )

    def _reached(self, affine: torch.Tensor, centre: list[float], size: Sequence[int]) -> tuple[list[int], list[int]]:
        """Bounds of the pixels of the larger patch that one grid reaches."""
        if "reflection" in (self.border_image, self.border_target):  # reaches further in
            return [0] * len(size), list(size)
        half = torch.tensor([(edge - 1) / 2 for edge in self.patch_size], dtype=torch.float64)
        low, high = [], []
        for middle, extent, edge in zip(centre, (affine.abs() @ half).tolist(), size, strict=True):
            # a centre of c lies between the pixels c - 1 and c
            start = min(max(0, floor(middle - 0.5 - extent) - _REACH), edge - 1)
            low.append(start)
            high.append(max(start + 1, min(edge, ceil(middle - 0.5 + extent) + _REACH + 1)))
        return low, high

    def host_to_device(self, parameters: Parameters, boxes: Boxes) -> Parameters:
        """What :meth:`apply` needs: matrices, centres within the boxes, and the order of the samples."""
        which = [index for index, is_transformed in enumerate(boxes.is_transformed) if is_transformed]
        plain = [index for index, is_transformed in enumerate(boxes.is_transformed) if not is_transformed]
        place = {sample: position for position, sample in enumerate([*plain, *which])}
        lower = torch.tensor(boxes.lower, dtype=torch.float64)[:, int(self.in_plane) :]
        return {
            "affine": parameters["affine"][which].float(),
            "centre": (parameters["centre"] - lower)[which].float(),
            "place": torch.tensor([place[sample] for sample in range(len(place))]),
        }

    # ------------------------------------------------------------------ application

    def apply(
        self, data: torch.Tensor, target: torch.Tensor, parameters: Parameters
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Rotate and scale the boxes of transformed samples.

        Args:
            data: (n, C, [Z,] Y, X) float32.
            target: (n, 1, [Z,] Y, X), any integers.
            parameters: of :meth:`host_to_device`, on the device.
        """
        if self.in_plane:
            num_slices = data.shape[2]
            data, target = self._sample(data.flatten(1, 2), target.flatten(1, 2), parameters)
            return data.unflatten(1, (-1, num_slices)), target.unflatten(1, (-1, num_slices))
        return self._sample(data, target, parameters)

    def _sample(
        self, data: torch.Tensor, target: torch.Tensor, parameters: Parameters
    ) -> tuple[torch.Tensor, torch.Tensor]:
        grid = sampling_grid(parameters["affine"], parameters["centre"], self.patch_size, data.shape[2:])
        constant = self.padding_image if self.border_image == "constant" else 0.0
        images = sample(data, grid, self.mode_image, self.border_image, constant, self.align_corners)
        segmentations = sample_labels(
            target,
            grid,
            self.labels,
            self.mode_target,
            self.border_target,
            self.padding_target,
            self.tiebreak,
            self.align_corners,
        )
        return images, segmentations


@dataclass(frozen=True)
class Mirror(Step):
    """batchgeneratorsv2's ``MirrorTransform``: flips along each axis with probability 0.5.

    Attributes:
        axes: of the patch, 0 for the first spatial one.
    """

    axes: tuple[int, ...]

    @staticmethod
    def of(transform: Any) -> "Mirror":
        """From ``MirrorTransform``."""
        return Mirror(tuple(transform.allowed_axes))

    def draw(self, active: torch.Tensor, num_channels: int, generator: torch.Generator) -> Parameters:
        """See :class:`Step`; ``samples`` has an index tensor for each set of axes in ``flips``."""
        flips = draw_events(0.5, (len(active), len(self.axes)), generator) & active[:, None]
        axes_of = [tuple(axis for axis, flip in zip(self.axes, row, strict=True) if flip) for row in flips.tolist()]
        order = sorted((axes, sample) for sample, axes in enumerate(axes_of) if axes)
        groups = [(axes, [sample for _, sample in members]) for axes, members in groupby(order, lambda pair: pair[0])]
        return {"flips": [axes for axes, _ in groups], "samples": [torch.tensor(samples) for _, samples in groups]}

    def apply(
        self, data: torch.Tensor, target: torch.Tensor, parameters: Parameters
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See :class:`Step`."""
        for axes, samples in zip(parameters["flips"], parameters["samples"], strict=True):
            dims = [axis + 2 for axis in axes]
            for tensor in (data, target):
                tensor.index_copy_(0, samples, tensor.index_select(0, samples).flip(dims))
        return data, target
