r"""How far braintum_predict is from nnU-Net's prediction, and what of that comes from nnU-Net's sums in float16.

    python benchmarks/prediction/half_precision.py -m MODEL_FOLDER -i IMAGES [-f 0] [-n 20] [--untrained] \
        [--patch 96 96]
    python benchmarks/prediction/half_precision.py --untrained-3d [--disable_tta]
    python benchmarks/prediction/half_precision.py --windows

Preprocessed images are predicted three times: by nnU-Net's code, by the same code with float32 in place of torch.half,
and in bulk. Printed is, at the network's spacing, in how many voxels the masks differ and by how much the largest
probability, each pair against each other; and how many of the differing voxels lie where the sum of the windows'
Gaussian weights is below 2^-14, the smallest normal number of float16. --untrained draws the weights anew; --patch cuts
a model's windows smaller, so that several meet in an image. --windows needs no model: it rounds logits between -1 and 1
of single windows as nnU-Net does.
"""

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from against_peers import make_model
from nnunetv2.inference.sliding_window_prediction import compute_gaussian

from braintum.inference.api import load_predictor
from braintum.inference.prediction.case_streams import one_thread, predict_stream
from braintum.inference.prediction.joint_predictor import JointPredictor
from braintum.inference.prediction.preprocessing import ModelDescription, preprocess_case

SMALLEST_NORMAL = 2.0**-14
PAIRS = (("bulk", "nnU-Net"), ("bulk", "nnU-Net in float32"), ("nnU-Net in float32", "nnU-Net"))


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", type=Path, help="folder of a model")
    parser.add_argument("-i", type=Path, help="folder of images")
    parser.add_argument("-f", nargs="+", default=["0"], help="folds; default: %(default)s")
    parser.add_argument("-n", type=int, default=20, help="images, evenly spread; default: %(default)s")
    parser.add_argument("--untrained", action="store_true", help="draw the weights anew")
    parser.add_argument("--patch", type=int, nargs="+", help="patch size; default: the plan's")
    parser.add_argument("--untrained-3d", action="store_true", help="a 3-D model and a volume of noise with a block")
    parser.add_argument("--windows", action="store_true", help="rounding of single windows, without a model")
    parser.add_argument("--disable_tta", action="store_true", help="no mirroring: takes a fourth or eighth of the time")
    return parser


def main() -> None:
    args = build_parser().parse_args()
    torch.set_num_threads(1)
    if args.windows:
        for patch in ((192, 192), (512, 512), (64, 64, 64), (128, 128, 128)):
            print(rounding_of_a_window(patch))
        return
    with tempfile.TemporaryDirectory() as folder:
        if args.untrained_3d:
            args.m, args.patch, args.f = make_model(Path(folder), 4), args.patch or [64, 64, 64], ["0"]
        folds = [fold if fold == "all" else int(fold) for fold in args.f]
        predictor = load_predictor(args.m, folds=folds, device="cpu", mirroring=not args.disable_tta)
        assert isinstance(predictor, JointPredictor)
        if args.untrained:
            torch.manual_seed(0)
            for weights in predictor.list_of_parameters:
                predictor.network.apply(lambda module: getattr(module, "reset_parameters", lambda: None)())
                weights.update({name: value.clone() for name, value in predictor.network.state_dict().items()})
        if args.patch:
            predictor.configuration_manager.configuration["patch_size"] = args.patch
        images = blocks() if args.untrained_3d else files(args, predictor)
        report(predictor, images)


def rounding_of_a_window(patch: tuple[int, ...]) -> str:
    """What nnU-Net's sums make of logits where one window covers the image."""
    weights = compute_gaussian(patch, 1 / 8, 10, device=torch.device("cpu"))
    logits = torch.empty(patch).uniform_(-1, 1, generator=torch.Generator().manual_seed(0))
    error = ((logits * weights).half() / weights).float().sub(logits).abs()
    tiny = weights < SMALLEST_NORMAL
    return (
        f"window {patch}: {100 * tiny.float().mean():.1f} % of the voxels have a weight below 2^-14; logits change "
        f"there by {error[tiny].max():.2g} at most, elsewhere by {error[~tiny].max():.2g}"
    )


