"""Settings of our trainers that users change without writing a class: environment variables, in nnU-Net's manner.

:func:`braintum.train` takes them as an argument, and hands them on in the same way: nnU-Net passes nothing else on to
its trainers and the processes that they start.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

TASK_BALANCING = ("fixed", "uncertainty", "pcgrad", "gradnorm")
"""How the two tasks may be balanced; the first is the default."""

SPLIT_BY = ("patient", "image", "official", "group")
"""How folds are made; the first is the default."""

AUGMENTATION = ("default", "gpu", "cpu")
"""Where patches may be augmented; the first is the default."""

PRECISION = ("", "float32", "bfloat16", "auto")
"""What training steps may be computed with; the first leaves it to the recipe."""


@dataclass(frozen=True)
class TrainingSettings:
    """What the environment or the caller asks for; None leaves it to the trainer's recipe.

    Attributes:
        num_epochs: ``braintum_num_epochs``: length of the training; not set: the trainer's own.
        num_iterations_per_epoch: ``braintum_num_iterations_per_epoch``: of training; validation takes a fifth of it,
            as in nnU-Net; not set: 250.
        seed: ``braintum_seed``: makes training reproducible on the CPU, also over a resume.
        deterministic: ``braintum_deterministic``: at 1, with a seed, training is reproducible on CUDA too; slower.
            torch warns of operations that it cannot make so.
        task_balancing: ``braintum_task_balancing``: how segmentation and classification are balanced: by the recipe's
            ``fixed`` weights, by learned ``uncertainty``, by gradient surgery (``pcgrad``), or by weights learned from
            the norms of the gradients (``gradnorm``), see
            :mod:`braintum.trainers.losses.task_balancing`.
        mask_supervision: ``braintum_mask_supervision``: weight of a loss of the masks in adaptive masked attention,
            which asks that they cover the tumour, see :mod:`braintum.trainers.losses.mask_supervision`; not set: they
            are trained by the other losses alone, as in paper 000.
        augmentation: ``braintum_augmentation``: where patches are augmented: on the training device (``gpu``) or in
            nnU-Net's workers (``cpu``); by ``default`` on a CUDA device, for others in workers.
        precision: ``braintum_precision``: of training steps on a CPU: ``float32``, ``bfloat16``, or the faster one of
            them (``auto``); on CUDA ``float32`` switches nnU-Net's half precision off, and the others leave it on; not
            set: the trainer's own.
        permuted_labels: ``braintum_permuted_labels``: seed of a control: classes are permuted among the training
            patients, and results go to ``nnUNet_results/permuted_labels_SEED``, see
            :mod:`braintum.evaluation.results.label_permutation`.
        split_by: ``braintum_split_by``: with ``image`` a control: five folds of single images with equal shares of the
            classes, as papers have them, whatever patient they are of; its validation is too good, and results go to
            ``nnUNet_results/split_by_image``. So with ``official``: the data set's own folds, copies on both sides
            or not. With ``group`` there are folds by patient and group of copies instead of those, in
            ``split_by_group``. By default (``patient``) the folds are those of the data set, which have to keep
            patients and copies on one side.
        allow_leaks: ``braintum_allow_leaks``: at 1, a split with a patient on both sides is trained all the same; its
            validation is too good.
        save_every: ``braintum_save_every``: epochs between two checkpoints to go on from, so what a killed training
            loses at most; not set: nnU-Net's 50.
        tensorboard: ``braintum_tensorboard``: at 1, curves and pictures go to a folder ``tensorboard`` beside the
            checkpoints, too; needs ``pip install braintum[tensorboard]``.
    """

    num_epochs: int | None = None
    num_iterations_per_epoch: int | None = None
    seed: int | None = None
    deterministic: bool = False
    task_balancing: str = "fixed"
    mask_supervision: float | None = None
    augmentation: str = "default"
    precision: str = ""
    permuted_labels: int | None = None
    split_by: str = "patient"
    allow_leaks: bool = False
    save_every: int | None = None
    tensorboard: bool = False

    @staticmethod
    def from_environment() -> "TrainingSettings":
        """Read the environment.

        Raises:
            ValueError: a variable that is no whole number or too small, or an unknown choice; a deterministic
                training without a seed.
        """
        settings = TrainingSettings(
            num_epochs=_whole_number("braintum_num_epochs", minimum=1),
            num_iterations_per_epoch=_whole_number("braintum_num_iterations_per_epoch", minimum=1),
            seed=_whole_number("braintum_seed", minimum=0),
            deterministic=_choice("braintum_deterministic", ("0", "1")) == "1",
            task_balancing=_choice("braintum_task_balancing", TASK_BALANCING),
            mask_supervision=_positive_number("braintum_mask_supervision"),
            augmentation=_choice("braintum_augmentation", AUGMENTATION),
            precision=_choice("braintum_precision", PRECISION),
            permuted_labels=_whole_number("braintum_permuted_labels", minimum=0),
            split_by=_choice("braintum_split_by", SPLIT_BY),
            allow_leaks=_choice("braintum_allow_leaks", ("0", "1")) == "1",
            save_every=_whole_number("braintum_save_every", minimum=1),
            tensorboard=_choice("braintum_tensorboard", ("0", "1")) == "1",
        )
        if settings.deterministic and settings.seed is None:
            raise ValueError("braintum_deterministic=1 needs a seed; set the environment variable braintum_seed too")
        return settings

    @contextmanager
    def in_environment(self) -> Iterator[None]:
        """Within the block, trainers find these settings and no others, also in processes that it starts.

        Raises:
            ValueError: see :meth:`from_environment`.
        """
        values = {f"braintum_{name}": value for name, value in asdict(self).items()}
        before = {name: os.environ[name] for name in values if name in os.environ}
        try:
            for name, value in values.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = str(int(value) if isinstance(value, bool) else value)
            self.from_environment()
            yield
        finally:
            for name in values:
                os.environ.pop(name, None)
            os.environ.update(before)


def _choice(name: str, options: tuple[str, ...]) -> str:
    """One of the options, the first where the variable is not set."""
    text = os.environ.get(name, "").strip() or options[0]
    if text not in options:
        known = ", ".join(filter(None, options))
        raise ValueError(f"the environment variable {name} takes one of {known}, got {text!r}")
    return text


def _positive_number(name: str) -> float | None:
    text = os.environ.get(name, "").strip()
    try:
        value = float(text) if text else None
    except ValueError:
        value = 0.0
    if value is not None and not 0 < value < float("inf"):
        raise ValueError(f"the environment variable {name} takes a number above 0, got {text!r}")
    return value


def _whole_number(name: str, minimum: int) -> int | None:
    text = os.environ.get(name, "").strip()
    if not text:
        return None
    try:
        value = int(text)
    except ValueError:
        value = minimum - 1
    if value < minimum:
        raise ValueError(f"the environment variable {name} takes a whole number from {minimum} on, got {text!r}")
    return value
