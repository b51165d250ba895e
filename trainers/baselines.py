"""Networks of others by the recipe of paper 000, which compares with some: masks alone, or with our class head too.

Settled, since the paper does not say: all of them are trained as BrainTumNet is, from random weights.
"""

from functools import partial

from braintum.trainers.multi_task import nnUNetTrainerMultiTask
from braintum.trainers.networks import import_class, multi_task_network, segmentation_network
from braintum.trainers.recipes import papers
from braintum.trainers.recipes.recipe import BRAINTUMNET
from braintum.trainers.segmentation import SegmentationTrainer

BASELINES: dict[str, tuple[str, str, tuple[int, ...]]] = {
    "TransUNet": ("transunet", "ResNet-50, ViT-B/16 and a cascaded upsampler (Chen 2021)", (2,)),
    "SwinUNet": ("swin_unet", "U-Net of Swin transformer blocks (Cao 2021)", (2,)),
    "DeepLabV3Plus": ("smp_networks", "DeepLabV3+ on ResNet-50 (Chen 2018)", (2,)),
    "MedFormer": ("medformer", "U-Net with bidirectional attention to semantic maps (Gao 2022)", (2, 3)),
    "SwinUNETR": ("monai_networks", "Swin transformer and UNETR's decoder (Hatamizadeh 2022)", (2, 3)),
    "MedNeXt": ("monai_networks", "MedNeXt-B, kernels of 3 (Roy 2023)", (2, 3)),
    "UPerNet": ("smp_networks", "UPerNet on ConvNeXt-T (Xiao 2018, Liu 2022)", (2,)),
    "SegFormer": ("smp_networks", "SegFormer's decoder (Xie 2021) on PVT v2-B2", (2,)),
}
"""Name -> module in :mod:`braintum.architectures.baselines`, what it is, and dimensions of its images."""
COMPARED = ("TransUNet", "SwinUNet", "DeepLabV3Plus", "MedFormer")
"""Those in the tables of paper 000."""


def baseline_trainers() -> dict[str, type[SegmentationTrainer]]:
    """Trainers by their names: ``nnUNetTrainer<Name>``, and ``nnUNetTrainer<Name>MultiTask`` for both tasks."""
    trainers: dict[str, type[SegmentationTrainer]] = {}
    for name, (module, what, dimensions) in BASELINES.items():
        network = partial(import_class, f"braintum.architectures.baselines.{module}", name)
        for suffix, base, build, task in (
            ("", SegmentationTrainer, segmentation_network(network), "segmentation alone; needs no classes"),
            ("MultiTask", nnUNetTrainerMultiTask, multi_task_network(network), "with the classification head"),
        ):
            trainer = f"nnUNetTrainer{name}{suffix}"
            attributes = {
                "__doc__": f"{what}, {task}.",
                "__module__": "braintum.trainers.registered",  # where a process that gets it pickled finds it
                "recipe": BRAINTUMNET,
                "papers": (papers.BRAINTUMNET,) if name in COMPARED else (),
                "dimensions": dimensions,
                "build_network_architecture": staticmethod(build),
            }
            trainers[trainer] = type(trainer, (base,), attributes)
    return trainers
