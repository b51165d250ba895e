"""Leases: one process at a time, on network file systems too, and after a holder crashed on another machine.

A holder has a file of its own in a folder of the lease, and touches it now and then. Who comes writes its file, looks
for others, and takes its own away again if one of them lives: of two that come at the same moment, the second to write
sees the first. No file is ever taken over, so nobody can take over what was taken over already. A holder is dead if it
was a process of this machine that is no more, or if its file did not change for longer than network file systems cache;
that is measured by the watcher's own clock, as clocks of machines differ. (``filelock`` has leases too, for Python 3.11
or newer.)
"""

import contextlib
import json
import os
import random
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from braintum.commands.errors import FileError

BEAT_SECONDS = 15.0
EXPIRY_SECONDS = 180.0
"""NFS may show a time of change that is 60 s old."""

_MOST_PAUSE, _WATCH_PAUSE = 1.0, 0.2
_CONTENTION_SECONDS = 2.0
"""A file that stays longer is no contender's, who takes it away at once."""


class LeasedError(FileError):
    """Another process does the same at this moment."""


@contextmanager
def leased(folder: str | os.PathLike[str], name: str, wait: bool = True) -> Iterator[bool]:
    """Holds a lease within the block; whether others had to be waited for.

    Args:
        folder: exists and may be written to.
        name: what is done in the folder.
        wait: for others to end; else they are an error.

    Raises:
        LeasedError: another process holds it, and ``wait`` is False.
    """
    place = _place(folder, name)
    mine = place / uuid.uuid4().hex
    watched: dict[str, tuple[int, float]] = {}
    waited, attempts = False, 0
    while True:
        holder = _living(place, watched)
        if holder is None:
            attempts += 1
            with contextlib.suppress(FileNotFoundError):  # the last holder removes the folder
                place.mkdir(exist_ok=True)
                mine.write_text(json.dumps(_identity()), encoding="utf-8")
                if _living(place, watched, mine.name) is None:
                    break
                mine.unlink()
            time.sleep(random.uniform(0, min(_MOST_PAUSE, 0.02 * 2**attempts)))
            continue
        waited = True
        if not wait and (holder["moved"] or (holder["runs"] and holder["watched"] > _CONTENTION_SECONDS)):
            raise LeasedError(
                f"{folder}: process {holder.get('pid', '?')} on {holder.get('host', '?')} is at it ({name}); wait for "
                "it, or end it"
            )
        time.sleep(_WATCH_PAUSE)
    ended = threading.Event()
    beats = threading.Thread(target=_beat, args=(mine, ended), daemon=True)
    beats.start()
    try:
        yield waited
    finally:
        ended.set()
        beats.join()
        with contextlib.suppress(OSError):
            mine.unlink()
            place.rmdir()  # unless another is waiting in it


def holder_of(folder: str | os.PathLike[str], name: str) -> dict[str, Any] | None:
    """``host`` and ``pid`` of the process that holds a lease, by one look; None if nobody seems to."""
    holder = _living(_place(folder, name), {})
    if holder is None or holder["runs"] or time.time() - holder["touched"] < EXPIRY_SECONDS:
        return holder
    return None


def _place(folder: str | os.PathLike[str], name: str) -> Path:
    return Path(folder) / f".lease-{name}"


def _identity() -> dict[str, Any]:
    """Of this process; processes of other containers have other numbers."""
    try:
        space = os.readlink("/proc/self/ns/pid")
    except OSError:
        space = ""
    return {"host": socket.gethostname(), "space": space, "pid": os.getpid()}


def _living(place: Path, watched: dict[str, tuple[int, float]], mine: str = "") -> dict[str, Any] | None:
    """A holder that is not known to be dead; files of dead ones are removed.

    Args:
        place: folder of the lease.
        watched: name → time of change, and when it was first seen, by this process's clock.
        mine: the own file.

    Returns:
        Its identity (unless it is just being written), ``runs`` if it is a process of this machine, ``moved`` if its
        file changed while it was ``watched`` (in seconds), and ``touched``, the time of change.
    """
    with contextlib.suppress(FileNotFoundError):
        for entry in list(os.scandir(place)):
            if entry.name == mine:
                continue
            try:
                changed = os.stat(entry.path).st_mtime_ns
                identity = json.loads(Path(entry.path).read_text(encoding="utf-8"))
            except FileNotFoundError:
                continue
            except ValueError:  # is being written
                identity = {}
            first = watched.setdefault(entry.name, (changed, time.monotonic()))
            moved = first[0] != changed
            if moved:
                watched[entry.name] = (changed, time.monotonic())
            here = bool(identity) and {**identity, "pid": 0} == {**_identity(), "pid": 0}
            runs, seconds = here and _runs(identity["pid"]), time.monotonic() - first[1]
            if (here and not runs) or (not moved and seconds > EXPIRY_SECONDS):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(entry.path)
                continue
            return {**identity, "runs": runs, "moved": moved, "watched": seconds, "touched": changed / 1e9}
    return None


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _beat(file: Path, ended: threading.Event) -> None:
    while not ended.wait(BEAT_SECONDS):
        with contextlib.suppress(OSError):
            os.utime(file)
