"""Fixtures that several test modules share."""

import configparser
import multiprocessing.dummy
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from braintum.commands import registration

pytest.register_assert_rewrite("network_contract")

REPOSITORY = Path(__file__).resolve().parent.parent


def pytest_configure() -> None:
    """nnU-Net reads this when it is imported; by default, it starts eight processes for everything."""
    os.environ.update(nnUNet_def_n_proc="1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with many slow tests come first, so that two workers end at the same time."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@dataclass(frozen=True)
class NnunetFolders:
    """nnU-Net's three folders."""

    raw: Path
    preprocessed: Path
    results: Path

    @staticmethod
    def below(root: Path) -> "NnunetFolders":
        """New ones, empty."""
        folders = NnunetFolders(*(root / name for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")))
        for folder in (folders.raw, folders.preprocessed, folders.results):
            folder.mkdir()
        return folders

    def enter(self, patch: pytest.MonkeyPatch) -> None:
        """Set nnU-Net's environment variables; one worker process for batches."""
        for folder in (self.raw, self.preprocessed, self.results):
            patch.setenv(folder.name, str(folder))
        patch.setenv("nnUNet_n_proc_DA", "1")


@pytest.fixture(scope="session", autouse=True)
def registered_with_nnunet() -> None:
    """nnU-Net of the interpreter that runs the tests finds our classes, also in workers and commands it starts."""
    inherited = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), *([inherited] if inherited else [])])
    registration.register()


@pytest.fixture(scope="session", autouse=True)
def files_listed_by_threads() -> Iterator[None]:
    """nnU-Net forks twelve times to list the files of a folder, each time with all that the tests have in memory."""
    from nnunetv2.utilities import utils

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils, "Pool", multiprocessing.dummy.Pool)
        yield


@pytest.fixture(scope="session", autouse=True)
def small_curves() -> Iterator[None]:
    """nnU-Net draws 16 million pixels after each epoch, which takes longer than the epochs of the tests."""
    import matplotlib
    from nnunetv2.training.logging.nnunet_logger import LocalLogger

    plot = LocalLogger.plot_progress_png

    def plot_small(logger: LocalLogger, output_folder: str) -> None:
        with matplotlib.rc_context({"figure.dpi": 20}):
            plot(logger, output_folder)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalLogger, "plot_progress_png", plot_small)
        yield


@pytest.fixture
def nnunet_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NnunetFolders:
    """Empty nnU-Net folders, which its environment variables point to; one worker process everywhere."""
    folders = NnunetFolders.below(tmp_path)
    folders.enter(monkeypatch)
    return folders


@pytest.fixture(scope="module")
def benchmark_scripts() -> Iterator[None]:
    """Scripts under benchmarks/ can be imported, and are forgotten again."""
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        for folder in sorted((REPOSITORY / "benchmarks").iterdir()):
            patch.syspath_prepend(str(folder))
        yield
    for script in (REPOSITORY / "benchmarks").rglob("*.py"):
        if script.stem not in before:
            sys.modules.pop(script.stem, None)


@pytest.fixture(scope="session")
def setup_cfg() -> configparser.ConfigParser:
    """The package's metadata."""
    parser = configparser.ConfigParser()
    parser.read(REPOSITORY / "setup.cfg")
    return parser


@pytest.fixture(scope="session")
def braintum_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout as git would give it, so that building leaves nothing behind in the checkout."""
    target = tmp_path_factory.mktemp("source") / "braintum"
    skip = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "demo_output", "nnUNet_*")
    shutil.copytree(REPOSITORY, target, symlinks=True, ignore=skip)
    return target


@pytest.fixture(scope="session")
def braintum_wheel(braintum_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    return build_wheel(braintum_source, tmp_path_factory.mktemp("braintum_wheel"))


def build_wheel(source: Path, target: Path) -> Path:
    """Build a wheel with the setuptools of the interpreter that runs the tests; needs no network."""
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", str(target), str(source)]
    finished = subprocess.run(command, capture_output=True, text=True)
    if finished.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{finished.stdout}\n{finished.stderr}")
    (wheel,) = target.glob("*.whl")
    return wheel