def files(args: argparse.Namespace, predictor: JointPredictor) -> Iterator[np.ndarray]:
    """Preprocessed images of the folder."""
    model = ModelDescription.of(predictor)
    names = sorted(args.i.glob(f"*_0000{predictor.dataset_json['file_ending']}"))
    for number in np.unique(np.linspace(0, len(names) - 1, args.n).astype(int)):
        stem = str(names[number]).rsplit("_0000", 1)
        yield preprocess_case([f"{stem[0]}_{i:04d}{stem[1]}" for i in range(model.num_channels)], model)[0]


def blocks() -> Iterator[np.ndarray]:
    """A volume of noise with a brighter block, (4, Z, Y, X)."""
    image = np.random.default_rng(0).normal(size=(4, 64, 72, 64)).astype(np.float32)
    image[:, 20:50, 30:60, 15:50] += 2
    yield image


def report(predictor: JointPredictor, images: Iterator[np.ndarray]) -> None:
    """Predict and print."""
    differing = {pair: 0 for pair in PAIRS}
    tiny = {pair: 0 for pair in PAIRS}
    largest = {pair: 0.0 for pair in PAIRS}
    voxels = tiny_voxels = cases = 0
    for image in images:
        probabilities = {
            "nnU-Net": probabilities_of(predictor, image, True),
            "bulk": probabilities_of(predictor, image, False),
        }
        with mock.patch.object(torch, "half", torch.float32):  # the sums; weights stay rounded to float16
            probabilities["nnU-Net in float32"] = probabilities_of(predictor, image, True)
        is_tiny = weights_of(predictor, image.shape[1:]) < SMALLEST_NORMAL
        cases, voxels, tiny_voxels = cases + 1, voxels + is_tiny.size, tiny_voxels + int(is_tiny.sum())
        for pair in PAIRS:
            one, other = (probabilities[name] for name in pair)
            differs = one.argmax(0) != other.argmax(0)
            differing[pair] += int(differs.sum())
            tiny[pair] += int((differs & is_tiny).sum())
            largest[pair] = max(largest[pair], float(np.abs(one - other).max()))
    print(f"{cases} images, {voxels} voxels, {tiny_voxels} of them with a weight below 2^-14")
    for pair in PAIRS:
        print(
            f"{' against '.join(pair)}: {differing[pair]} voxels of the masks differ ({tiny[pair]} with such a "
            f"weight), largest difference of a probability {largest[pair]:.2g}"
        )


def probabilities_of(predictor: JointPredictor, image: np.ndarray, exact: bool) -> np.ndarray:
    """(labels, Z, Y, X)."""
    with one_thread():
        (predicted,) = predict_stream(predictor, predictor, [("case", [image])], 1, exact, "float32")
    logits = torch.from_numpy(np.asarray(predicted.logits)).float()
    return torch.softmax(logits, 0).numpy()


def weights_of(predictor: JointPredictor, shape: tuple[int, ...]) -> np.ndarray:
    """Sum of the weights of all windows, (Z, Y, X)."""
    patch = predictor.configuration_manager.patch_size
    before = [
        (max(edge, size) - size) // 2 for edge, size in zip([1] * (3 - len(patch)) + list(patch), shape, strict=True)
    ]
    padded = [max(edge, size) for edge, size in zip([1] * (3 - len(patch)) + list(patch), shape, strict=True)]
    gaussian = compute_gaussian(tuple(patch), 1 / 8, 10, device=torch.device("cpu")).float()
    total = torch.zeros(padded)
    for window in predictor._internal_get_sliding_window_slicers(tuple(padded)):
        total[window[1:]] += gaussian
    inner = tuple(slice(start, start + size) for start, size in zip(before, shape, strict=True))
    return total[inner].numpy()


if __name__ == "__main__":
    main()
