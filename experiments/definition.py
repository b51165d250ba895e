"""What an experiment is: data sets × configurations × trainers × folds, from a file or from the command line."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from braintum.conversion.files.json_files import check_schema

FOLD_ALL = "fold_all"
"""nnU-Net's fold ``all``: a training on every case."""

_NAMES = {"type": "array", "minItems": 1, "uniqueItems": True, "items": {"type": "string", "pattern": r"^[\w.-]+$"}}
_POSITIVE = {"type": "integer", "minimum": 1}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["datasets"],
    "additionalProperties": False,
    "properties": {
        "name": {"type": "string", "pattern": r"^[\w-][\w.-]*$"},
        "datasets": {"type": "array", "minItems": 1, "uniqueItems": True, "items": {"type": ["integer", "string"]}},
        "configurations": _NAMES,
        "trainers": _NAMES,
        "folds": {
            "type": "array",
            "minItems": 1,
            "uniqueItems": True,
            "items": {"anyOf": [{"type": "integer", "minimum": 0}, {"const": FOLD_ALL}]},
        },
        "plans": {"type": "string", "pattern": r"^[\w.-]+$"},
        "planner": {"type": "string", "pattern": r"^\w+$"},
        "device": {"enum": ["cuda", "cpu", "mps"]},
        "num_gpus": _POSITIVE,
        "save_probabilities": {"type": "boolean"},
        "variables": {"type": "object", "additionalProperties": {"type": ["string", "number"]}},
        "slurm": {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "partition": {"type": "string"},
                "time": _POSITIVE,
                "mem": {"type": "string", "pattern": r"^\d+[KMGT]?$"},
                "cpus": _POSITIVE,
                "at_once": _POSITIVE,
                "stop_seconds": _POSITIVE,
                "setup": {"type": "array", "items": {"type": "string"}},
                "options": {"type": "object", "additionalProperties": {"type": ["string", "number", "boolean"]}},
            },
        },
    },
}


@dataclass(frozen=True)
class Slurm:
    """What is asked of SLURM for each training.

    Attributes:
        partition: None for the cluster's default.
        time: limit in minutes; a training that takes longer goes on in the next turn.
        mem: memory, such as 32G.
        cpus: cores.
        at_once: jobs that run at the same time.
        stop_seconds: before the time limit, in which a training finishes its epoch and writes its checkpoint.
        setup: shell commands before each job, such as ``module load``.
        options: any others of ``sbatch``, by name.
    """

    partition: str | None = None
    time: int = 24 * 60
    mem: str = "32G"
    cpus: int = 12
    at_once: int = 256
    stop_seconds: int = 300
    setup: list[str] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Definition:
    """An experiment.

    Attributes:
        datasets: numbers or names.
        configurations: of the plans.
        trainers: by name.
        folds: numbers, or ``fold_all``.
        plans: identifier of the plans.
        planner: makes them where they are missing.
        device: to train on.
        num_gpus: of each training.
        save_probabilities: of the validation, for ensembles.
        variables: environment of the trainings.
        slurm: what is asked of it.
        name: of the experiment's folder.
    """

    datasets: list[int | str]
    configurations: list[str] = field(default_factory=lambda: ["2d"])
    trainers: list[str] = field(default_factory=lambda: ["nnUNetTrainerMultiTask"])
    folds: list[int | str] = field(default_factory=lambda: [0, 1, 2, 3, 4])
    plans: str = "BrainTumPlans"
    planner: str = "BrainTumPlanner"
    device: str = "cuda"
    num_gpus: int = 1
    save_probabilities: bool = False
    variables: dict[str, Any] = field(default_factory=dict)
    slurm: Slurm = field(default_factory=Slurm)
    name: str = ""

    @staticmethod
    def from_content(content: dict[str, Any]) -> "Definition":
        """From content that fits ``SCHEMA``; without a name, it gets one from what it holds."""
        made = Definition(**{**content, "slurm": Slurm(**content.get("slurm", {}))})
        if made.name:
            return made
        parts = ["-".join(map(str, made.datasets)), "-".join(made.configurations), made.plans]
        return Definition(**{**vars(made), "name": "_".join(parts)})

    def content(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def read_definition(file: Path) -> dict[str, Any]:
    """Content of an experiment file (YAML, of which JSON is a part).

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not as it should be; the message names the line.
    """
    text = file.read_text(encoding="utf-8")
    try:
        content, root = yaml.safe_load(text), yaml.compose(text, yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{file}, line {mark.line + 1}" if mark else str(file)
        raise ValueError(f"{where}: no YAML: {getattr(error, 'problem', error)}; correct it") from error
    check_definition(content, file, root)
    return content


def check_definition(content: Any, source: Path | str, root: Any = None) -> None:
    """Refuse what is no experiment.

    Args:
        content: of the file.
        source: for messages.
        root: of the YAML that it was read from, for the line.

    Raises:
        ValueError: naming file, line and entry.
    """
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match

    error = best_match(Draft202012Validator(SCHEMA).iter_errors(content))
    if error is not None:
        unknown = [name for name in content if name not in SCHEMA["properties"]] if isinstance(content, dict) else []
        line = _line(root, list(error.absolute_path) or unknown)
        check_schema(content, SCHEMA, f"{source}, line {line}" if line else source, "correct it")


def _line(node: Any, path: list[Any]) -> int | None:
    """Line of an entry, from 1; of the deepest one on its path that has a line."""
    if node is None:
        return None
    line = node.start_mark.line + 1
    if path and isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == str(path[0]):
                return max(key.start_mark.line + 1, _line(value, path[1:]) or 0)
    if path and isinstance(node, yaml.SequenceNode):
        return _line(node.value[path[0]], path[1:])
    return line
