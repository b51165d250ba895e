"""Registration with nnU-Net: the files written, what they do, and that they harm nobody.

``site`` is a complete little world (a pretended nnU-Net, pretended parts of ours, the real ``braintum.commands``) in
which programs run without any installed package.
"""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import REPOSITORY
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

from braintum.commands import lookup, registration, version
from braintum.commands.errors import CommandError
from braintum.commands.lookup import classes

SCAN_TRAINERS = """
import sys, pathlib
import nnunetv2
folder = nnunetv2.__path__[0]
sys.path.insert(0, folder)  # as nnU-Net does it
before = list(sys.path)
import nnunetv2.training.nnUNetTrainer.braintum_trainers as shim
if sys.path != before:
    sys.exit("sys.path changed")
print(hasattr(shim, "OurTrainer") and shim.OurTrainer.origin)
"""


SHIM_OF_0_1 = f'''{registration.MARKER}
"""Makes braintum's trainers visible to nnU-Net, which looks for classes only in modules on disk."""

try:
    from braintum_commands.lookup import classes
except ModuleNotFoundError as error:  # braintum was uninstalled: nnU-Net goes on without it
    if (error.name or "").partition(".")[0] != "braintum_commands":
        raise
else:
    globals().update(classes("trainers"))
'''


@dataclass(frozen=True)
class Site:
    """Folder of packages for programs that see nothing else but the standard library."""

    folder: Path

    @property
    def nnunet(self) -> Path:
        return self.folder / "nnunetv2"

    def run(self, program: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run a program that finds its modules in the site's folder, and before that in ``cwd``."""
        paths = [*([str(cwd)] if cwd else []), str(self.folder)]
        program = f"import sys; sys.path[:0] = {paths!r}\n{program}"
        return subprocess.run([sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, cwd=cwd)

    def output(self, program: str, cwd: Path | None = None) -> str:
        finished = self.run(program, cwd)
        assert finished.returncode == 0, finished.stderr
        return finished.stdout.strip()

    def register(self) -> None:
        self.output("from braintum.commands import registration; registration.register()")


@pytest.fixture
def site(tmp_path: Path) -> Site:
    folder = tmp_path / "site"
    files = {
        "nnunetv2/__init__.py": "",
        "nnunetv2-2.8.1.dist-info/METADATA": "Metadata-Version: 2.1\nName: nnunetv2\nVersion: 2.8.1\n",
        "braintum/__init__.py": "",
        "braintum/planner/planners.py": "__all__ = ['OurPlanner']\nclass OurPlanner: pass\n",
        "braintum/inference/__init__.py": "origin = 'ours'\n",
        "braintum/trainers/registered.py": (
            "from braintum.inference import origin\n__all__ = ['OurTrainer', 'helper']\n"
            "class OurTrainer: origin = origin\nclass Private: pass\ndef helper(): pass\n"
        ),
        # what shadowed ours when nnU-Net's folder led sys.path and ours had names of their own at the top
        "nnunetv2/inference/__init__.py": "origin = 'nnU-Net'\n",
        "nnunetv2/evaluation/__init__.py": "",
    }
    for path in registration.SHIMS.values():
        for parent in list(Path(path).parents)[:-1]:
            files[f"nnunetv2/{parent}/__init__.py"] = ""
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    commands = folder / "braintum" / "commands"
    shutil.copytree(REPOSITORY / "braintum_commands", commands, ignore=shutil.ignore_patterns("__pycache__"))
    return Site(folder)


@pytest.fixture
def nnunet(site: Site, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The pretended nnU-Net, which registration of this process works on."""
    monkeypatch.setattr(registration, "nnunet_folder", lambda: site.nnunet)
    return site.nnunet


class TestFiles:
    def test_register_writes_all_modules_and_nothing_else(self, nnunet):
        before = {path for path in nnunet.rglob("*")}
        written = registration.register()
        assert written == [nnunet / path for path in registration.SHIMS.values()]
        assert {path for path in nnunet.rglob("*")} - before == set(written)
        assert registration.status().complete

    def test_register_again_writes_nothing(self, nnunet):
        registration.register()
        before = {path: path.stat().st_mtime_ns for path in nnunet.rglob("*")}
        assert registration.register() == []
        assert {path: path.stat().st_mtime_ns for path in nnunet.rglob("*")} == before

    def test_undo_leaves_nnunet_as_it_was(self, nnunet):
        before = {path for path in nnunet.rglob("*")}
        written = registration.register()
        for path in written:
            bytecode = path.parent / "__pycache__" / f"{path.stem}.cpython-310.pyc"
            bytecode.parent.mkdir(exist_ok=True)
            bytecode.touch()
        others = written[0].parent / "__pycache__" / "theirs.cpython-310.pyc"
        others.touch()
        assert registration.unregister() == written
        assert others.exists()
        assert {path for path in nnunet.rglob("*") if "__pycache__" not in path.parts} == before
        assert not list(nnunet.rglob("braintum_*"))
        assert registration.unregister() == []

    @pytest.mark.parametrize("kind", registration.SHIMS)
    def test_outdated_module_is_rewritten_with_its_bytecode_removed(self, nnunet, kind):
        registration.register()
        shim = nnunet / registration.SHIMS[kind]
        shim.write_text(f"{registration.MARKER}\nfrom braintum_commands.lookup import classes\n")
        bytecode = shim.parent / "__pycache__" / f"{shim.stem}.cpython-310.pyc"
        bytecode.parent.mkdir(exist_ok=True)
        bytecode.touch()
        assert [(pending.kind, pending.state) for pending in registration.status().pending] == [(kind, "outdated")]
        assert registration.register() == [shim]
        assert shim.read_text(encoding="utf-8") == registration.shim_text(kind)
        assert not bytecode.exists()

    @pytest.mark.parametrize("content", ["class Mine: pass\n", "", f"# mine\n{registration.MARKER}\n"])
    def test_foreign_file_is_protected(self, nnunet, content):
        foreign = nnunet / registration.SHIMS["preprocessors"]
        foreign.write_text(content)
        with pytest.raises(CommandError, match="braintum_preprocessors.py was not written by"):
            registration.register()
        assert not (nnunet / registration.SHIMS["planners"]).exists(), "checked before anything is written"
        with pytest.raises(CommandError, match="braintum_preprocessors.py was not written by"):
            registration.unregister()
        assert foreign.read_text(encoding="utf-8") == content

    def test_undo_keeps_ours_where_one_file_is_foreign(self, nnunet):
        registration.register()
        (nnunet / registration.SHIMS["trainers"]).write_text("mine = 1\n")
        with pytest.raises(CommandError, match="braintum_trainers"):
            registration.unregister()
        assert (nnunet / registration.SHIMS["planners"]).exists()

    def test_read_only_installation(self, nnunet, monkeypatch):
        monkeypatch.setattr(os, "access", lambda path, mode: False)
        assert not any(shim.writable for shim in registration.status().shims)
        with pytest.raises(PermissionError, match="nnU-Net's folder"):
            registration.register()
        assert not list(nnunet.rglob("braintum_*"))

    def test_read_only_but_registered_is_complete(self, nnunet, monkeypatch):
        registration.register()
        monkeypatch.setattr(os, "access", lambda path, mode: False)
        assert registration.status().complete
        assert registration.register() == []

    def test_failed_write_leaves_nothing(self, nnunet, monkeypatch):
        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Path, "replace", full)
        with pytest.raises(OSError, match="No space left"):
            registration.register()
        assert not [path for path in nnunet.rglob("*") if "braintum" in path.name]

    def test_missing_folder_of_nnunet(self, nnunet):
        shutil.rmtree(nnunet / "preprocessing" / "normalization")
        with pytest.raises(CommandError, match="has no folder .*normalization"):
            registration.register()
        assert not list(nnunet.rglob("braintum_*"))

    def test_as_readable_as_nnunet(self, nnunet):
        (nnunet / "__init__.py").chmod(0o644)
        previous = os.umask(0o077)  # an administrator's, who installs for everybody
        try:
            written = registration.register()
        finally:
            os.umask(previous)
        assert {path.stat().st_mode & 0o777 for path in written} == {0o644}


class TestModules:
    def test_kinds_agree(self):
        assert registration.SHIMS.keys() == lookup.MODULES.keys()

    def test_ext_trainer_is_the_same_module(self):
        (module,) = registration.EXT_TRAINER_FOLDER.glob("*.py")
        assert module.read_text(encoding="utf-8") == registration.shim_text("trainers")
        assert module.name == Path(registration.SHIMS["trainers"]).name

    def test_shows_exported_classes_only(self, site):
        site.register()
        program = (
            "import nnunetv2.training.nnUNetTrainer.braintum_trainers as shim\n"
            "print(sorted(name for name in vars(shim) if name in ('OurTrainer', 'Private', 'helper')))"
        )
        assert site.output(program) == "['OurTrainer']"

    def test_nnunets_folder_on_the_path_does_not_shadow_ours(self, site):
        """nnU-Net puts its own folder first while it scans; it holds an ``inference`` of its own."""
        site.register()
        assert site.output(SCAN_TRAINERS) == "ours"

    def test_nnunets_folder_as_working_directory(self, site):
        site.register()
        program = "sys.path[0] = ''\n" + SCAN_TRAINERS
        assert site.output(program, cwd=site.nnunet) == "ours"

    def test_working_directory_with_a_bare_folder_braintum(self, site, tmp_path):
        """The folder above a checkout is a likely working directory; what lies there hides nothing."""
        site.register()
        (tmp_path / "above" / "braintum" / "trainers").mkdir(parents=True)
        assert site.output(SCAN_TRAINERS, cwd=tmp_path / "above") == "ours"

    @pytest.mark.parametrize("kind", registration.SHIMS)
    def test_uninstalled_braintum_leaves_a_module_without_classes(self, site, kind):
        site.register()
        shutil.rmtree(site.folder / "braintum")
        module = "nnunetv2." + registration.SHIMS[kind].removesuffix(".py").replace("/", ".")
        program = f"import {module} as shim\nprint([name for name in vars(shim) if name[0] != '_'])"
        assert site.output(program) == "[]"

    def test_remains_of_an_uninstalled_braintum(self, site):
        site.register()
        shutil.rmtree(site.folder / "braintum")
        (site.folder / "braintum" / "commands" / "__pycache__").mkdir(parents=True)
        assert site.output(SCAN_TRAINERS) == "False"

    def test_module_of_version_0_1(self, site):
        """It looks for a package that is gone: nnU-Net goes on, without our classes, until it is rewritten."""
        site.register()
        (site.nnunet / registration.SHIMS["trainers"]).write_text(SHIM_OF_0_1)
        assert site.output(SCAN_TRAINERS) == "False"
        site.register()
        assert site.output(SCAN_TRAINERS) == "ours"

    def test_missing_dependency_is_not_hidden(self, site):
        site.register()
        (site.folder / "braintum" / "inference" / "__init__.py").write_text("import a_missing_dependency\n")
        finished = site.run(SCAN_TRAINERS)
        assert finished.returncode == 1
        assert "No module named 'a_missing_dependency'" in finished.stderr

    def test_missing_module_of_ours_is_an_error(self, site):
        site.register()
        finished = site.run("import nnunetv2.preprocessing.normalization.braintum_normalization")
        assert finished.returncode == 1
        assert "No module named 'braintum.planner.preprocessing'" in finished.stderr

    @pytest.mark.parametrize("installed", ["2.7.3", "3.0", "1.9", "unknown"])
    def test_unsupported_nnunet_gets_a_line_and_no_classes(self, site, installed):
        site.register()
        (site.folder / "nnunetv2-2.8.1.dist-info" / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: nnunetv2\nVersion: {installed}\n"
        )
        finished = site.run(SCAN_TRAINERS + "import importlib; importlib.reload(shim)\n")
        assert (finished.returncode, finished.stdout.strip()) == (0, "False")
        assert finished.stderr.count("\n") == 1
        assert installed in finished.stderr
        assert "Traceback" not in finished.stderr

    def test_unknown_kind(self):
        with pytest.raises(ValueError, match="unknown kind of class 'architectures', expected one of: planners"):
            classes("architectures")


class TestRealClasses:
    @pytest.mark.parametrize("kind", lookup.MODULES)
    def test_every_kind_has_classes_of_its_own(self, kind):
        found = classes(kind)
        assert found
        part = ".".join(lookup.MODULES[kind].split(".")[:2])
        assert {".".join(cls.__module__.split(".")[:2]) for cls in found.values()} == {part}

    def test_no_class_has_the_name_of_a_stock_one(self):
        """Ours come first in nnU-Net's search: the name of a stock class would replace it."""
        import nnunetv2

        folder = Path(nnunetv2.__path__[0])
        names = {name for kind in lookup.MODULES for name in classes(kind)}
        stock = "\n".join(
            path.read_text(encoding="utf-8") for path in folder.rglob("*.py") if not path.name.startswith("braintum_")
        )
        assert [name for name in names if f"class {name}(" in stock or f"class {name}:" in stock] == []

    def test_nnunet_finds_trainers_in_the_ext_trainer_folder(self):
        folder = str(registration.EXT_TRAINER_FOLDER)
        find = {"base_folder": folder, "cleanup_imports_from_base_folder": True}  # as find_objects.py calls it
        first = recursive_find_python_class(folder, "nnUNetTrainerMultiTask", None, **find)
        second = recursive_find_python_class(folder, "nnUNetTrainerMultiTask", None, **find)
        assert first is not None
        assert first is second is classes("trainers")["nnUNetTrainerMultiTask"]


class TestLocation:
    def test_regular_package(self, site):
        program = "from braintum.commands.location import nnunet_folder\nprint(nnunet_folder())"
        assert site.output(program) == str(site.nnunet.resolve())

    def test_not_installed(self, site):
        shutil.rmtree(site.nnunet)
        finished = site.run("from braintum.commands import registration; registration.register()")
        assert "CommandError: nnU-Net (nnunetv2) is not installed" in finished.stderr

    def test_uninstalled_nnunet_leaves_a_folder_that_undo_removes(self, site):
        """pip keeps the folder because of our files; it then hides an nnU-Net installed in editable mode."""
        site.register()
        for path in site.nnunet.rglob("*.py"):
            if not path.name.startswith("braintum_"):
                path.unlink()
        finished = site.run("from braintum.commands import registration; registration.register()")
        assert "without nnU-Net's code" in finished.stderr
        assert "braintum_register --undo" in finished.stderr
        assert site.output("from braintum.commands import register; sys.exit(register.main(['--undo']))")
        assert not list(site.nnunet.rglob("*.py"))

    def test_empty_leftovers_disappear(self, site):
        site.register()
        for path in site.nnunet.rglob("*.py"):
            if not path.name.startswith("braintum_"):
                path.unlink()
        for cache in list(site.nnunet.rglob("__pycache__")):
            shutil.rmtree(cache)
        site.output("from braintum.commands import registration; registration.unregister()")
        assert not site.nnunet.exists()


class TestVersion:
    @pytest.mark.parametrize("installed", ["2.8", "2.8.1", "2.10.0", "2.8.2.dev3+g12ab", "2.99"])
    def test_supported(self, installed, monkeypatch):
        monkeypatch.setattr(version.metadata, "version", lambda name: installed)
        version.check_nnunet_version()

    @pytest.mark.parametrize("installed", ["2.7.9", "2.0", "3.0.0", "1.7.1", "12.8"])
    def test_unsupported(self, installed, monkeypatch):
        monkeypatch.setattr(version.metadata, "version", lambda name: installed)
        with pytest.raises(CommandError) as error:
            version.check_nnunet_version()
        assert installed in str(error.value)
        assert f'pip install "nnunetv2{version.SUPPORTED_NNUNET}"' in str(error.value)

    def test_not_installed(self, monkeypatch):
        def missing(name):
            raise version.metadata.PackageNotFoundError(name)

        monkeypatch.setattr(version.metadata, "version", missing)
        with pytest.raises(CommandError, match="not installed; install a supported one with: pip install"):
            version.check_nnunet_version()
