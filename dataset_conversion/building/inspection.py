"""The faults of a source: found in every case before anything is written, and reported all at once."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from braintum.commands.errors import InputError
from braintum.conversion.building.raw_dataset import ConversionRequest
from braintum.conversion.building.summary import CaseReport
from braintum.conversion.files.folders import walk
from braintum.conversion.files.parallel import run_cases

Item = TypeVar("Item")
_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".7z", ".rar")


class SourceError(InputError):
    """The source has faults; the message lists all of them, each with its remedy."""


@dataclass(frozen=True)
class Inspection:
    """The check of one case: a report, or else the problems, each naming file, fault and remedy."""

    report: CaseReport | None = None
    problems: tuple[str, ...] = ()


def nothing_found(source: Path, what: str, otherwise: str = "give the folder that holds them") -> FileNotFoundError:
    """Makes the error of a source in which there is nothing to convert.

    Args:
        source: the folder that was searched.
        what: there is none of.
        otherwise: the remedy where no archive lies in the folder or below that may only have to be unpacked.
    """
    archives = [path for path in walk(source) if path.name.lower().endswith(_ARCHIVES)]
    others = " and the other archives" if len(archives) > 1 else ""
    remedy = f"unpack {archives[0].name}{others}" if archives else otherwise
    return FileNotFoundError(f"{source}: no {what}; {remedy}")


def raise_problems(problems: Sequence[str], source: Path) -> None:
    """Raises one error with all problems, each of which names file, fault and remedy; without problems, does nothing.

    Raises:
        SourceError: there is a problem.
    """
    if problems:
        raise SourceError(
            f"{len(problems)} problem(s) in {source}; nothing was written:\n"
            + "\n".join(f"  - {problem}" for problem in problems)
        )


def check_problems(problems: Sequence[str], request: ConversionRequest, n_left: int) -> None:
    """Raises the problems of single cases where they stop the conversion: if it is strict, or if no case is left.

    Raises:
        SourceError: see :func:`raise_problems`.
    """
    if request.strict or not n_left:
        raise_problems(problems, request.source)


@contextmanager
def naming_problems(problems: Sequence[str], request: ConversionRequest) -> Iterator[None]:
    """Adds the problems of cases that were left out to a ValueError: too few cases may be what they led to.

    Raises:
        SourceError: there was an error, and there are problems.
    """
    try:
        yield
    except ValueError as error:
        if problems and not isinstance(error, SourceError):
            raise_problems([str(error), *problems], request.source)
        raise


def inspect_cases(
    inspect: Callable[[Item], Inspection],
    items: Sequence[Item],
    request: ConversionRequest,
    earlier_problems: Sequence[str] = (),
) -> tuple[list[CaseReport], list[str]]:
    """Checks every case.

    Args:
        inspect: module-level function that reads one case.
        items: what it is called with.
        request: source and number of processes.
        earlier_problems: what is already known to be wrong, to be reported together with the problems found here.

    Returns:
        The reports of the faultless cases, in the order of the items; and the problems of the others, the earlier ones
        first, which are to be left out.

    Raises:
        SourceError: a case has a problem and the request is strict, or no case is left; the message lists the problems
            of all cases.
    """
    inspections = run_cases(inspect, items, request.n_processes, "checking")
    problems = [*earlier_problems, *(problem for inspection in inspections for problem in inspection.problems)]
    reports = [inspection.report for inspection in inspections if inspection.report is not None]
    check_problems(problems, request, len(reports))
    return reports, problems
