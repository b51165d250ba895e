"""Damaged files of every kind that a command reads: does each end in a message, and do the others get done?

    python benchmarks/robustness/damaged_inputs.py -n 2000 --seed 1 -o damaged.json
    python benchmarks/robustness/damaged_inputs.py --only "brats:17" --seed 1

For each case, one file of a small whole input is damaged and the command is run on it in a forked process (in
tests/helpers/damage, ``damages.py`` has the faults, ``damage_runner.py`` says what counts as bad). A case is named
COMMAND:INDEX; with the seed, the name gives the same damage again. Ends with a table of commands and one of damages,
and the bad cases; the exit code is 1 where there are any.
"""

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from tabulate import tabulate
from tqdm import tqdm

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY / folder) for folder in ("tests/helpers/damage", "tests/helpers", "")]

from damage_runner import BAD, ERROR, HARMLESS, SKIPPED, Outcome, as_json, import_all, run_damaged, write_whole  # noqa: E402
from damaged_commands import BY_NAME, COMMANDS  # noqa: E402

SHARE = 40
"""Cases of one command that are run one after the other."""
VERDICTS = (ERROR, SKIPPED, HARMLESS, BAD)


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=2000, help="number of cases; default: %(default)s")
    parser.add_argument("--seed", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--commands", nargs="+", choices=list(BY_NAME), default=list(BY_NAME), metavar="NAME")
    parser.add_argument("--only", nargs="+", metavar="COMMAND:INDEX", help="repeat these cases, and show what was said")
    parser.add_argument("--jobs", type=int, default=2, help="cases at the same time; default: %(default)s")
    parser.add_argument("--work", type=Path, help="folder for temporary files; default: the system's")
    parser.add_argument("-o", type=Path, metavar="FILE", help="gets a line of JSON a case, as they are done")
    return parser.parse_args(argv)


def run_share(task: tuple[str, list[int], int, Path]) -> list[tuple[int, Outcome]]:
    """Cases of one command, in this process."""
    name, indices, seed, work = task
    command, folder = BY_NAME[name], Path(tempfile.mkdtemp(dir=work))
    number = [other.name for other in COMMANDS].index(name)
    expected = write_whole(command, folder / "input")
    found = []
    for index in indices:
        outcome = run_damaged(command, folder / "input" / "whole", expected, folder / "run", (seed, number, index))
        found.append((index, outcome))
    return found


def table(outcomes: Sequence[Outcome], by: str) -> str:
    """Counts of verdicts by command or damage."""
    counts = Counter((getattr(outcome, by), outcome.verdict) for outcome in outcomes)
    names = list(dict.fromkeys(sorted(getattr(outcome, by) for outcome in outcomes)))
    rows = [[name, *(counts[name, verdict] for verdict in VERDICTS)] for name in [*names]]
    rows.append(["all", *(sum(outcome.verdict == verdict for outcome in outcomes) for verdict in VERDICTS)])
    rows = [[*row, sum(row[1:])] for row in rows]
    return tabulate(rows, headers=[by, *VERDICTS, "cases"], tablefmt="github")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the campaign."""
    args = parse_arguments(argv)
    chosen: dict[str, list[int]] = {name: [] for name in args.commands}
    if args.only:
        for text in args.only:
            name, _, index = text.rpartition(":")
            chosen[name].append(int(index))
    else:
        for number in range(args.n):
            chosen[args.commands[number % len(args.commands)]].append(number // len(args.commands))
    outcomes: list[tuple[int, Outcome]] = []
    import_all()
    with tempfile.TemporaryDirectory(dir=args.work) as work:
        # shares of a command's cases, so that the processes end at about the same time
        tasks = [
            (name, indices[start : start + SHARE], args.seed, Path(work))
            for start in range(0, max(map(len, chosen.values())), SHARE)
            for name, indices in chosen.items()
            if indices[start:]
        ]
        # forked: all libraries are imported once
        with (
            ProcessPoolExecutor(args.jobs, mp_context=get_context("fork")) as executor,
            tqdm(total=sum(map(len, chosen.values())), unit="case") as progress,
        ):
            for share in executor.map(run_share, tasks):
                outcomes += share
                progress.update(len(share))
                if args.o:
                    with open(args.o, "a", encoding="utf-8") as lines:
                        lines.writelines(json.dumps({"index": i, **as_json(outcome)}) + "\n" for i, outcome in share)
    found = [outcome for _, outcome in outcomes]
    for by in ("command", "damage"):
        print(f"\n{table(found, by)}")
    for index, outcome in outcomes:
        if outcome.verdict == BAD or args.only:
            said = outcome.text if args.only else (outcome.text.strip().splitlines() or [""])[-1][:200]
            print(f"\n{outcome.verdict} {outcome.command}:{index}: {outcome.damage} of {outcome.file}")
            print(f"  {outcome.fault} (exit code {outcome.code}, {outcome.seconds} s): {said}")
    seconds = sorted(outcome.seconds for outcome in found)
    print(
        f"\n{len(found)} cases; largest memory {max(o.memory for o in found) / 2**30:.2f} GiB; longest {seconds[-1]} s"
    )
    return int(any(outcome.verdict == BAD for outcome in found))


if __name__ == "__main__":
    sys.exit(main())
