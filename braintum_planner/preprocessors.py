"""Preprocessing without nnU-Net's compression trial."""

import blosc2
import numpy as np
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

__all__ = ["BrainTumPreprocessor"]


class BrainTumPreprocessor(DefaultPreprocessor):
    """nnU-Net's preprocessing; same arrays, saved without compressing a part of each twice to choose a filter.

    What decides between blosc's filters is whether intensities were interpolated, and that is known here: shuffled
    bytes pay for interpolated intensities, not for quantised ones nor for label maps.
    """

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
        resampled = tuple(properties["shape_after_cropping_and_before_resampling"]) != tuple(data.shape[1:])
        nnUNetDatasetBlosc2.save_case(
            data,
            seg,
            properties,
            output_filename_truncated,
            chunks=chunks,
            blocks=blocks,
            chunks_seg=chunks_seg,
            blocks_seg=blocks_seg,
            filters=[blosc2.Filter.SHUFFLE if resampled else blosc2.Filter.NOFILTER],
            filters_seg=[blosc2.Filter.NOFILTER],
        )
