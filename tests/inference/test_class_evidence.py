"""Aggregation of class evidence, against values computed by hand."""

import numpy as np
import pytest
import torch

from braintum.architectures.heads.classification_head import part_probabilities, tumour_probability
from braintum.inference.prediction.class_evidence import ClassRecorder, FoldEvidence, aggregate, mirror_agreement


def fold(probabilities: list, weights: list) -> FoldEvidence:
    return FoldEvidence(np.array(probabilities, np.float32), np.array(weights, np.float32))


MIRRORS = [(), (0,)]

# two windows, one mirror, two classes
TWO_WINDOWS = fold([[[0.9, 0.1]], [[0.2, 0.8]]], [[0.5], [0.0]])


def test_weighted_by_tumour_probability_with_floor() -> None:
    expected = (0.5 * 0.9 + 0.01 * 0.2) / 0.51
    verdict = aggregate([TWO_WINDOWS])
    assert verdict.probabilities == pytest.approx([expected, 1 - expected])


def test_case_without_tumour_gets_the_plain_mean() -> None:
    verdict = aggregate([fold([[[0.9, 0.1]], [[0.2, 0.8]]], [[0.0], [0.0]])])
    assert verdict.probabilities == pytest.approx([0.55, 0.45])


def test_mean_and_max() -> None:
    assert aggregate([TWO_WINDOWS], "mean").probabilities == pytest.approx([0.55, 0.45])
    assert aggregate([TWO_WINDOWS], "max").probabilities == pytest.approx([0.9 / 1.7, 0.8 / 1.7])


def test_mirrors_and_folds_are_averaged_after_softmax_and_their_spread_is_told() -> None:
    first = fold([[[0.8, 0.2], [0.6, 0.4]]], [[1.0, 1.0]])
    second = fold([[[0.4, 0.6], [0.2, 0.8]]], [[1.0, 1.0]])
    verdict = aggregate([first, second])
    assert verdict.per_fold == pytest.approx(np.array([[0.7, 0.3], [0.3, 0.7]]))
    assert verdict.probabilities == pytest.approx([0.5, 0.5])
    assert verdict.fold_spread == pytest.approx([np.std([0.7, 0.3], ddof=1)] * 2)
    assert verdict.mirror_spread == pytest.approx([np.std([0.6, 0.4], ddof=1)] * 2)


def test_spread_of_a_single_pass_is_undefined() -> None:
    verdict = aggregate([fold([[[0.8, 0.2]]], [[1.0]])])
    assert np.isnan(verdict.fold_spread).all() and np.isnan(verdict.mirror_spread).all()


def test_tumour_evidence_is_summed_over_windows_and_averaged_over_mirrors_and_folds() -> None:
    first = fold([[[0.8, 0.2], [0.6, 0.4]], [[0.5, 0.5], [0.5, 0.5]]], [[0.9, 0.7], [0.0, 0.3]])
    second = fold([[[0.4, 0.6], [0.2, 0.8]], [[0.5, 0.5], [0.5, 0.5]]], [[0.2, 0.0], [0.0, 0.0]])
    assert aggregate([first, second]).tumour_evidence == pytest.approx((0.91 + 1.0 + 0.21 + 0.02) / 4)
    for mode in ("mean", "max"):
        assert aggregate([first, second], mode).tumour_evidence == 2  # windows


def test_cases_weighted_by_their_evidence_agree_as_their_windows_together_would() -> None:
    one, other = fold([[[0.9, 0.1]]], [[0.8]]), fold([[[0.3, 0.7]], [[0.2, 0.8]]], [[0.5], [0.0]])
    together = FoldEvidence(
        *(np.concatenate([getattr(f, name) for f in (one, other)]) for name in ("probabilities", "weights"))
    )
    verdicts = [aggregate([one]), aggregate([other])]
    weighted = np.average([v.probabilities for v in verdicts], axis=0, weights=[v.tumour_evidence for v in verdicts])
    assert weighted == pytest.approx(aggregate([together]).probabilities)


def test_no_evidence_and_unknown_mode_are_refused() -> None:
    with pytest.raises(ValueError, match="no fold"):
        aggregate([])
    with pytest.raises(ValueError, match="unknown aggregation 'median'.*weighted"):
        aggregate([TWO_WINDOWS], "median")  # type: ignore[arg-type]


