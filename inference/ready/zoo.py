"""The models that come trained: those of this package, and those that a user has installed."""

import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from braintum.architectures.weights_fingerprint import weights_fingerprint
from braintum.conversion.files.atomic import atomic_path, write_json_atomic
from braintum.inference.models.checkpoints import in_single_precision, load_checkpoint_safely
from braintum.inference.models.model_files import checked_configuration, read_dataset_json, read_plans
from braintum.inference.models.trained_with import check_trained_with
from braintum.inference.ready.card import CARD_FILE, read_card
from braintum.inference.ready.suitability import SUITABILITY_FILE, Suitability

VARIABLE = "braintum_models_folder"
"""Environment variable: folder for installed models; not set: ``braintum/models`` among the user's data."""

DEFAULT_MODEL = "figshare-tumour-types"
"""What predicts where no model is named."""

FOLD = "all"
CHECKPOINT = "checkpoint_final.pth"
_FILES = (CARD_FILE, "dataset.json", "plans.json", SUITABILITY_FILE, f"fold_{FOLD}/{CHECKPOINT}")
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
_MOST_BYTES = 2 * 2**30
_SHIPPED = Path(__file__).parent / "models"


@dataclass(frozen=True)
class ReadyModel:
    """A model that can be used at once.

    Attributes:
        name: of the model.
        folder: a model folder as nnU-Net has them, with a card.
        card: see :mod:`braintum.inference.ready.card`.
        is_shipped: whether it came with this package.
    """

    name: str
    folder: Path
    card: Mapping[str, Any]
    is_shipped: bool

    def suitability(self) -> Suitability | None:
        """What tells images that the model was not made for; None for a model without it."""
        file = self.folder / SUITABILITY_FILE
        return Suitability.load(file) if file.is_file() else None

    @property
    def num_bytes(self) -> int:
        """Of all its files."""
        return sum(file.stat().st_size for file in self.folder.rglob("*") if file.is_file())


def user_folder() -> Path:
    """Where models are installed."""
    if named := os.environ.get(VARIABLE):
        return Path(named)
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(data) / "braintum" / "models"


def ready_models() -> list[ReadyModel]:
    """All models, those of the package first; an installed one does not replace one of the package.

    Raises:
        ValueError: a card is damaged.
    """
    found: dict[str, ReadyModel] = {}
    for folder, is_shipped in ((_SHIPPED, True), (user_folder(), False)):
        for card_file in sorted(folder.glob(f"*/{CARD_FILE}")):
            name = card_file.parent.name
            if not name.startswith(".") and name not in found:
                found[name] = ReadyModel(name, card_file.parent, read_card(card_file.parent), is_shipped)
    return list(found.values())


def ready_model(name: str | None = None) -> ReadyModel:
    """A model by its name, or the default one.

    Raises:
        ValueError: there is none of this name.
    """
    models = ready_models()
    wanted = name or DEFAULT_MODEL
    match = next((model for model in models if model.name == wanted), None)
    if match is None:
        names = ", ".join(model.name for model in models) or "none"
        raise ValueError(
            f"no ready model {wanted!r} (there are: {names}); install one: braintum_models install FILE.zip"
        )
    return match


# ---------------------------------------------------------------------- packing and installing


def half_precision(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """What of a checkpoint predicts, with floating-point weights in 16 bits."""
    weights = {
        name: tensor.half() if tensor.is_floating_point() else tensor
        for name, tensor in checkpoint["network_weights"].items()
    }
    for name, tensor in weights.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"the weights {name} do not fit into 16 bits")
    return {
        "network_weights": {name: tensor.contiguous() for name, tensor in weights.items()},
        "trainer_name": checkpoint["trainer_name"],
        "init_args": {"configuration": checkpoint["init_args"]["configuration"]},
        "inference_allowed_mirroring_axes": checkpoint.get("inference_allowed_mirroring_axes"),
    }


