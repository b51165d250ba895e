"""What the papers compare, as data: their systems as trainers here, and their tables with the published figures.

A baseline is one line in ``systems`` and one in each table that has it. A line of a table whose system has no trainer
here keeps its published figures.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from braintum.trainers.recipes.papers import BR35H_UNET, BRAINTUMNET, FT_CNN_AND_RUNET, JOINT_UNET, RESSE_LKA, Paper

Figure = Mapping[str, Any]
"""``value`` and, of masks, ``sd``, see :func:`braintum.evaluation.results.summary.figure`."""

Read = Callable[[Mapping[str, Any], str], Figure | None]
"""A figure of a summary, given the name of the label that holds all others; None where there is none."""


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        name: as the paper has it.
        read: where our figure is.
        scale: of the paper's figures, 100 for per cent.
    """

    name: str
    read: Read
    scale: float = 1.0


@dataclass(frozen=True)
class PaperTable:
    """A table of a paper.

    Attributes:
        title: number and content.
        columns: of figures.
        published: system → the paper's figures, as it prints them.
        part: of the data set that it is about; empty for whatever was held out.
    """

    title: str
    columns: tuple[Column, ...]
    published: Mapping[str, tuple[str, ...]]
    part: str = ""


@dataclass(frozen=True)
class SystemOfPaper:
    """A system that a paper trains.

    Attributes:
        trainer: here.
        planner: with ``plans``; None for that of the trainer's recipe.
        plans: that the planner makes.
    """

    trainer: str
    planner: str | None = None
    plans: str | None = None


SPLIT_NAMES = {
    "patient": "folds by patient",
    "image": "folds by image",
    "official": "official split",
    "group": "folds by group of copies",
}
"""By ``braintum_split_by``."""


@dataclass(frozen=True)
class Reproduction:
    """A paper as experiments.

    Attributes:
        paper: which.
        data: what it is trained on, and how that is converted.
        systems: by the names that its tables have.
        tables: of the paper.
        folds: that the paper trains.
        splits: that say something: by ``patient`` (the folds of the data set) and, where the paper splits so, by
            ``image``; the ``official`` one of a data set with copies on both sides, and by ``group`` of copies.
    """

    paper: Paper
    data: str
    systems: Mapping[str, SystemOfPaper]
    tables: tuple[PaperTable, ...]
    folds: tuple[int, ...] = (0,)
    splits: tuple[str, ...] = ("patient",)


def _found(summary: Mapping[str, Any], *path: str) -> Figure | None:
    found: Any = summary
    for key in path:
        if not isinstance(found, Mapping) or key not in found:
            return None
        found = found[key]
    return found if isinstance(found, Mapping) else {"value": found}


def _mask(metric: str, group: str, label: str, summary: Mapping[str, Any], whole: str) -> Figure | None:
    return _found(summary, "segmentation", label or whole, "figures", group, metric)


def _class(path: tuple[str, ...], summary: Mapping[str, Any], whole: str) -> Figure | None:
    return _found(summary, "classification", *path)


def _one_against_rest(name: str, summary: Mapping[str, Any], whole: str) -> Figure | None:
    """Accuracy of telling a class from all others."""
    found = summary.get("classification", {})
    names, matrix = list(found.get("per_class", {})), found.get("confusion_matrix")
    if name not in names or not matrix or not (total := sum(map(sum, matrix))):
        return None
    index = names.index(name)
    wrong = sum(matrix[index]) + sum(row[index] for row in matrix) - 2 * matrix[index][index]
    return {"value": 1 - wrong / total}


def _mean_of_classes(name: str, summary: Mapping[str, Any], whole: str) -> Figure | None:
    classes = summary.get("classification", {}).get("per_class", {})
    found = [_class(("per_class", each, name), summary, whole) for each in classes]
    values = [figure["value"] for figure in found if figure and figure.get("value") is not None]
    return {"value": sum(values) / len(values)} if values else None


def mask(metric: str, group: str = "all", label: str = "") -> Read:
    """Mean of a metric of the masks.

    Args:
        metric: such as ``Dice``.
        group: class of the cases that count.
        label: name of the label; empty for the whole tumour.
    """
    return partial(_mask, metric, group, label)


def of_classes(*path: str) -> Read:
    """A figure of the classification, such as ``accuracy`` or ``per_class``, ``glioma``, ``f1``."""
    return partial(_class, path)


_TYPES = {"Glioma": "glioma", "Meningioma": "meningioma", "Metastatic": "metastasis"}
_SEGMENTATION = tuple(
    column
    for title, name in _TYPES.items()
    for column in (
        Column(f"{title} DSC", mask("Dice", name), 100),
        Column(f"{title} HD", mask("HD", name)),
        Column(f"{title} IoU", mask("IoU", name)),
    )
)
_CLASSIFICATION = tuple(
    column
    for title, name in _TYPES.items()
    for column in (
        Column(f"{title} Sen", of_classes("per_class", name, "sensitivity")),
        Column(f"{title} Spe", of_classes("per_class", name, "specificity")),
        Column(f"{title} ACC", partial(_one_against_rest, name)),
    )
)


