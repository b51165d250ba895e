"""nnU-Net's own look-ups and commands find our classes, however and in whatever order the two were installed.

Each cell is a virtual environment that shares all dependencies with the interpreter that runs the tests, but has a
braintum and an nnU-Net of its own. ``make test`` runs one of the eight cells, ``make test-all`` two, and
``make test-matrix`` all of them.
"""

import json
import os
import shutil
import subprocess
import sys
import venv
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import nnunetv2
import numpy as np
import pytest
from conftest import build_wheel
from PIL import Image

from braintum.commands import registration

DATASET = "Dataset511_Phantoms"
STOCK = ["nnUNetPlannerResEncM", "nnUNetTrainer", "nnUNetTrainer_5epochs", "ZScoreNormalization", "DefaultPreprocessor"]
OURS = {"BrainTumPlanner": "braintum.planner.", "nnUNetTrainerMultiTask": "braintum.trainers."}

# One process for all look-ups, since importing torch takes seconds. Prints the module of each class found.
LOOK_UPS = """
import json, pickle, sys
from os.path import join
import nnunetv2
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

def find(folder, name):
    return recursive_find_python_class(
        join(nnunetv2.__path__[0], *folder.split(".")), name, current_module="nnunetv2." + folder)

def find_trainer(name):
    try:
        return recursive_find_trainer_class_by_name(name)
    except RuntimeError as error:
        if "Could not find requested nnunet trainer" not in str(error):
            raise
        return None

before = list(sys.path)
found = {name: find(folder, name) for name, folder in {
    "BrainTumPlanner": "experiment_planning",
    "nnUNetPlannerResEncM": "experiment_planning",
    "ZScoreNormalization": "preprocessing.normalization",
    "DefaultPreprocessor": "preprocessing",
}.items()}
found |= {name: find_trainer(name) for name in ("nnUNetTrainerMultiTask", "nnUNetTrainer", "nnUNetTrainer_5epochs")}
if sys.path != before:
    sys.exit("sys.path changed")
if any(pickle.loads(pickle.dumps(cls)) is not cls for cls in found.values()):
    sys.exit("a class cannot be sent to a worker")
print(json.dumps({name: cls and cls.__module__ for name, cls in found.items()}))
"""

CELLS = [
    (braintum, nnunet, first)
    for braintum in ("wheel", "editable")
    for nnunet in ("wheel", "editable")
    for first in ("nnunet", "braintum")
]
ALWAYS = [("wheel", "wheel", "nnunet"), ("editable", "editable", "braintum")]
SELECTED = [
    pytest.param(*cell, id="-".join(cell) + "-first", marks=() if cell == ALWAYS[0] else pytest.mark.thorough)
    for cell in (CELLS if os.environ.get("BRAINTUM_FULL_MATRIX") == "1" else ALWAYS)
]