def pack(
    model_folder: Path,
    card: Mapping[str, Any],
    target: Path,
    fold: int | str = FOLD,
    suitability: Suitability | None = None,
) -> Path:
    """Make a ready model of a trained one.

    Args:
        model_folder: with ``plans.json``, ``dataset.json`` and ``fold_X``.
        card: without ``weights``, which is the fingerprint of the packed weights.
        target: folder that gets the model's folder, named as the card says.
        fold: that is packed.
        suitability: of images.

    Returns:
        The folder of the ready model.

    Raises:
        FileExistsError: it is there already.
        ValueError: the card lacks something, or the weights do not fit into 16 bits.
    """
    dataset_json, plans = read_dataset_json(model_folder / "dataset.json"), read_plans(model_folder / "plans.json")
    file = model_folder / f"fold_{fold}" / CHECKPOINT
    trained = load_checkpoint_safely(file)
    check_trained_with(trained, plans.plans, dataset_json, file)
    checkpoint = half_precision(trained)
    folder = target / str(card["name"])
    if folder.exists():
        raise FileExistsError(f"{folder} is there already; move it away, or give the card another name")
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".packing-", dir=target) as temporary:
        new = Path(temporary) / folder.name
        (new / f"fold_{FOLD}").mkdir(parents=True)
        write_json_atomic(new / "dataset.json", dataset_json)
        write_json_atomic(new / "plans.json", plans.plans)
        torch.save(checkpoint, new / f"fold_{FOLD}" / CHECKPOINT)
        fingerprint = weights_fingerprint(in_single_precision(checkpoint["network_weights"]))
        write_json_atomic(new / CARD_FILE, {**card, "weights": fingerprint})
        if suitability is not None:
            suitability.save(new / SUITABILITY_FILE)
        _check(new)
        os.replace(new, folder)
    return folder


def export(model: ReadyModel, file: Path) -> None:
    """Write a ready model into a zip file, for :func:`install`."""
    with atomic_path(file) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in _FILES:
            if (model.folder / name).is_file():
                archive.write(model.folder / name, f"{model.name}/{name}")


def install(file: Path) -> ReadyModel:
    """Unpack a model that :func:`export` wrote, without trusting the file.

    Raises:
        FileNotFoundError: no such file.
        FileExistsError: a model of this name is there already.
        ValueError: it holds no model, or is damaged.
    """
    if not file.is_file():
        raise FileNotFoundError(f"no model at {file}")
    target = user_folder()
    try:
        with zipfile.ZipFile(file) as archive:
            names = {info.filename: info for info in archive.infolist() if not info.is_dir()}
            name = next(iter(names), "").partition("/")[0]
            unknown = [member for member in names if member not in {f"{name}/{part}" for part in _FILES}]
            if not _NAME.fullmatch(name) or unknown or f"{name}/{CARD_FILE}" not in names:
                raise ValueError(
                    f"{file} holds no model of braintum_models export; models of nnUNetv2_export_model_to_zip "
                    "are installed with braintum_install_model"
                )
            if sum(info.file_size for info in names.values()) > _MOST_BYTES:
                raise ValueError(f"{file} would unpack to more than {_MOST_BYTES / 2**30:.0f} GiB; it was not unpacked")
            if (target / name).exists() or (_SHIPPED / name).exists():
                raise FileExistsError(f"a model {name} is there already; braintum_models list shows it")
            target.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".installing-", dir=target) as temporary:
                for member in names:
                    path = Path(temporary, member)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with archive.open(member) as source, path.open("xb") as stream:
                        shutil.copyfileobj(source, stream, 2**20)
                _check(Path(temporary, name))
                os.replace(Path(temporary, name), target / name)
    except (zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        raise ValueError(f"{file} is no zip file, or damaged: {error}; download it again") from error
    return ReadyModel(name, target / name, read_card(target / name), is_shipped=False)


def _check(folder: Path) -> None:
    """All that a prediction would load.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged or not safe, or the weights are not those of the card.
    """
    card = read_card(folder)
    read_dataset_json(folder / "dataset.json")
    plans = read_plans(folder / "plans.json")
    file = folder / f"fold_{FOLD}" / CHECKPOINT
    checkpoint = load_checkpoint_safely(file)
    checked_configuration(plans, checkpoint["init_args"]["configuration"], folder / "plans.json")
    found = weights_fingerprint(in_single_precision(checkpoint["network_weights"]))
    if found != card["weights"]:
        raise ValueError(f"{file}: these weights ({found}) are not those of the card ({card['weights']})")
    if (folder / SUITABILITY_FILE).is_file():
        Suitability.load(folder / SUITABILITY_FILE)