def _rows(text: str) -> dict[str, tuple[str, ...]]:
    """System → figures, of lines ``system | figure figure …``; ``±`` binds what stands beside it."""
    rows = (line.partition("|") for line in text.strip().splitlines())
    return {name.strip(): tuple(figures.replace(" ± ", "±").split()) for name, _, figures in rows}


PAPER_000 = Reproduction(
    BRAINTUMNET,
    "volumes or slices of contrast-enhanced T1 with glioma, meningioma and metastasis (the paper's own are private): "
    "braintum_convert folder",
    {
        "U-Net": SystemOfPaper("nnUNetTrainerUNet_BrainTumNet"),
        "nnU-Net": SystemOfPaper("nnUNetTrainerPlansNetwork", "ExperimentPlanner", "nnUNetPlans"),
        "TransUNet": SystemOfPaper("nnUNetTrainerTransUNet"),
        "DeepLab": SystemOfPaper("nnUNetTrainerDeepLabV3Plus"),
        "Swin-UNet": SystemOfPaper("nnUNetTrainerSwinUNet"),
        "MedFormer": SystemOfPaper("nnUNetTrainerMedFormer"),
        "U-Net (classifier)": SystemOfPaper("nnUNetTrainerClassifierUNet_BrainTumNet"),
        "ResNet": SystemOfPaper("nnUNetTrainerClassifierResNet50"),
        "DenseNet": SystemOfPaper("nnUNetTrainerClassifierDenseNet121"),
        "GoogLeNet": SystemOfPaper("nnUNetTrainerClassifierGoogLeNet"),
        "BrainTumNet": SystemOfPaper("nnUNetTrainerBrainTumNet"),
        "BrainTumNet, two stages": SystemOfPaper("nnUNetTrainerBrainTumNetTwoStage"),
        "without transformer": SystemOfPaper("nnUNetTrainerBrainTumNetNoTransformer"),
        "without Inception": SystemOfPaper("nnUNetTrainerBrainTumNetNoInception"),
    },
    (
        PaperTable(
            "Table 1: masks",
            _SEGMENTATION,
            _rows("""
                U-Net       | 75.2 32.21 0.75 76.1 31.61 0.76 73.8 29.13 0.73
                nnU-Net     | 79.3 22.53 0.79 79.1 21.8 0.81 79.1 22.6 0.78
                TransUNet   | 81.5 18.25 0.80 81.3 18.3 0.81 82.1 18.32 0.82
                DeepLab     | 84.5 17.61 0.83 82.6 17.84 0.83 84.6 17.49 0.85
                Swin-UNet   | 87.4 15.16 0.88 87.6 15.73 0.87 88.3 14.47 0.88
                MedFormer   | 89.5 13.24 0.89 90.2 13.58 0.88 89.8 12.69 0.88
                BrainTumNet | 90.2 12.13 0.91 91.4 12.73 0.92 90.1 11.78 0.91
                """)
            | dict.fromkeys(("BrainTumNet, two stages", "without transformer", "without Inception"), ()),
        ),
        PaperTable(
            "Table 3: classes",
            _CLASSIFICATION,
            _rows("""
                U-Net (classifier) | 0.77 0.79 0.78 0.78 0.81 0.79 0.76 0.78 0.77
                ResNet             | 0.85 0.89 0.87 0.85 0.87 0.86 0.83 0.85 0.84
                DenseNet           | 0.87 0.90 0.88 0.86 0.92 0.89 0.85 0.89 0.87
                GoogLeNet          | 0.91 0.92 0.90 0.89 0.93 0.91 0.87 0.91 0.89
                BrainTumNet        | 0.92 0.95 0.93 0.93 0.95 0.94 0.90 0.94 0.92
                """)
            | dict.fromkeys(("BrainTumNet, two stages", "without transformer", "without Inception"), ()),
        ),
        PaperTable(
            "Table 4: masks of external data",
            (Column("DSC", mask("Dice"), 100), Column("HD", mask("HD")), Column("IoU", mask("IoU"))),
            _rows("""
                U-Net       | 75.5 29.78 0.77
                nnU-Net     | 79.3 21.8 0.78
                TransUNet   | 82.3 17.2 0.81
                DeepLab     | 84.6 17.84 0.83
                Swin-UNet   | 88.6 14.25 0.88
                MedFormer   | 90.2 12.12 0.89
                BrainTumNet | 92.1 11.47 0.91
                """),
            "external",
        ),
        PaperTable(
            "Table 5: classes of external data",
            (
                Column("Sen", partial(_mean_of_classes, "sensitivity")),
                Column("Spe", partial(_mean_of_classes, "specificity")),
                Column("ACC", of_classes("accuracy")),
                Column("AUC", of_classes("macro_auc")),
            ),
            _rows("""
                U-Net (classifier) | 0.76 0.78 0.77 0.816
                ResNet             | 0.79 0.83 0.81 0.841
                DenseNet           | 0.84 0.86 0.85 0.918
                GoogLeNet          | 0.87 0.91 0.89 0.937
                BrainTumNet        | 0.90 0.94 0.92 0.964
                """),
            "external",
        ),
    ),
    folds=(0, 1, 2, 3, 4),
)

