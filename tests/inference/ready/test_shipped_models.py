"""The models that come with the package: whole, small, and of use on the example slices of the documentation."""

from pathlib import Path

import pytest
from PIL import Image

from braintum.inference.ready import zoo
from braintum.inference.ready_models import predict_with_ready_model

SLICES = Path(__file__).parents[3] / "docs" / "_static" / "slices"
TRUE_CLASSES = {"figshare_135": "meningioma", "figshare_744": "glioma", "figshare_1825": "pituitary"}
MODELS = [model.name for model in zoo.ready_models() if model.is_shipped]


def test_the_default_model_is_there() -> None:
    assert zoo.DEFAULT_MODEL in MODELS


@pytest.mark.parametrize("name", MODELS)
def test_model_is_whole_and_small(name: str) -> None:
    model = zoo.ready_model(name)
    zoo._check(model.folder)  # weights are those of the card, plans may be used
    assert model.num_bytes < 15e6 and model.suitability() is not None
    assert model.card["figures"] and model.card["controls"] and model.card["not_for"] and model.card["command"]


def test_example_slices(tmp_path: Path) -> None:
    """They are of the training data: this shows that the model works, not how well."""
    _, outcome = predict_with_ready_model(SLICES, tmp_path / "out", device="cpu", mirroring=False)
    assert not outcome.failed
    found = {result["case"]: result for result in outcome.results}
    assert {case: result["predicted_class"] for case, result in found.items()} == TRUE_CLASSES
    for case, result in found.items():
        assert not result["warnings"] and "verdict" in result["calibration"]
        with Image.open(tmp_path / "out" / f"{case}.png") as mask, Image.open(SLICES / f"{case}.jpg") as image:
            assert mask.size == image.size
        assert 100 < result["tumour_volume"] < 0.2 * mask.size[0] * mask.size[1]
