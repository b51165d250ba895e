"""``braintum_serve``: a DICOM node that predicts what it is sent and sends the results on."""

import argparse
import logging
import signal
import threading
from pathlib import Path
from typing import Any

from braintum.commands.command import run_command
from braintum.commands.model_arguments import add_model_arguments, model_folder
from braintum.conversion.format.pairs import named_pairs
from braintum.inference.dicom.arguments import add_object_arguments, pseudonyms_of
from braintum.inference.dicom.kinds import DEFAULT_KINDS

_POLL_S = 0.5


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="braintum_serve",
        description="A DICOM node. It takes MR images by C-STORE, predicts a study when nothing more of it has come "
        "for a while, and sends segmentation, report and picture to another node. Studies wait in a folder "
        "until that node has them, also when this node is stopped or killed. Research software: not for diagnosis.",
    )
    parser.add_argument("--aet", default="BRAINTUM", help="own AE title; default: %(default)s")
    parser.add_argument("--port", type=int, default=11112, help="to listen on; default: %(default)s")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on; 0.0.0.0 for all of this machine; default: %(default)s",
    )
    parser.add_argument(
        "--send-to", required=True, metavar="HOST:PORT:AET", help="node that gets the results, such as the archive"
    )
    parser.add_argument("--spool", required=True, metavar="FOLDER", help="where studies wait; holds patient data")
    parser.add_argument(
        "--allow",
        nargs="+",
        default=[],
        metavar="AET",
        help="AE titles that may send; default: all that reach the port",
    )
    parser.add_argument(
        "--quiet",
        type=float,
        default=30,
        metavar="SECONDS",
        help="a study is complete so long after its last image; default: %(default)s",
    )
    parser.add_argument(
        "--keep",
        type=float,
        default=24,
        metavar="HOURS",
        help="keep a study so long when all is done, so that images "
        "that come late are predicted together with the others; default: %(default)s",
    )
    parser.add_argument("--max-studies", type=int, default=200, help="that wait; default: %(default)s")
    parser.add_argument("--max-instances", type=int, default=5000, help="images of a study; default: %(default)s")
    parser.add_argument("--max-instance-mb", type=float, default=1024, help="of an image; default: %(default)s")
    parser.add_argument("--max-spool-gb", type=float, default=50, help="of all images; default: %(default)s")
    parser.add_argument("--model", metavar="NAME", help="a ready model, see braintum_models; default: braintum's own")
    add_model_arguments(parser)
    parser.add_argument("-device", choices=("cuda", "cpu", "mps"), default="cuda", help="default: %(default)s")
    parser.add_argument(
        "--calibrated", action="store_true", help="calibrate the class probabilities; ready models always do"
    )
    parser.add_argument(
        "--channel",
        action="append",
        default=[],
        metavar="NAME=PATTERN",
        help="where the headers do not tell: a channel of the model and the description of its series; repeat for more",
    )
    add_object_arguments(parser.add_argument_group("DICOM objects"))
    return parser


def serve(argv: list[str] | None = None) -> None:
    """Run the command until it is stopped."""
    args = build_parser().parse_args(argv)
    if not 0 < len(args.aet) <= 16:
        raise ValueError(f"{args.aet!r} is no AE title: 1 to 16 characters")
    if args.model is not None and (args.m or args.d):
        raise ValueError("--model is about ready models; leave it, or -m, -d and -c, away")
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    logging.getLogger("braintum.dicom").setLevel(logging.INFO)
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)  # it writes tracebacks of lost connections

    from braintum.conversion.files.lease import leased  # late: "-h" should answer at once
    from braintum.dicom.node.node import Node
    from braintum.dicom.node.receiver import start_receiver
    from braintum.dicom.node.sender import Destination, send
    from braintum.dicom.node.spool import Limits, Spool

    destination = Destination.parse(args.send_to)
    limits = Limits(
        args.max_studies, args.max_instances, int(args.max_instance_mb * 2**20), int(args.max_spool_gb * 2**30)
    )
    predict = _predictor(args)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    folder = Path(args.spool)
    folder.mkdir(parents=True, exist_ok=True)
    with leased(folder, "node", wait=False):
        node = Node(
            Spool(folder, limits),
            predict,
            lambda files: send(files, destination, args.aet),
            args.quiet,
            3600 * args.keep,
        )
        server = start_receiver(node.spool, args.aet, (args.host, args.port), args.allow)
        print(f"{args.aet} listens on {args.host}:{args.port}; research use, not for diagnosis", flush=True)
        try:
            while not stop.wait(_POLL_S):
                node.round()
        finally:
            server.shutdown()


def _predictor(args: argparse.Namespace) -> Any:
    from braintum.dicom.node.study_predictor import StudyPredictor
    from braintum.inference.dicom.study_objects import ObjectOptions
    from braintum.inference.prediction.devices import prepare_device

    rest = {
        "patterns": named_pairs(args.channel, "--channel", "T1ce='*t1*km*'"),
        "options": ObjectOptions(args.dicom or DEFAULT_KINDS, args.labelmap, pseudonyms_of(args)),
        "calibrated": args.calibrated,
    }
    device = prepare_device(args.device)
    if args.m is None and args.d is None:
        from braintum.inference.ready.zoo import ready_model

        return StudyPredictor.of_ready_model(ready_model(args.model), device, **rest)
    from braintum.inference.api import load_predictor

    predictor = load_predictor(
        model_folder(args), folds=args.f, checkpoint=args.chk, device=device, trust_checkpoint=args.trust_checkpoint
    )
    return StudyPredictor(predictor, None, **rest)


def main() -> int:
    """Console script."""
    return run_command(serve)