PAPER_001 = Reproduction(
    JOINT_UNET,
    "BRISC 2025: braintum_convert brisc",
    {
        "U-Net": SystemOfPaper("nnUNetTrainerUNet"),
        "AttU-Net": SystemOfPaper("nnUNetTrainerAttentionUNet"),
        "JointU-Net": SystemOfPaper("nnUNetTrainerJointUNet"),
        "Standalone classifier": SystemOfPaper("nnUNetTrainerClassifierUNet"),
    },
    (
        PaperTable(
            "Table I: masks",
            (Column("Dice", mask("Dice")), Column("IoU", mask("IoU")), Column("Pixel Acc", mask("accuracy"))),
            _rows("""
                U-Net      | 0.8614 ± 0.1908 0.7910 ± 0.2105 0.9907 ± 0.0080
                AttU-Net   | 0.8626 ± 0.1892 0.7924 ± 0.2092 0.9907 ± 0.0078
                JointU-Net | 0.8231 0.7443 0.9900
                """),
        ),
        PaperTable(
            "Table II: classes",
            (
                Column("Accuracy", of_classes("accuracy")),
                Column("Macro F1", of_classes("macro_f1")),
                Column("Weighted F1", of_classes("weighted_f1")),
            ),
            _rows("""
                Standalone classifier | 0.9919 0.9900 0.9900
                JointU-Net            | 0.9693 0.9700 0.9700
                """),
        ),
    ),
    splits=("patient", "image"),
)

_STRUCTURES = {"NCR": "necrotic_core", "ET": "enhancing_tumour", "ED": "oedema"}
PAPER_002 = Reproduction(
    RESSE_LKA,
    "BraTS 2021: braintum_convert brats",
    {
        "U-Net": SystemOfPaper("nnUNetTrainerUNet_ResSELKA"),
        "Attention U-Net": SystemOfPaper("nnUNetTrainerAttentionUNet_ResSELKA"),
        "ResSE-LKA-UNet": SystemOfPaper("nnUNetTrainerResSELKA"),
    },
    (
        PaperTable(
            "Table 3: masks, mean over five folds (the baselines are compared on single cases only)",
            (
                *(Column(f"{name} DSC", mask("Dice", label=label), 100) for name, label in _STRUCTURES.items()),
                *(Column(f"{name} HD95", mask("HD95", label=label)) for name, label in _STRUCTURES.items()),
            ),
            {"U-Net": (), "Attention U-Net": ()}
            | _rows("ResSE-LKA-UNet | 85.72 ± 3.81 82.56 ± 3.53 78.62 ± 4.58 4.38 ± 1.34 6.08 ± 1.11 7.50 ± 1.62"),
        ),
    ),
    folds=(0, 1, 2, 3, 4),
)

_CLASSES_003 = {"0": "meningioma", "1": "glioma", "2": "pituitary"}
PAPER_003 = Reproduction(
    FT_CNN_AND_RUNET,
    "Figshare: braintum_convert figshare",
    {
        "RUNet": SystemOfPaper("nnUNetTrainerResidualUNet"),
        "FT-CNN": SystemOfPaper("nnUNetTrainerClassifierFTCNN"),
    },
    (
        PaperTable(
            "Table 1: classes",
            (
                Column("Accuracy", of_classes("accuracy")),
                *(
                    Column(f"{title} {number}", of_classes("per_class", name, metric))
                    for number, name in _CLASSES_003.items()
                    for title, metric in (("Precision", "precision"), ("Recall", "sensitivity"), ("F1", "f1"))
                ),
            ),
            _rows("FT-CNN | 0.96 0.93 0.91 0.92 0.95 0.98 0.97 0.99 0.97 0.98"),
        ),
        PaperTable(
            "Table 2: masks, validation of epoch 30",
            (
                Column("Accuracy", mask("accuracy")),
                Column("Dice", mask("Dice")),
                Column("IoU", mask("IoU")),
                Column("Jaccard distance", mask("Jaccard_distance")),
            ),
            _rows("RUNet | 0.9897 0.7369 0.6151 0.4516"),
        ),
    ),
    splits=("patient", "image"),
)

PAPER_004 = Reproduction(
    BR35H_UNET,
    "Br35H: braintum_convert br35h --outlined-only --official-split",
    {"U-Net": SystemOfPaper("nnUNetTrainerBr35HUNet")},
    (
        PaperTable(
            "Table I: masks",
            (
                Column("F1", mask("Dice")),
                Column("IoU", mask("IoU")),
                Column("Precision", mask("precision")),
                Column("Recall", mask("recall")),
                Column("Specificity", mask("specificity")),
                Column("Acc", mask("accuracy")),
            ),
            _rows("U-Net | 0.826 0.74 0.934 0.780 – 0.982"),
        ),
    ),
    splits=("official", "group"),
)

REPRODUCTIONS = {each.paper.number: each for each in (PAPER_000, PAPER_001, PAPER_002, PAPER_003, PAPER_004)}
"""By the papers' numbers."""
