"""Jobs of an experiment: commands, what they need, what they leave; and the folder in which they are kept."""

import os
import re
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nnunetv2.paths import nnUNet_preprocessed, nnUNet_results

from braintum.commands.model_arguments import dataset_name, results_folder
from braintum.commands.provenance import versions
from braintum.conversion.files.atomic import write_json_atomic
from braintum.conversion.files.json_files import read_json_object
from braintum.conversion.format.splits import SPLITS_FILE
from braintum.experiments.definition import FOLD_ALL, Definition

EXPERIMENT_FILE = "experiment.json"
JOBS_FOLDER = "jobs"


@dataclass(frozen=True)
class Job:
    """Commands that run one after the other, in one place.

    Attributes:
        name: unique in the experiment, good for a file name.
        commands: with their arguments.
        needs: jobs that have to be done before.
        leaves: files whose presence shows that it is done; none: its state tells.
        variables: of the environment.
        gpus: that it takes.
        stop_seconds: that a command gets to end by itself when it is to stop; 0 for one that looks for no stop file.
        fold_folder: of a training, where its progress can be read.
        inputs: JSON files whose hashes are recorded.
        resumes: whether a second turn goes on where the first was interrupted.
    """

    name: str
    commands: list[list[str]]
    needs: list[str] = field(default_factory=list)
    leaves: list[str] = field(default_factory=list)
    variables: dict[str, str] = field(default_factory=dict)
    gpus: int = 0
    stop_seconds: int = 0
    fold_folder: str = ""
    inputs: list[str] = field(default_factory=list)
    resumes: bool = True


@dataclass(frozen=True)
class Experiment:
    """An experiment's folder.

    Attributes:
        folder: of the experiment.
        jobs: in an order in which they can run.
        definition: that they were made from, for JSON; empty for a prediction.
        slurm: what is asked of SLURM, see :class:`braintum.experiments.definition.Slurm`.
        device: that trainings and predictions use.
    """

    folder: Path
    jobs: list[Job]
    definition: dict[str, Any]
    slurm: dict[str, Any]
    device: str = "cuda"

    def file_of(self, name: str, ending: str) -> Path:
        """A file of a job: ``.json`` its state, ``.log`` what it said, ``.stop`` to make it stop."""
        return self.folder / JOBS_FOLDER / f"{name}{ending}"

    def save(self) -> None:
        """Write ``experiment.json``."""
        (self.folder / JOBS_FOLDER).mkdir(parents=True, exist_ok=True)
        content = {**asdict(self), "versions": versions()}
        del content["folder"]
        write_json_atomic(self.folder / EXPERIMENT_FILE, content)

    @staticmethod
    def load(folder: Path) -> "Experiment":
        """Read ``experiment.json``.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is damaged.
        """
        file = folder / EXPERIMENT_FILE
        remedy = "start the experiment again"
        if not file.is_file():
            raise FileNotFoundError(f"no experiment at {folder}; give its name or its folder")
        content = read_json_object(file, remedy)
        try:
            jobs = [Job(**job) for job in content["jobs"]]
            return Experiment(folder, jobs, content["definition"], content["slurm"], content["device"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"{file} is damaged or of another version ({error}); {remedy}") from error

    def job(self, name: str) -> Job:
        """A job by its name.

        Raises:
            ValueError: there is none.
        """
        for job in self.jobs:
            if job.name == name:
                return job
        raise ValueError(f"{self.folder} has no job {name}; choose from {', '.join(job.name for job in self.jobs)}")


def experiment_folder(name: str) -> Path:
    """Folder of an experiment by its name, or the folder that was given.

    Raises:
        ValueError: ``nnUNet_results`` is not set.
    """
    if os.sep in name or (Path(name) / EXPERIMENT_FILE).is_file():
        return Path(name).absolute()
    if not nnUNet_results.is_set():
        raise ValueError("the environment variable nnUNet_results is not set; set it to where the models are")
    return Path(nnUNet_results).absolute() / "experiments" / name


def program(name: str) -> str:
    """A console script that was installed beside this interpreter."""
    return str(Path(sys.executable).parent / name)


def training_experiment(definition: Definition) -> Experiment:
    """The jobs of an experiment, see the module's docstring.

    Raises:
        ValueError: a data set that nnU-Net does not know, or folders that are not set.
    """
    folder = experiment_folder(definition.name)
    jobs = []
    for dataset in definition.datasets:
        jobs += _jobs_of(definition, dataset_name(dataset), folder)
    content = definition.content()
    return Experiment(folder, jobs, content, content.pop("slurm"), definition.device)


def _jobs_of(definition: Definition, dataset: str, folder: Path) -> list[Job]:
    """Of one data set."""
    prepare = Job(
        f"prepare-{dataset}",
        [
            [
                *(sys.executable, "-m", "braintum.experiments.prepare", dataset, "-p", definition.plans),
                *("-pl", definition.planner, "-c", *definition.configurations),
            ]
        ],
    )
    trainings, preprocessed = [], Path(nnUNet_preprocessed) / dataset
    models = [
        (configuration, trainer, results_folder(dataset, trainer, definition.plans, configuration))
        for configuration in definition.configurations
        for trainer in definition.trainers
    ]
    for configuration, trainer, model in models:
        for wanted in definition.folds:
            fold = "all" if wanted == FOLD_ALL else wanted
            place = model / f"fold_{fold}"
            command = [
                *(program("nnUNetv2_train"), dataset, configuration, str(fold), "-tr", trainer, "-p", definition.plans),
                *("-device", definition.device, "--c"),
                *(["-num_gpus", str(definition.num_gpus)] if definition.num_gpus > 1 else []),
                *(["--npz"] if definition.save_probabilities else []),
            ]
            trainings.append(
                Job(
                    re.sub(r"[^\w.-]", "-", f"{dataset}-{configuration}-{trainer}-{fold}"),
                    [command],
                    [prepare.name],
                    [str(place / "checkpoint_final.pth"), str(place / "validation" / "summary.json")],
                    {name: str(value) for name, value in definition.variables.items()},
                    definition.num_gpus if definition.device == "cuda" else 0,
                    definition.slurm.stop_seconds,
                    str(place),
                    [str(preprocessed / name) for name in (f"{definition.plans}.json", "dataset.json", SPLITS_FILE)],
                )
            )
    held_out = [str(fold) for fold in definition.folds if fold != FOLD_ALL]
    if not held_out:
        return [prepare, *trainings]
    output = folder / "evaluation" / dataset
    evaluations = [
        [
            *(program("braintum_evaluate"), "-d", dataset, "-p", definition.plans, "-c", *definition.configurations),
            *("-tr", *definition.trainers, "-f", *held_out, "-o", str(output)),
        ]
    ]
    for configuration, trainer, model in models:
        evaluation = output / model.name if len(models) > 1 else output
        page = output / f"{trainer}_{configuration}.html"
        evaluations.append(
            [
                *(program("braintum_report"), "-d", dataset, "-p", definition.plans, "-c", configuration),
                *("-tr", trainer, "-f", *held_out, "--evaluation", str(evaluation), "-o", str(page)),
            ]
        )
    evaluate = Job(f"evaluate-{dataset}", evaluations, [job.name for job in trainings], resumes=False)
    return [prepare, *trainings, evaluate]
