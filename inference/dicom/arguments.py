"""The options by which commands ask for DICOM objects."""

import argparse
from pathlib import Path

from braintum.conversion.building.pseudonyms import Pseudonyms
from braintum.inference.dicom.kinds import DEFAULT_KINDS, KINDS


def add_object_arguments(group: argparse._ArgumentGroup) -> None:
    """``--dicom``, ``--labelmap`` and ``--pseudonymise``."""
    group.add_argument(
        "--dicom",
        nargs="*",
        choices=KINDS,
        metavar="KIND",
        help="also write DICOM objects: seg (segmentation), sr (structured report), sc (picture), rtstruct (contours); "
        f"without a kind: {', '.join(DEFAULT_KINDS)}",
    )
    group.add_argument(
        "--labelmap",
        action="store_true",
        help="write the segmentation as the newer Label Map object, which many archives refuse still",
    )
    group.add_argument(
        "--pseudonymise",
        metavar="SALT_FILE",
        help="keep patient and study out of the results: hashes with the secret salt in that file, which is made where "
        "there is none; as braintum_convert's",
    )


def add_archive_arguments(group: argparse._ArgumentGroup) -> None:
    """``--dicomweb`` and ``--store``."""
    group.add_argument(
        "--dicomweb",
        metavar="URL",
        help="fetch the study from an archive, such as Orthanc's http://localhost:8042/dicom-web; -i is its "
        "StudyInstanceUID then",
    )
    group.add_argument("--store", action="store_true", help="send the DICOM objects to that archive")


def pseudonyms_of(args: argparse.Namespace) -> Pseudonyms | None:
    """What ``--pseudonymise`` names.

    Raises:
        ValueError: the file holds no salt.
    """
    return None if args.pseudonymise is None else Pseudonyms.from_file(Path(args.pseudonymise))
