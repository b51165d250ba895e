"""The papers whose networks and recipes are trainers here, by the numbers that docstrings and plans call them by."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Paper:
    """A paper.

    Attributes:
        number: what docstrings call it.
        short: author and year.
        citation: in full, with the address where there is one.
    """

    number: str
    short: str
    citation: str


BRAINTUMNET = Paper(
    "000",
    "Lv 2025",
    "Lv, C., Shu, X.-J., Liang, Q. et al. (2025). BrainTumNet: multi-task deep learning framework for brain tumor "
    "segmentation and classification using adaptive masked transformers. Frontiers in Oncology 15, 1585891. "
    "https://doi.org/10.3389/fonc.2025.1585891",
)
JOINT_UNET = Paper(
    "001",
    "Bin Jalal",
    "Bin Jalal, M. R. Multi-Task Deep Learning for Brain Tumor MRI Segmentation and Classification (BRISC 2025).",
)
RESSE_LKA = Paper(
    "002",
    "IIETA 2026",
    "ResSE-LKA-UNet: Residual Squeeze-and-Excitation Large Kernel Attention U-Net (2026). IIETA.",
)
FT_CNN_AND_RUNET = Paper(
    "003",
    "Alshomrani 2024",
    "Alshomrani, F. (2024). A Unified Pipeline for Simultaneous Brain Tumor Classification and Segmentation Using "
    "Fine-Tuned CNN and Residual UNet Architecture. Life 14, 1143. https://doi.org/10.3390/life14091143",
)
BR35H_UNET = Paper(
    "004",
    "Khadra",
    "Khadra, Z., Asad, A., Hammoud, M., Haydar, O. & Lupin, S. S. Advancing brain tumor diagnosis with Deep "
    "Learning-Driven image segmentation techniques.",
)

PAPERS = (BRAINTUMNET, JOINT_UNET, RESSE_LKA, FT_CNN_AND_RUNET, BR35H_UNET)
