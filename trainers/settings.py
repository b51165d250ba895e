"""Settings of our trainers that users change without writing a class: environment variables, in nnU-Net's manner."""

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class TrainingSettings:
    """What the environment asks for; None where it is silent.

    Attributes:
        num_epochs: ``braintum_num_epochs``.
        num_iterations_per_epoch: ``braintum_num_iterations_per_epoch``; validation takes a fifth of it, as in
            nnU-Net.
        seed: ``braintum_seed``; makes training reproducible on the CPU, also over a resume.
    """

    num_epochs: int | None = None
    num_iterations_per_epoch: int | None = None
    seed: int | None = None

    @staticmethod
    def from_environment() -> "TrainingSettings":
        """Read the environment.

        Raises:
            ValueError: a variable that is no whole number or too small.
        """
        return TrainingSettings(
            num_epochs=_whole_number("braintum_num_epochs", minimum=1),
            num_iterations_per_epoch=_whole_number("braintum_num_iterations_per_epoch", minimum=1),
            seed=_whole_number("braintum_seed", minimum=0),
        )


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