def test_recorder_returns_the_segmentation_and_keeps_the_rest() -> None:
    segmentation, class_logits = torch.tensor([[[0.0, 0.0]], [[-9.0, 2.0]]])[None], torch.tensor([[1.0, 0.0]])

    def network(patch: torch.Tensor, with_classes: bool) -> tuple:
        assert with_classes
        return [segmentation, segmentation[..., :1]], class_logits

    recorder = ClassRecorder(network, sigmoid_segmentation=False)
    assert recorder(torch.zeros(1))[0] is segmentation
    evidence = FoldEvidence.from_records([recorder], MIRRORS)
    assert evidence.weights == pytest.approx(np.array([[1 / (1 + np.exp(-2))]]))
    assert evidence.probabilities == pytest.approx(np.array([[[np.e / (np.e + 1), 1 / (np.e + 1)]]]))


class _Head(torch.nn.Module):
    """Says how probable the tumour is that it is shown."""

    def forward(self, features: list[torch.Tensor], segmentation_logits: torch.Tensor) -> torch.Tensor:
        return self.from_probability(features, tumour_probability(segmentation_logits, sigmoid_segmentation=False))

    def from_probability(self, features: list[torch.Tensor], seen: torch.Tensor) -> torch.Tensor:
        return torch.stack([seen.flatten(1).mean(1), features[0].flatten(1).sum(1)], 1)


class _Network(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.classification_head = _Head()

    def forward(self, x: torch.Tensor, with_classes: bool = False) -> tuple:
        return x, self.classification_head([x[:, :1] * 0], x)


def test_parts_of_the_tumour_are_shown_one_by_one() -> None:
    logits = torch.randn(1, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    probabilities = torch.softmax(logits, 1)
    recorder = ClassRecorder(_Network(), False, {"core": [1, 3], "oedema": [2]})
    assert recorder(logits) is logits
    expected = {"core": probabilities[:, 1] + probabilities[:, 3], "oedema": probabilities[:, 2]}
    for name, values in expected.items():
        (found,) = recorder.region_class_logits[name]
        assert found[0, 0].item() == pytest.approx(values.mean().item(), abs=1e-6)
    assert recorder.class_logits[0][0, 0].item() == pytest.approx((1 - probabilities[:, 0]).mean().item(), abs=1e-6)
    evidence = FoldEvidence.from_records([recorder], MIRRORS)
    verdict = aggregate([evidence])
    assert set(verdict.by_region) == {"core", "oedema"}
    core = torch.softmax(recorder.region_class_logits["core"][0], 1)[0].tolist()
    assert verdict.by_region["core"] == pytest.approx(core, abs=1e-6)


def test_region_of_sigmoid_heads() -> None:
    logits = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    one, two = part_probabilities(logits, [[2], [0, 1]], sigmoid_segmentation=True)
    torch.testing.assert_close(one, torch.sigmoid(logits[:, 2:3]))
    torch.testing.assert_close(two, torch.sigmoid(logits[:, :2]).amax(1, keepdim=True))


def test_agreement_of_mirrored_passes_by_hand() -> None:
    plain = torch.tensor([[[0.8, 0.2], [0.0, 0.4]], [[0.0, 0.0], [0.6, 0.0]]])  # windows, y, x
    other = torch.tensor([[[0.4, 0.2], [0.2, 0.0]], [[0.0, 0.0], [0.6, 0.0]]])
    maps = torch.stack([plain, other.flip(1)], 1)  # the second pass saw the window mirrored along y
    expected = 2 * (0.4 + 0.2 + 0.0 + 0.0 + 0.6) / (1.4 + 0.6 + 0.8 + 0.6)
    assert mirror_agreement(maps, [(), (0,)]) == pytest.approx(expected, rel=1e-5)
    assert mirror_agreement(torch.stack([plain, plain], 1), [(), ()]) == pytest.approx(1)
    assert mirror_agreement(torch.zeros(1, 2, 3, 3), [(), (1,)]) == pytest.approx(1)  # all see nothing
    assert np.isnan(mirror_agreement(maps[:, :1], [()]))
    three = torch.stack([plain, plain, other], 1)
    assert mirror_agreement(three, [(), (), ()]) == pytest.approx((1 + 2 * expected) / 3, rel=1e-5)
