"""What a node does with the studies in its queue."""

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from braintum.conversion.files.atomic import PARTIAL_PREFIX
from braintum.dicom.node.spool import QueuedStudy, Spool, begin_attempt

_LOG = logging.getLogger(__name__)
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 5.0, 300.0  # between attempts to send


class Predicts(Protocol):
    """Predicts the study in a folder and writes its objects into another one."""

    def __call__(self, images: Path, output: Path) -> None:
        """Raises ValueError where it cannot."""


@dataclass
class Node:
    """Predicts and sends, study after study.

    Attributes:
        spool: the queue.
        predict: writes the objects of a study.
        send: sends files; raises OSError to try again later, ValueError for good.
        quiet_s: a study is complete so long after its last image.
        keep_s: how long images are kept when all is done, so that late ones can join them.
    """

    spool: Spool
    predict: Predicts
    send: Callable[[list[Path]], None]
    quiet_s: float
    keep_s: float
    _pauses: dict[str, tuple[float, float]] = field(default_factory=dict, repr=False)

    def round(self) -> None:
        """Do what can be done now."""
        for study in self.spool.studies():
            if time.monotonic() < self._pauses.get(study.name, (0.0, 0.0))[1]:
                continue
            step = study.state()["step"]
            if step == "received" and study.age() >= self.quiet_s and study.image_files():
                self._predict(study)
                step = study.state()["step"]
            if step == "predicted":
                self._send(study)
            elif step in ("sent", "failed") and study.age() >= self.keep_s:
                self.spool.remove(study)
                _LOG.info("study %s: images removed", study.name)

    def _predict(self, study: QueuedStudy) -> None:
        content = begin_attempt(study)
        if content is None:
            return
        _LOG.info("study %s: complete, %d images; predicting", study.name, len(study.image_files()))
        begin = time.monotonic()
        partial = tempfile.TemporaryDirectory(prefix=PARTIAL_PREFIX, dir=study.folder, ignore_cleanup_errors=True)
        with partial as folder:
            try:
                self.predict(study.images, Path(folder))
            except OSError as error:
                self._pause(study, f"not predicted ({error.strerror or type(error).__name__})")
                return
            except (
                ValueError,
                NotImplementedError,
            ) as error:  # its text may name a patient: it stays beside the images
                study.note(content, "failed", why=str(error))
                _LOG.error("study %s: not predicted; why stands in %s", study.name, study.folder / "state.json")
                return
            shutil.rmtree(study.results, ignore_errors=True)
            os.rename(folder, study.results)
        study.note(content, "predicted")
        _LOG.info("study %s: predicted in %.1f s", study.name, time.monotonic() - begin)

    def _send(self, study: QueuedStudy) -> None:
        content, files = study.state()["content"], sorted(study.results.glob("*.dcm"))
        try:
            self.send(files)
        except ValueError as error:
            study.note(content, "failed", why=str(error))
            _LOG.error("study %s: not all results were taken: %s", study.name, error)
            return
        except OSError as error:
            self._pause(study, f"not sent ({error})")
            return
        self._pauses.pop(study.name, None)
        study.note(content, "sent")
        _LOG.info("study %s: %d results sent", study.name, len(files))

    def _pause(self, study: QueuedStudy, why: str) -> None:
        pause, _ = self._pauses.get(study.name, (_FIRST_PAUSE_S, 0.0))
        self._pauses[study.name] = min(2 * pause, _LONGEST_PAUSE_S), time.monotonic() + pause
        _LOG.warning("study %s: %s; next attempt in %.0f s", study.name, why, pause)
