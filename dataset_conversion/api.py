"""Python API: conversion of a data set, whatever its source."""

import argparse
import inspect
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from braintum.commands.boundary import api_function
from braintum.conversion.building.pseudonyms import Pseudonyms
from braintum.conversion.building.raw_dataset import ConversionRequest, ConversionResult, raw_folder_from_environment
from braintum.conversion.files.parallel import default_processes
from braintum.conversion.sources import br35h, brats, brisc, combine, figshare, folder, kaggle4, lgg

__all__ = ["SOURCES", "convert"]


class SourceModule(Protocol):
    """What the module of a source offers; options that `add_arguments` adds are handed to `convert` by keyword."""

    KIND: str
    DEFAULT_NAME: str
    DESCRIPTION: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Adds the source's own options."""

    @property
    def convert(self) -> "Converter":
        """Converts, or only checks."""


class Converter(Protocol):
    """The signature of a source's `convert`."""

    def __call__(self, request: ConversionRequest) -> ConversionResult:
        """Converts, or only checks."""


SOURCES: dict[str, SourceModule] = {
    module.KIND: module for module in (figshare, brisc, br35h, kaggle4, lgg, brats, folder)
}
"""The sub-commands. A new source is a module like `figshare`, added here."""


@api_function(needs_nnunet=False)
def convert(
    kind: str,
    source: str | os.PathLike[str] | Sequence[int],
    dataset_id: int,
    *,
    name: str | None = None,
    dry_run: bool = False,
    n_processes: int | None = None,
    overwrite: bool = False,
    fraction: float = 1.0,
    seed: int = 42,
    strict: bool = False,
    pseudonymise: str | os.PathLike[str] | None = None,
    not_needed: Sequence[str] = (),
    **options: Any,
) -> ConversionResult:
    """Converts a data set to nnU-Net's raw layout in `nnUNet_raw`, as `braintum_convert` does.

    Example:
        >>> result = bt.convert("figshare", "source", 901, name="Phantoms")
        >>> result.folder.name, result.n_cases
        ('Dataset901_Phantoms', 15)

    Args:
        kind: of source: `figshare`, `brisc`, `br35h`, `kaggle4`, `lgg`, `brats`, `folder`, or `combine`.
        source: folder with the source in its original layout; for `combine` the numbers of converted data sets.
        dataset_id: number of the new data set, 1 to 999.
        name: of the new data set; None for the name of the source.
        dry_run: check everything, write nothing.
        n_processes: number of worker processes; None for as many as there are cores to use.
        overwrite: replace the data set of this number and name.
        fraction: convert a random share of the patients of each class.
        seed: chooses the share.
        strict: write nothing if a case is faulty, instead of leaving that case out.
        pseudonymise: file with a secret salt, made if it does not exist; names cases and patients by hashes.
        not_needed: patterns of images in the source that are not meant to be used.
        options: of the source's own `convert`, such as `pool=True`: the command's, with `_` for `-`.

    Returns:
        The data set's folder and summary, and why cases and images were left out.

    Raises:
        InputError: unknown kind or option, faults of the source, or a number that is in use.
        MissingFileError: no such source.
        FileError: `nnUNet_raw` cannot be written to.
    """
    known: dict[str, Callable[..., ConversionResult]] = {name: module.convert for name, module in SOURCES.items()}
    known[combine.KIND] = combine.combine
    if kind not in known:
        raise ValueError(f"unknown kind of source {kind!r}; choose one of {', '.join(known)}")
    raw_folder = raw_folder_from_environment()
    if kind == combine.KIND:
        options["dataset_ids"], default_name, source_folder = source, combine.DEFAULT_NAME, raw_folder
    elif isinstance(source, (str, os.PathLike)):
        default_name, source_folder = SOURCES[kind].DEFAULT_NAME, Path(source)
    else:
        raise ValueError(f"the source of {kind} is a folder, not {source!r}; numbers are for {combine.KIND}")
    possible = [parameter for parameter in inspect.signature(known[kind]).parameters if parameter != "request"]
    if unknown := [option for option in options if option not in possible]:
        raise ValueError(f"{kind} has no option {unknown[0]}; it has {', '.join(possible) or 'none'}")
    others = (os.environ.get(variable) for variable in ("nnUNet_preprocessed", "nnUNet_results"))
    request = ConversionRequest(
        source=source_folder,
        raw_folder=raw_folder,
        dataset_id=dataset_id,
        name=default_name if name is None else name,
        dry_run=dry_run,
        n_processes=default_processes() if n_processes is None else n_processes,
        overwrite=overwrite,
        other_folders=tuple(Path(folder) for folder in others if folder),
        fraction=fraction,
        seed=seed,
        pseudonyms=None if pseudonymise is None else Pseudonyms.from_file(pseudonymise, create=not dry_run),
        strict=strict,
        not_needed=tuple(not_needed),
    )
    return known[kind](request, **options)
