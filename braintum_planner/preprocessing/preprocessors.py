"""Preprocessing that is fast for slices, and that can give a slice its neighbours as channels."""

from collections.abc import Sequence

import blosc2
import numpy as np
from nnunetv2.preprocessing.cropping import cropping
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from scipy.ndimage import binary_fill_holes

from braintum.architectures.input_channels import neighbouring_slices
from braintum.commands.seams import replaced
from braintum.planner.preprocessing.neighbouring_slices import stack_neighbouring_slices
from braintum.planner.preprocessing.preprocessing_run import preprocess_dataset
from braintum.planner.preprocessing.whole_slices import SLICE_CROP, head_box, resized, slice_edge

__all__ = ["BrainTumPreprocessor"]

_FILTER_TRIAL_EDGE = 64  # as good a guide as the whole slice, at a tenth of its time


class BrainTumPreprocessor(DefaultPreprocessor):
    """nnU-Net's preprocessing: the same arrays in the same files, compressed in a fraction of the time.

    nnU-Net compresses most of every array twice to choose a filter, then all of it with LZ4HC: more than half of the
    time that a slice takes. Here the choice is made on a small part from the centre, and label maps have none. For 2-D
    configurations Zstandard at its fastest level replaces LZ4HC: a quarter of the time and smaller files, while reading
    a slice of 512 × 512 takes half a millisecond more. Volumes keep LZ4HC, which is the faster one to read. Nor is the
    non-zero region of slices searched for holes: to nnU-Net's search, which is three-dimensional, it has none.
    Foreground locations are drawn first, and get their coordinates then.

    A killed run leaves nothing that looks complete, and the same command goes on where it was.

    In 2-D configurations with ``neighbouring_slices`` each slice gets its neighbours as channels, in training and in
    prediction (see :func:`braintum.planner.preprocessing.neighbouring_slices.stack_neighbouring_slices`). With
    ``slice_edge`` slices are cropped to the head and brought to one size
    (see :mod:`braintum.planner.preprocessing.whole_slices`).
    """

    def run_case_npy(
        self,
        data: np.ndarray,
        seg: np.ndarray | None,
        properties: dict,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        dataset_json: dict | str,
    ) -> tuple[np.ndarray, np.ndarray, dict]:
        """Preprocess one case that is in memory, as nnU-Net's method of this name does.

        Returns:
            Image (C, Z, Y, X), or (C · (2k+1), Z, Y, X) with k neighbouring slices; label map (1, Z, Y, X); properties.

        Raises:
            ValueError: ``neighbouring_slices`` of the plans makes no sense.
        """
        edge = slice_edge(configuration_manager.configuration)
        if edge is not None:
            data, seg, properties = self._whole_slices(
                edge, data, seg, properties, plans_manager, configuration_manager, dataset_json
            )
        else:
            with replaced(cropping, binary_fill_holes=_fill_holes):  # a function that a function of a function calls
                data, seg, properties = super().run_case_npy(
                    data, seg, properties, plans_manager, configuration_manager, dataset_json
                )
        count = neighbouring_slices(configuration_manager.configuration)
        if count:
            data = stack_neighbouring_slices(data, count)
        return data, seg, properties

    def _whole_slices(
        self,
        edge: int,
        data: np.ndarray,
        seg: np.ndarray | None,
        properties: dict,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        dataset_json: dict | str,
    ) -> tuple[np.ndarray, np.ndarray, dict]:
        """nnU-Net's steps, with a crop to the head (or none) and one size instead of its crop and one spacing."""
        order = [0, *(axis + 1 for axis in plans_manager.transpose_forward)]
        data = data.astype(np.float32).transpose(order)
        properties["shape_before_cropping"] = data.shape[1:]
        crops = configuration_manager.configuration.get(SLICE_CROP, True)
        properties["bbox_used_for_cropping"] = box = head_box(data) if crops else [[0, n] for n in data.shape[1:]]
        part = (slice(None), *(slice(*limits) for limits in box))
        data = data[part]
        labels = np.zeros((1, *data.shape[1:]), np.int8) if seg is None else seg.transpose(order)[part].copy()
        properties["shape_after_cropping_and_before_resampling"] = data.shape[1:]
        factor = edge / max(data.shape[2:])
        shape = [max(1, round(length * factor)) for length in data.shape[2:]]
        data = self._normalize(
            data, labels, configuration_manager, plans_manager.foreground_intensity_properties_per_channel
        )
        data, labels = resized(data, shape, False), resized(labels, shape, True)
        if seg is not None:
            labelled = plans_manager.get_label_manager(dataset_json)
            wanted = list(labelled.foreground_regions if labelled.has_regions else labelled.foreground_labels)
            if labelled.has_ignore_label:
                wanted.append([-1, *labelled.all_labels])
            properties["class_locations"] = self._sample_foreground_locations(labels, wanted)
            labels = self.modify_seg_fn(labels, plans_manager, dataset_json, configuration_manager)
        return data, labels.astype(np.int16 if labels.max() > 127 else np.int8), properties

    @staticmethod
    def _sample_foreground_locations(
        seg: np.ndarray,
        classes_or_regions: Sequence[int | Sequence[int]],
        seed: int = 1234,
        verbose: bool = False,
        min_num_samples: int = 10000,
        min_percent_coverage: float = 0.01,
    ) -> dict[int | tuple[int, ...], np.ndarray | list]:
        """nnU-Net's locations of each class or region, without sorting all foreground voxels and their coordinates.

        Returns:
            Class or region -> coordinates (locations, 4), int64, of ``seg`` (1, Z, Y, X); an empty list without voxels.
        """
        random = np.random.RandomState(seed)
        labels = seg.ravel()
        locations: dict[int | tuple[int, ...], np.ndarray | list] = {}
        for wanted in classes_or_regions:
            key = tuple(int(label) for label in wanted) if isinstance(wanted, Sequence) else int(wanted)
            of_key = key if isinstance(key, tuple) else (key,)
            found = np.concatenate([np.flatnonzero(labels == label) for label in of_key])
            if not len(found):
                locations[key] = []
                continue
            number = max(min(min_num_samples, len(found)), int(np.ceil(len(found) * min_percent_coverage)))
            chosen = found[random.choice(len(found), number, replace=False)]
            locations[key] = np.stack(np.unravel_index(chosen, seg.shape), axis=1)
        return locations

    def run(
        self, dataset_name_or_id: int | str, configuration_name: str, plans_identifier: str, num_processes: int
    ) -> None:
        """Preprocess a data set as nnU-Net's method of this name does, but never leave half of it in its place.

        See :func:`braintum.planner.preprocessing.preprocessing_run.preprocess_dataset`.
        """
        dataset_name = maybe_convert_to_dataset_name(dataset_name_or_id)
        preprocess_dataset(self, dataset_name, configuration_name, plans_identifier, num_processes)

    def run_case_save(
        self,
        output_filename_truncated: str,
        image_files: list[str],
        seg_file: str,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        dataset_json: dict | str,
    ) -> None:
        """Preprocess one case and save it, as nnU-Net's method of this name does."""
        data, seg, properties = self.run_case(image_files, seg_file, plans_manager, configuration_manager, dataset_json)
        data = data.astype(np.float32, copy=False)
        seg = seg.astype(np.int16, copy=False)
        patch_size = tuple(configuration_manager.patch_size)
        blocks, chunks = comp_blosc2_params(data.shape, patch_size, data.itemsize)
        blocks_seg, chunks_seg = comp_blosc2_params(seg.shape, patch_size, seg.itemsize)
        codec, level = (blosc2.Codec.ZSTD, 1) if len(patch_size) == 2 else (blosc2.Codec.LZ4HC, 5)
        sample = (1, 1, *(min(edge, _FILTER_TRIAL_EDGE) for edge in chunks[2:]))
        nnUNetDatasetBlosc2.save_case(
            data,
            seg,
            properties,
            output_filename_truncated,
            chunks=chunks,
            blocks=blocks,
            chunks_seg=chunks_seg,
            blocks_seg=blocks_seg,
            clevel=level,
            codec=codec,
            filters=[nnUNetDatasetBlosc2._select_filter(data, blocks, sample, codec, level)],
            filters_seg=[blosc2.Filter.NOFILTER],
        )


def _fill_holes(mask: np.ndarray) -> np.ndarray:
    """scipy's result, without its search where there is nothing to find.

    A mask that is one voxel thick has no holes: each of its voxels touches the outside.
    """
    return mask if 1 in mask.shape else binary_fill_holes(mask)
