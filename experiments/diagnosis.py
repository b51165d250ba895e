"""Why a job failed, and what helps, from its exit code and the last lines of its log."""

import re
import signal
from pathlib import Path

_TAIL = 20_000
_KINDS = (
    (
        r"CUDA out of memory|OutOfMemoryError|CUBLAS_STATUS_ALLOC_FAILED",
        "out of GPU memory: plan with a smaller -gpu_memory_target (and another plans name), or use a larger GPU",
    ),
    (
        r"oom[-_ ]kill|Out Of Memory|MemoryError|[Cc]annot allocate memory|DefaultCPUAllocator|"
        r"[Bb]ackground workers? (is|are|died)|worker process was killed",
        "out of memory of the machine: more --mem, or fewer workers (the variable nnUNet_n_proc_DA)",
    ),
    (
        r"No space left on device|Disk quota exceeded|disk is full|free some (space|of your quota)",
        "the disk is full: free some space, then start again; checkpoints written before are kept",
    ),
    (r"DUE TO TIME LIMIT", "out of time: more --time"),
    (
        r"(?m)^(error: |ValueError|FileNotFoundError|KeyError|NotImplementedError|AssertionError|RuntimeError: Unable)",
        "bad data or settings: correct what the message names",
    ),
)


def last_text(log: Path, start: int = 0) -> str:
    """The last part of a log file, from a position on."""
    if not log.is_file():
        return ""
    with open(log, "rb") as stream:
        stream.seek(max(start, log.stat().st_size - _TAIL))
        return stream.read().decode(errors="replace")


def diagnosis(exit_code: int, text: str) -> str:
    """One line: what happened and what to do.

    Args:
        exit_code: of the command; negative: the signal that ended it.
        text: the end of what it said.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    said = next((line for line in reversed(lines) if re.match(r"error: |[\w.]*(Error|Exception)\b", line)), "")
    said = said or (lines[-1] if lines else "it said nothing")
    for pattern, meaning in _KINDS:
        if re.search(pattern, text):
            return f"{meaning} ({said[:300]})"
    if exit_code in (-signal.SIGKILL, 128 + signal.SIGKILL):
        return "killed from outside, most likely for want of memory: more --mem; or by hand"
    how = f"signal {signal.Signals(-exit_code).name}" if exit_code < 0 else f"exit code {exit_code}"
    return f"{how}: {said[:300]}"
