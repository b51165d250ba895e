"""Many small studies through ``braintum_serve``, which is killed again and again: is one lost, does one come twice?

    python benchmarks/robustness/killed_node.py -n 200 -o node.json

The node runs as a process of its own, with a tiny untrained model; sender and archive run here, on the loopback
address. A sender repeats what was not acknowledged, as a scanner does.
"""

import argparse
import json
import multiprocessing
import os
import socket
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage
from pynetdicom import AE, AllStoragePresentationContexts, evt
from tqdm import tqdm

from braintum.dicom.node.sender import Destination, send
from braintum.inference.dicom.prediction import stable_uid

SLICES, EDGE = 2, 32
PROCESSES = multiprocessing.get_context("forkserver")
IMPORTED = ["braintum.dicom.node.study_predictor", "braintum.dicom.node.receiver", "braintum.dicom.node.sender"]
HELPERS = Path(__file__).parents[2] / "tests" / "helpers"


def write_study(folder: Path, number: int) -> list[Path]:
    """Slices after contrast agent, with a bright spot."""
    random, files = np.random.default_rng(number), []
    study = stable_uid("study", str(number))
    for index in range(SLICES):
        pixels = random.integers(0, 200, (EDGE, EDGE)).astype("<i2")
        pixels[8:20, 8:20] += 900
        dataset = Dataset()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.SOPClassUID, dataset.SOPInstanceUID = MRImageStorage, stable_uid(study, str(index))
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study, stable_uid(study, "series")
        dataset.FrameOfReferenceUID, dataset.PatientID = stable_uid(study, "frame"), f"P{number}"
        dataset.PatientName, dataset.Modality, dataset.SeriesNumber = f"Test^{number}", "MR", 1
        dataset.SeriesDescription, dataset.ContrastBolusAgent = "t1 km", "Gadobutrol"
        dataset.ImageOrientationPatient, dataset.PixelSpacing = [1, 0, 0, 0, 1, 0], [3.5, 3.5]
        dataset.ImagePositionPatient, dataset.SliceThickness = [0, 0, 5 * index], 5
        dataset.Rows = dataset.Columns = EDGE
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
        dataset.PixelData = pixels.tobytes()
        files.append(folder / f"{number}_{index}.dcm")
        dataset.save_as(files[-1], enforce_file_format=True)
    return files


def make_model(folder: Path) -> Path:
    """A 2-D model with random weights that predicts some foreground."""
    for name in ("raw", "preprocessed", "results"):
        os.environ[f"nnUNet_{name}"] = str(folder / name)
    sys.path.insert(0, str(HELPERS))
    from tiny_training import save_model, write_preprocessed  # late: nnU-Net reads the variables when imported

    dataset = write_preprocessed(folder / "preprocessed", "2d")
    return save_model(dataset, "nnUNetTrainerMultiTask", (0,), "checkpoint_final.pth")


def send_all(studies: list[list[Path]], node: Destination) -> None:
    """Send study after study, each until the node has it."""
    for files in studies:
        while True:
            try:
                send(files, node, "SCANNER")
                break
            except OSError:
                time.sleep(0.5)


class Archive:
    """Counts what it is sent.

    Attributes:
        arrivals: how often each object came.
        reports: StudyInstanceUID → the reports of it.
    """

    def __init__(self, port: int) -> None:
        self.arrivals: Counter[str] = Counter()
        self.reports: dict[str, set[str]] = defaultdict(set)
        entity = AE("ARCHIVE")
        for context in AllStoragePresentationContexts:
            entity.add_supported_context(context.abstract_syntax)
        self.server = entity.start_server(("127.0.0.1", port), False, evt_handlers=[(evt.EVT_C_STORE, self._store)])

    def _store(self, event: evt.Event) -> int:
        dataset: pydicom.Dataset = event.dataset
        self.arrivals[dataset.SOPInstanceUID] += 1
        if dataset.Modality == "SR":
            self.reports[dataset.StudyInstanceUID].add(dataset.SOPInstanceUID)
        return 0


def node_process(arguments: list[str], log: Path) -> None:
    """What the process of a node runs."""
    with open(log, "ab") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    from braintum.dicom.serve_cli import main

    sys.argv = ["braintum_serve", *arguments]
    sys.exit(main())


def start_node(arguments: list[str], port: int, log: Path) -> Any:
    """Start the node, in a process that has imported everything already, and wait until it listens."""
    process = PROCESSES.Process(target=node_process, args=(arguments, log))
    process.start()
    while process.is_alive():
        with socket.socket() as connection:
            if connection.connect_ex(("127.0.0.1", port)) == 0:
                return process
        time.sleep(0.05)
    raise RuntimeError(f"the node does not start: {log.read_text()[-2000:]}")


def run(num_studies: int, seed: int, longest_life: float, folder: Path) -> dict[str, object]:
    """All of it; what is lost, and what came twice."""
    random = np.random.default_rng(seed)
    port, archive_port = (int(number) for number in random.choice(np.arange(20000, 40000), 2, replace=False))
    archive, log = Archive(archive_port), folder / "log.txt"
    node_arguments = ["--port", str(port), "-device", "cpu", "--quiet", "1", "-m", str(make_model(folder))]
    node_arguments += ["--send-to", f"127.0.0.1:{archive_port}:ARCHIVE", "--spool", str(folder / "spool")]
    node_arguments += ["--dicom", "seg", "sr", "--max-studies", "1000"]
    (folder / "in").mkdir()
    studies = [write_study(folder / "in", number) for number in range(num_studies)]
    sender = threading.Thread(target=send_all, args=(studies, Destination("127.0.0.1", port, "BRAINTUM")), daemon=True)
    PROCESSES.set_forkserver_preload(IMPORTED)
    begin, kills = time.monotonic(), 0
    sender.start()
    with tqdm(total=num_studies) as bar:
        while len(archive.reports) < num_studies:
            node = start_node(node_arguments, port, log)
            end = time.monotonic() + random.uniform(0, longest_life)
            while time.monotonic() < end and len(archive.reports) < num_studies:
                time.sleep(0.1)
                bar.update(len(archive.reports) - bar.n)
            if len(archive.reports) < num_studies:
                kills += 1
            node.kill()
            node.join()
    seconds = time.monotonic() - begin
    node = start_node(node_arguments, port, log)  # what is left to be sent still
    time.sleep(15)
    node.terminate()
    node.join()
    archive.server.shutdown()
    said = log.read_text()
    return {
        "studies": num_studies,
        "kills": kills,
        "seconds": round(seconds),
        "studies without a report": num_studies - len(archive.reports),
        "studies with several reports": sum(len(reports) > 1 for reports in archive.reports.values()),
        "objects": len(archive.arrivals),
        "objects sent again under the same UID": sum(count > 1 for count in archive.arrivals.values()),
        "patients' names in the log": said.count("Test^"),
        "tracebacks in the log": said.count("Traceback"),
    }


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=200, help="studies; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the moments; default: %(default)s")
    parser.add_argument("--longest-life", type=float, default=30, help="of a node in seconds; default: %(default)s")
    parser.add_argument("-o", help="JSON file for the result")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = run(args.n, args.seed, args.longest_life, Path(folder))
    text = json.dumps(result, indent=4)
    print(text)
    if args.o:
        Path(args.o).write_text(text + "\n")
    sys.exit(bool(result["studies without a report"] or result["studies with several reports"]))


if __name__ == "__main__":
    main()
