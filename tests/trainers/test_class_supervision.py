"""What patches teach the classifier, against values computed by hand."""

import math
from collections import Counter

import pytest
import torch

from braintum.conversion.format.cases import Case, ClassSchema
from braintum.trainers.classes.class_supervision import (
    TUMOUR_FREE_PATCH_WEIGHT,
    UNKNOWN_CLASS,
    ClassLabels,
    class_loss,
    covered_shares,
    patch_weights,
)

IGNORE = 2
SCHEMA = ClassSchema(("glioma", "no_tumor"), "no_tumor")
TUMOUR, NO_TUMOUR, PARTLY_IGNORED, ALL_IGNORED = [0, 1, 0, 0], [0] * 4, [1, IGNORE, 0, 0], [IGNORE] * 3 + [0]


def labels_of(**classes: str) -> ClassLabels:
    return ClassLabels.from_cases({name: Case(name, value) for name, value in classes.items()}, SCHEMA)


def test_labels_of_a_batch() -> None:
    labels = labels_of(a="glioma", b="no_tumor", c="")
    assert labels.of(["b", "a", "c", "absent"]).tolist() == [1, 0, UNKNOWN_CLASS, UNKNOWN_CLASS]
    assert labels.negative_label == 1
    assert ClassLabels(ClassSchema(("a", "b")), {}).negative_label is None


def test_balanced_keys_draw_classes_equally_often() -> None:
    classes = {f"g{i}": "glioma" for i in range(30)} | {f"n{i}": "no_tumor" for i in range(7)} | {"unknown": ""}
    labels = labels_of(**classes)
    repeated = labels.balanced(list(classes))
    counts = Counter(classes[key] for key in repeated)
    assert counts["no_tumor"] / counts["glioma"] == pytest.approx(1, abs=0.05)
    assert set(repeated) == set(classes)
    per_key = Counter(repeated)
    assert len({per_key[key] for key in classes if classes[key] == "no_tumor"}) == 1
    assert per_key["unknown"] == per_key["g0"]


def test_keys_without_any_class_stay_as_they_are() -> None:
    assert Counter(labels_of(a="", b="").balanced(["a", "b"], resolution=1)) == Counter(["a", "b"])


@pytest.mark.parametrize(
    ("voxels", "label", "expected"),
    [
        (TUMOUR, 0, 1.0),
        (NO_TUMOUR, 0, TUMOUR_FREE_PATCH_WEIGHT),
        (NO_TUMOUR, 1, 1.0),
        (PARTLY_IGNORED, 0, 1.0),
        (ALL_IGNORED, 0, 0.25),
        (ALL_IGNORED, 1, 1.0),
    ],
    ids=["tumour", "no tumour", "healthy", "partly annotated", "no mask", "healthy without mask"],
)
@pytest.mark.parametrize("region_based", [False, True])
def test_patch_weights(voxels: list[int], label: int, expected: float, region_based: bool) -> None:
    target = torch.tensor(voxels, dtype=torch.int16).reshape(1, 1, 2, 2)
    if region_based:
        target = torch.cat([target == 1, target == 1, target == IGNORE], 1)
    weights = patch_weights(target, torch.tensor([label]), torch.tensor([0.25]), IGNORE, region_based, negative_label=1)
    assert weights.tolist() == pytest.approx([expected])


def test_patch_weights_without_ignore_label() -> None:
    target = torch.tensor([TUMOUR, NO_TUMOUR], dtype=torch.int16).reshape(2, 1, 2, 2)
    weights = patch_weights(target, torch.tensor([0, 0]), torch.ones(2), None, False, None)
    assert weights.tolist() == pytest.approx([1.0, TUMOUR_FREE_PATCH_WEIGHT])


def test_class_loss_is_the_weighted_mean() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 0.0], [5.0, 1.0]])
    labels, weights = torch.tensor([0, 1, UNKNOWN_CLASS]), torch.tensor([1.0, 0.5, 1.0])
    first, second = math.log(1 + math.exp(-2)), math.log(2)
    assert class_loss(logits, labels, weights).item() == pytest.approx((first + 0.5 * second) / 1.5)


def test_down_weighted_batch_counts_less_than_a_full_one() -> None:
    logits, labels = torch.zeros(2, 2), torch.tensor([0, 1])
    assert class_loss(logits, labels, torch.tensor([0.1, 0.1])).item() == pytest.approx(0.2 * math.log(2))


def test_class_loss_without_labels_is_zero_but_connected() -> None:
    logits = torch.randn(2, 3, requires_grad=True)
    loss = class_loss(logits, torch.full((2,), UNKNOWN_CLASS), torch.ones(2))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None and logits.grad.abs().sum() == 0


def test_class_loss_is_float32_for_half_precision_logits() -> None:
    logits = torch.tensor([[30000.0, 0.0]], dtype=torch.float16)
    loss = class_loss(logits, torch.tensor([1]), torch.ones(1))
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(30000)


def test_covered_shares() -> None:
    shares = covered_shares((2, 3), [(1, 2, 3), (4, 2, 3), (1, 1, 2)])
    assert shares.tolist() == pytest.approx([1, 0.25, 1])
