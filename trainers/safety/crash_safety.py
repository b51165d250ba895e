"""What a training that is killed, or whose disk is full, leaves behind, and how it goes on."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nnunetv2.inference.export_prediction import export_prediction_from_logits

from braintum.conversion.files.atomic import atomic_files, remove_partial_files, sync_file
from braintum.conversion.files.disk import explain_unwritable

_PARTIAL_ENDING = ".partial"
_KEPT = "The checkpoints written before are kept: train with --c to go on from the last one"


@contextmanager
def complete_or_absent(filename: str, num_bytes: int) -> Iterator[str]:
    """Yields a temporary name for a checkpoint, which replaces the former one if something was written.

    Args:
        filename: of the checkpoint.
        num_bytes: that it will take, roughly.

    Raises:
        UnwritableFolderError: the disk is full, or the folder read-only. torch tells neither.
    """
    temporary = f"{filename}.{os.getpid()}{_PARTIAL_ENDING}"
    try:
        yield temporary
        if os.path.isfile(temporary):  # another rank, or checkpointing disabled: nothing was written
            sync_file(temporary)
            os.replace(temporary, filename)
    except Exception:
        Path(temporary).unlink(missing_ok=True)  # or there is no room to try
        explain_unwritable(Path(filename).parent, _KEPT, num_bytes)
        raise
    finally:
        Path(temporary).unlink(missing_ok=True)


def remove_partial_checkpoints(folder: str | os.PathLike[str]) -> None:
    """Remove what :func:`complete_or_absent` left in a folder when it was killed."""
    for file in Path(folder).glob(f"checkpoint_*{_PARTIAL_ENDING}"):
        file.unlink(missing_ok=True)


def begin_validation(folder: Path) -> None:
    """Clear up an earlier validation: its figures must not outlive its files, which are now replaced one by one."""
    if folder.is_dir():
        remove_partial_files(folder)
        (folder / "summary.json").unlink(missing_ok=True)


def export_completely(
    logits: Any,
    properties: dict,
    configuration_manager: Any,
    plans_manager: Any,
    dataset_json: dict,
    output_file_truncated: str,
    save_probabilities: bool = False,
) -> None:
    """nnU-Net's ``export_prediction_from_logits``, whose files appear when they are complete."""
    target = Path(output_file_truncated)
    try:
        with atomic_files(target.parent) as partial:
            export_prediction_from_logits(
                logits,
                properties,
                configuration_manager,
                plans_manager,
                dataset_json,
                str(partial / target.name),
                save_probabilities,
            )
    except Exception:
        explain_unwritable(target.parent, "The training is kept: repeat the validation with --val")
        raise
