"""The queue of a node: a folder that holds what came in until its results are sent, whatever happens in between.

What is to be done with a study follows from its files alone, so that a node that was killed goes on where it was::

    SPOOL/<study>/images/<image>.dcm   written whole, or not at all, before the sender is told that they arrived
    SPOOL/<study>/results/*.dcm        complete where state.json says so
    SPOOL/<study>/state.json           what was done with which images

Names are hashes of UIDs: nothing that a sender writes into a header becomes a file name.
"""

import hashlib
import logging
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from braintum.conversion.files.atomic import atomic_path, remove_partial_files, write_json_atomic
from braintum.conversion.files.json_files import read_json_object

_LOG = logging.getLogger(__name__)
_MOST_ATTEMPTS = 5  # to predict a study: one that ends the process each time must not block the others for ever


class SpoolFullError(OSError):
    """There is no room; the sender is to try again later."""


@dataclass(frozen=True)
class Limits:
    """What a node takes.

    Attributes:
        studies: that wait at most.
        instances: of a study.
        instance_bytes: of an image.
        total_bytes: of all images.
    """

    studies: int = 200
    instances: int = 5000
    instance_bytes: int = 2**30
    total_bytes: int = 50 * 2**30


@dataclass(frozen=True)
class QueuedStudy:
    """The folder of a study."""

    folder: Path

    @property
    def name(self) -> str:
        """A hash, for the log."""
        return self.folder.name[:12]

    @property
    def images(self) -> Path:
        """What came in."""
        return self.folder / "images"

    @property
    def results(self) -> Path:
        """What is to be sent."""
        return self.folder / "results"

    def image_files(self) -> list[Path]:
        """All that arrived."""
        return sorted(self.images.glob("*.dcm"))

    def content(self) -> str:
        """Changes with every further image."""
        return _hash(*(file.name for file in self.image_files()))

    def age(self) -> float:
        """Seconds since the last image."""
        return time.time() - max((file.stat().st_mtime for file in self.image_files()), default=time.time())

    def state(self) -> dict[str, Any]:
        """What was done with the images that are there now: ``step`` of ``received``, ``predicted``, ``sent`` and
        ``failed``, ``attempts``, and ``why`` of a failure."""
        file = self.folder / "state.json"
        try:
            state = read_json_object(file)
        except (FileNotFoundError, ValueError):
            state = {}
        if state.get("content") != self.content():
            return {"step": "received", "attempts": 0}
        return state

    def note(self, content: str, step: str, **more: Any) -> None:
        """Note what was done with the images of that content."""
        write_json_atomic(self.folder / "state.json", {"content": content, "step": step, **more})


@dataclass
class Spool:
    """The folder of all studies. One process has it at a time.

    Attributes:
        folder: made if need be.
        limits: what it takes.
    """

    folder: Path
    limits: Limits = Limits()
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _counts: dict[str, int] = field(default_factory=dict, repr=False)
    _bytes: int = 0

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for study in self.studies():
            for folder in (study.folder, study.images):
                remove_partial_files(folder)
            files = study.image_files()
            self._counts[study.folder.name] = len(files)
            self._bytes += sum(file.stat().st_size for file in files)

    def studies(self) -> Iterator[QueuedStudy]:
        """All that are there, the oldest first."""
        folders = [path for path in self.folder.iterdir() if path.is_dir()]
        for folder in sorted(folders, key=lambda path: (path.stat().st_ctime, path.name)):
            yield QueuedStudy(folder)

    def store(self, study_uid: str, instance_uid: str, content: bytes) -> None:
        """Keep an image; when this returns, it is on the disk. One that is there already is left alone.

        Raises:
            SpoolFullError: a limit is reached.
            ValueError: the image, or its study, is larger than the limits allow.
        """
        study = QueuedStudy(self.folder / _hash(study_uid))
        target = study.images / f"{_hash(instance_uid)}.dcm"
        with self._lock:
            if target.exists():
                return
            known = self._counts.get(study.folder.name, 0)
            if len(content) > self.limits.instance_bytes:
                raise ValueError(f"an image of {len(content)} bytes is too large")
            if known >= self.limits.instances:
                raise ValueError(f"a study of more than {self.limits.instances} images")
            if not known and sum(1 for _ in self.waiting()) >= self.limits.studies:
                raise SpoolFullError("too many studies wait")
            if self._bytes + len(content) > self.limits.total_bytes:
                raise SpoolFullError("the spool is full")
            study.images.mkdir(parents=True, exist_ok=True)
            with atomic_path(target, durable=True) as partial:
                partial.write_bytes(content)
            self._counts[study.folder.name] = known + 1
            self._bytes += len(content)

    def waiting(self) -> Iterator[QueuedStudy]:
        """Studies with something to be done."""
        return (study for study in self.studies() if study.state()["step"] in ("received", "predicted"))

    def remove(self, study: QueuedStudy) -> None:
        """Forget a study that is done with."""
        with self._lock:
            if study.state()["step"] not in ("sent", "failed"):  # another image came meanwhile
                return
            self._counts.pop(study.folder.name, None)
            self._bytes -= sum(file.stat().st_size for file in study.image_files())
            shutil.rmtree(study.folder)


def begin_attempt(study: QueuedStudy) -> str | None:
    """Note that a study is being predicted; the content that it has, or None where it was tried too often."""
    attempts, content = study.state().get("attempts", 0) + 1, study.content()
    if attempts > _MOST_ATTEMPTS:
        study.note(content, "failed", why=f"prediction ended the process {_MOST_ATTEMPTS} times")
        _LOG.error("study %s: given up, it ended the process %d times", study.name, _MOST_ATTEMPTS)
        return None
    study.note(content, "received", attempts=attempts)
    return content


def _hash(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode(errors="surrogateescape")).hexdigest()[:40]