@dataclass(frozen=True)
class Scratch:
    """A virtual environment with an empty working folder and nnU-Net folders of its own."""

    folder: Path

    @property
    def bin(self) -> Path:
        return self.folder / "venv" / ("Scripts" if os.name == "nt" else "bin")

    @property
    def preprocessed(self) -> Path:
        return self.folder / "nnUNet_preprocessed" / DATASET

    def run(self, command: str, *arguments: str, **environment: str) -> str:
        """Run a command of the environment from a folder that has nothing to do with it; returns its output."""
        names = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("PYTHON", "nnUNet_", "PIP_", "VIRTUAL_ENV", "braintum_"))
        }
        finished = subprocess.run(
            [str(self.bin / command), *arguments],
            cwd=self.folder / "elsewhere",
            env={
                **inherited,
                **{name: str(self.folder / name) for name in names},
                "nnUNet_def_n_proc": "1",
                **environment,
            },
            capture_output=True,
            text=True,
        )
        if finished.returncode:
            raise RuntimeError(f"{command} {arguments} failed:\n{finished.stdout}\n{finished.stderr}")
        return finished.stdout

    def pip(self, *arguments: str) -> str:
        return self.run("python", "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments)

    def install(self, *target: str) -> None:
        self.pip("install", "--no-deps", "--no-build-isolation", "--no-index", *target)

    def look_up(self, **environment: str) -> dict[str, str | None]:
        """Module of each class that nnU-Net finds, None for those that it does not find."""
        return json.loads(self.run("python", "-c", LOOK_UPS, **environment).splitlines()[-1])

    def plan(self, planner: str, plans: str) -> dict:
        """Plan the data set with nnU-Net's command and return the plans, which are removed again."""
        self.run("nnUNetv2_plan_experiment", "-d", "511", "-pl", planner)
        file = self.preprocessed / f"{plans}.json"
        content = json.loads(file.read_text(encoding="utf-8"))
        file.unlink()
        return content


@pytest.fixture(scope="session")
def dependencies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Links to everything that is installed here, except nnU-Net and braintum."""
    folder = tmp_path_factory.mktemp("dependencies")
    for site_packages in [Path(entry) for entry in sys.path if entry.endswith(("site-packages", "dist-packages"))]:
        for entry in site_packages.iterdir():
            skip = entry.name.startswith(("__pycache__", "nnunetv2", "braintum", "__editable_"))
            if not skip and entry.suffix != ".pth" and not (folder / entry.name).exists():
                (folder / entry.name).symlink_to(entry)
    return folder


@pytest.fixture(scope="session")
def nnunet_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source tree of the installed nnU-Net, without our modules in it."""
    folder = tmp_path_factory.mktemp("source") / "nnunetv2"
    shims = [Path(path).name for path in registration.SHIMS.values()]
    skip = shutil.ignore_patterns("__pycache__", *shims)
    shutil.copytree(nnunetv2.__path__[0], folder / "nnunetv2", ignore=skip)
    distribution = metadata.distribution("nnunetv2")
    scripts = "\n".join(
        f"{point.name} = {json.dumps(point.value)}"
        for point in distribution.entry_points
        if point.group == "console_scripts"
    )
    (folder / "pyproject.toml").write_text(
        f"""
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "nnunetv2"
version = "{distribution.version}"
[project.scripts]
{scripts}
[tool.setuptools.packages.find]
include = ["nnunetv2*"]
"""
    )
    return folder


@pytest.fixture(scope="session")
def nnunet_wheel(nnunet_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(nnunet_source, tmp_path_factory.mktemp("nnunet_wheel"))


def write_dataset(raw: Path, preprocessed: Path) -> None:
    """Four small slices, and the fingerprint that nnU-Net would extract from them."""
    size, cases = 64, [f"case_{index}" for index in range(4)]
    generator = np.random.default_rng(0)
    for folder in ("imagesTr", "labelsTr"):
        (raw / folder).mkdir(parents=True)
    preprocessed.mkdir(parents=True)
    for case in cases:
        image = generator.integers(0, 255, (size, size), dtype=np.uint8)
        Image.fromarray(image).save(raw / "imagesTr" / f"{case}_0000.png")
        Image.fromarray((image > 200).astype(np.uint8)).save(raw / "labelsTr" / f"{case}.png")
    dataset = {
        "channel_names": {"0": "T1"},
        "labels": {"background": 0, "tumor": 1},
        "numTraining": len(cases),
        "file_ending": ".png",
    }
    (raw / "dataset.json").write_text(json.dumps(dataset))
    intensities = dict.fromkeys(("max", "mean", "median", "min", "percentile_00_5", "percentile_99_5", "std"), 100.0)
    fingerprint = {
        "spacings": [[999.0, 1.0, 1.0]] * len(cases),
        "shapes_after_crop": [[1, size, size]] * len(cases),
        "foreground_intensity_properties_per_channel": {"0": intensities},
        "median_relative_size_after_cropping": 1.0,
    }
    (preprocessed / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))


@pytest.fixture
def scratch(tmp_path: Path, dependencies: Path) -> Scratch:
    """An environment with neither nnU-Net nor braintum in it."""
    scratch = Scratch(tmp_path)
    venv.create(tmp_path / "venv", with_pip=False, symlinks=os.name != "nt")
    for name in ("elsewhere", "nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (tmp_path / name).mkdir()
    write_dataset(tmp_path / "nnUNet_raw" / DATASET, scratch.preprocessed)
    site_packages = scratch.run("python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    (Path(site_packages) / "dependencies.pth").write_text(f"{dependencies}\n")
    return scratch


def editable(source: Path, folder: Path) -> Path:
    """A source tree of the cell's own: registration writes into nnU-Net's, building into both."""
    return Path(shutil.copytree(source, folder / f"{source.name}_source"))


@pytest.mark.matrix
@pytest.mark.parametrize(("braintum", "nnunet", "first"), SELECTED)
def test_cell(braintum, nnunet, first, scratch, braintum_source, braintum_wheel, nnunet_source, nnunet_wheel):
    targets = {
        "braintum": [str(braintum_wheel)]
        if braintum == "wheel"
        else ["-e", str(editable(braintum_source, scratch.folder))],
        "nnunet": [str(nnunet_wheel)] if nnunet == "wheel" else ["-e", str(editable(nnunet_source, scratch.folder))],
    }
    for name in sorted(targets, key=lambda name: name != first):
        scratch.install(*targets[name])

    said = scratch.run("braintum_register")
    shims = [Path(line.strip()) for line in said.splitlines() if line.endswith(".py")]
    assert len(shims) == len(registration.SHIMS)
    assert all(shim.is_file() and shim.is_relative_to(scratch.folder.resolve()) for shim in shims)

    found = scratch.look_up()
    assert found.keys() == OURS.keys() | set(STOCK)
    for name, package in OURS.items():
        assert (found[name] or "").startswith(package), f"{name} found in {found[name]}"
    for name in STOCK:
        assert (found[name] or "").startswith("nnunetv2."), f"{name} found in {found[name]}"
    assert scratch.plan("BrainTumPlanner", "BrainTumPlans")["experiment_planner_used"] == "BrainTumPlanner"
    stock_plans = scratch.plan("nnUNetPlannerResEncM", "nnUNetResEncUNetMPlans")
    assert stock_plans["experiment_planner_used"] == "nnUNetPlannerResEncM"

    scratch.pip("uninstall", "--yes", "braintum")
    assert all(shim.is_file() for shim in shims), "left behind, since nobody ran --undo"
    assert scratch.look_up() == {**found, **dict.fromkeys(OURS)}
    assert scratch.plan("nnUNetPlannerResEncM", "nnUNetResEncUNetMPlans") == stock_plans


@pytest.mark.matrix
def test_ext_trainer_without_registration(scratch, braintum_wheel, nnunet_wheel):
    """Where nobody may write into nnU-Net's folder, the folder that the message names serves the trainers."""
    scratch.install(str(nnunet_wheel), str(braintum_wheel))
    program = "from braintum.commands.registration import EXT_TRAINER_FOLDER; print(EXT_TRAINER_FOLDER)"
    found = scratch.look_up(nnUNet_extTrainer=scratch.run("python", "-c", program).strip())
    assert found["BrainTumPlanner"] is None
    assert (found["nnUNetTrainerMultiTask"] or "").startswith("braintum.trainers.")
    assert (found["nnUNetTrainer_5epochs"] or "").startswith("nnunetv2.")


@pytest.mark.matrix
@pytest.mark.thorough
def test_beside_a_distribution_with_the_names_of_our_folders(scratch, braintum_wheel, nnunet_wheel):
    """Version 0.1 installed ``inference`` and others at the top, where pip overwrites what others put there."""
    other = scratch.folder / "other"
    for folder in ("inference", "evaluation", "architectures"):
        (other / folder).mkdir(parents=True)
        (other / folder / "__init__.py").write_text("theirs = True\n")
    (other / "setup.cfg").write_text(
        "[metadata]\nname = other\nversion = 1\n[options]\npackages = inference, evaluation, architectures\n"
    )
    (other / "setup.py").write_text("from setuptools import setup\nsetup()\n")
    intact = "import inference, evaluation, architectures as a; print(inference.theirs, evaluation.theirs, a.theirs)"

    scratch.install(str(build_wheel(other, scratch.folder)), str(nnunet_wheel), str(braintum_wheel))
    scratch.run("braintum_register")
    assert scratch.run("python", "-c", intact).split() == ["True"] * 3
    assert (scratch.look_up()["nnUNetTrainerMultiTask"] or "").startswith("braintum.trainers.")
    scratch.pip("uninstall", "--yes", "other")
    assert (scratch.look_up()["nnUNetTrainerMultiTask"] or "").startswith("braintum.trainers.")
    scratch.install(str(build_wheel(other, scratch.folder)))
    scratch.pip("uninstall", "--yes", "braintum")
    assert scratch.run("python", "-c", intact).split() == ["True"] * 3


def test_matrix_is_complete():
    assert len(set(CELLS)) == 8
    assert set(ALWAYS) < set(CELLS)
