"""Studies from an archive and results into it by DICOMweb: QIDO-RS, WADO-RS, STOW-RS."""

from collections.abc import Sequence
from pathlib import Path

import pydicom
import requests
from dicomweb_client.api import DICOMwebClient
from requests import RequestException


class Archive:
    """An archive that speaks DICOMweb.

    Args:
        url: of the service, such as ``http://archive:8042/dicom-web``; user and password, where it wants them, stand in
            ``~/.netrc``.
    """

    def __init__(self, url: str) -> None:
        self._url, self._client = url, DICOMwebClient(url, session=requests.Session())

    def retrieve(self, study_uid: str, folder: Path) -> int:
        """Write the MR images of a study; their number.

        Args:
            study_uid: StudyInstanceUID.
            folder: exists.

        Raises:
            ValueError: the archive has no MR series of it.
            OSError: the archive does not answer, or answers nonsense.
        """
        count = 0
        try:
            found = self._client.search_for_series(study_uid, search_filters={"Modality": "MR"})
            for series in found:
                uid = pydicom.Dataset.from_json(series).SeriesInstanceUID
                for dataset in self._client.iter_series(study_uid, uid):
                    dataset.save_as(folder / f"{count:06d}.dcm", enforce_file_format=True)
                    count += 1
        except (RequestException, AttributeError, TypeError) as error:
            raise OSError(f"{self._url}: study {study_uid} cannot be fetched ({error})") from error
        if not count:
            raise ValueError(f"{self._url} has no MR images of the study {study_uid}; is it its StudyInstanceUID?")
        return count

    def store(self, files: Sequence[Path]) -> None:
        """Send objects.

        Raises:
            OSError: the archive does not take them.
        """
        try:
            answer = self._client.store_instances([pydicom.dcmread(file) for file in files])
        except RequestException as error:
            raise OSError(f"{self._url} does not take the results ({error})") from error
        if answer.get("FailedSOPSequence"):
            raise OSError(f"{self._url} does not take {len(answer.FailedSOPSequence)} of the results")
