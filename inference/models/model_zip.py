"""Models in zip files, as ``nnUNetv2_export_model_to_zip`` writes them, unpacked without trusting the file."""

import os
import re
import shutil
import stat
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

from braintum.inference.models.checkpoints import load_checkpoint_safely
from braintum.inference.models.model_files import checked_configuration, read_dataset_json, read_plans
from braintum.inference.models.trained_with import check_trained_with

_MAX_FILES = 100_000
_MAX_BYTES = 200 * 2**30
_MAX_RATIO = 200  # weights and images do not compress further
_SMALL = 10 * 2**20  # below, the ratio does not matter
_PREDICTION_FILE = re.compile(r'"prediction_file": "([^"]*)"')
_PSEUDONYM = re.compile(r"case_[0-9a-f]{16}")


def install_model(archive: str | os.PathLike[str], results: str | os.PathLike[str], trust: bool = False) -> list[Path]:
    """Unpack the models of a zip file into a folder of nnU-Net's results.

    Everything is checked before the first file appears in ``results``: names, sizes, plans and weights. Pickled
    post-processing (``.pkl``), which nnU-Net would run, is left out; its ``.json`` twin is installed.

    Args:
        archive: the zip file.
        results: as ``nnUNet_results``.
        trust: also install checkpoints that would run code.

    Returns:
        The models' folders.

    Raises:
        FileNotFoundError: no such file.
        FileExistsError: a model of it is there already.
        ValueError: it is no zip file of nnU-Net's, or not safe.
    """
    archive, results = Path(archive), Path(results)
    if not archive.is_file():
        raise FileNotFoundError(f"no model at {archive}")
    try:
        with zipfile.ZipFile(archive) as content:
            members = _checked_members(content, archive)
            models = sorted({PurePosixPath(*path.parts[:2]) for path in members.values() if path.name == "plans.json"})
            if not models:
                raise ValueError(f"{archive} holds no model: DatasetXXX_NAME/TRAINER__PLANS__CONFIGURATION/plans.json")
            if existing := [str(results / model) for model in models if (results / model).exists()]:
                raise FileExistsError(f"{', '.join(existing)}: there already; move it away to install {archive}")
            results.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".installing-", dir=results) as temporary:
                for member, path in members.items():
                    target = Path(temporary, path)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with content.open(member) as source, open(target, "xb") as stream:
                        shutil.copyfileobj(source, stream, 2**20)
                for model in models:
                    _check_model(Path(temporary, model), trust)
                for model in models:
                    (results / model).parent.mkdir(exist_ok=True)
                    os.replace(Path(temporary, model), results / model)
    except (zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        raise ValueError(f"{archive} is no zip file, or damaged: {error}; download it again") from error
    return [results / model for model in models]


def named_cases(model: Path) -> list[str]:
    """Cases that a model's summaries of its validation name, other than by pseudonyms of ``--pseudonymise``."""
    texts = (file.read_text(encoding="utf-8", errors="replace") for file in sorted(model.rglob("summary.json")))
    files = {re.split(r"[/\\]", path)[-1] for text in texts for path in _PREDICTION_FILE.findall(text)}
    return sorted(name for name in (file.partition(".")[0] for file in files) if not _PSEUDONYM.fullmatch(name))


def _checked_members(content: zipfile.ZipFile, archive: Path) -> dict[zipfile.ZipInfo, PurePosixPath]:
    """Files to unpack, with their paths.

    Raises:
        ValueError: a name leaves the folder, a link, an encrypted file, or more than a model can be.
    """
    infos = [info for info in content.infolist() if not info.is_dir()]
    if len(infos) > _MAX_FILES:
        raise ValueError(f"{archive} holds {len(infos)} files, more than {_MAX_FILES}: no model")
    members: dict[zipfile.ZipInfo, PurePosixPath] = {}
    for info in infos:
        path = PurePosixPath(info.filename)
        fault = _fault(info, path)
        if fault is None and path in members.values():
            fault = "is there twice"
        if fault is not None:
            raise ValueError(f"{archive}: {info.filename!r} {fault}; nothing was unpacked. Do not use this file")
        if path.suffix != ".pkl":
            members[info] = path
    if (total := sum(info.file_size for info in members)) > _MAX_BYTES:
        raise ValueError(f"{archive} would unpack to {total / 2**30:.0f} GiB; nothing was unpacked")
    return members


def _fault(info: zipfile.ZipInfo, path: PurePosixPath) -> str | None:
    parts = path.parts
    kind = stat.S_IFMT(info.external_attr >> 16)
    if path.is_absolute() or ".." in parts or "\\" in info.filename or re.match(r"^[A-Za-z]:", info.filename):
        return "would be written outside the folder"
    if kind not in (0, stat.S_IFREG):
        return "is a link or a device"
    if info.flag_bits & 1:
        return "is encrypted"
    if not re.match(r"^Dataset\d{3}_", parts[0]) or len(parts) < 3:
        return "lies in no folder of a data set and model"
    if info.file_size > max(_SMALL, _MAX_RATIO * info.compress_size):
        return f"claims to unpack to {info.file_size / max(1, info.compress_size):.0f} times its size"
    return None


def _check_model(folder: Path, trust: bool) -> None:
    """All that a prediction would load.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged or not safe.
    """
    dataset_json = read_dataset_json(folder / "dataset.json")
    plans = read_plans(folder / "plans.json")
    checkpoints = sorted(folder.glob("fold_*/*.pth"))
    if not checkpoints:
        raise FileNotFoundError(f"{folder.name} has no checkpoint fold_X/checkpoint_final.pth")
    for file in checkpoints:
        checkpoint = load_checkpoint_safely(file, trust)
        checked_configuration(plans, checkpoint["init_args"]["configuration"], folder / "plans.json")
        check_trained_with(checkpoint, plans.plans, dataset_json, file)
