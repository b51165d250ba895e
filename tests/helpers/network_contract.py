"""The contract of every network: what nnU-Net, our trainers and our predictor rely on.

A network is tested by a subclass of a few lines, whose name starts with ``Test``::

    class TestAttentionUNet(NetworkContract):
        network_class = AttentionUNet
        classifies = False

Networks are built as nnU-Net builds them: from a plan's ``arch_kwargs``, which name classes as strings, through
``get_network_from_plans`` and the network's dotted class path.
"""

import inspect
import io
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch import nn

NUM_TUMOUR_CLASSES = 3
NUM_SEGMENTATION_HEADS = 2
REQUIRE_IMPORT = ("conv_op", "norm_op", "dropout_op", "nonlin")


@dataclass(frozen=True)
class Plan:
    """A small configuration of nnU-Net's plans.

    Attributes:
        name: shown by pytest.
        patch_size: [Z,] Y, X.
        arch_kwargs: as in ``plans["configurations"][...]["architecture"]``.
    """

    name: str
    patch_size: tuple[int, ...]
    arch_kwargs: dict[str, Any]

    @property
    def dimensions(self) -> int:
        return len(self.patch_size)

    @property
    def is_residual(self) -> bool:
        """True for the kwargs of ResidualEncoderUNet, False for those of PlainConvUNet."""
        return "n_blocks_per_stage" in self.arch_kwargs

    def scales(self) -> list[tuple[int, ...]]:
        """Spatial sizes of nnU-Net's deep supervision targets, highest resolution first."""
        shrunk_by = np.cumprod(np.array(self.arch_kwargs["strides"]), axis=0)[:-1]
        return [tuple(int(edge) for edge in np.array(self.patch_size) // factor) for factor in shrunk_by]

    def patch(self, batch: int, channels: int) -> torch.Tensor:
        """A random batch (B, C, [Z,] Y, X)."""
        return torch.randn(batch, channels, *self.patch_size)


def make_plan(
    name: str,
    patch_size: tuple[int, ...],
    features: Sequence[int],
    strides: Sequence[Sequence[int]],
    kernel_sizes: Sequence[Sequence[int]],
    residual: bool,
    norm: str = "InstanceNorm",
) -> Plan:
    """A plan as nnU-Net's planners write them: of PlainConvUNet, or of ResidualEncoderUNet."""
    dimensions, stages = len(patch_size), len(features)
    depth = {"n_blocks_per_stage": [1, 2, 2, 2][:stages]} if residual else {"n_conv_per_stage": [2] * stages}
    return Plan(
        name,
        patch_size,
        {
            "n_stages": stages,
            "features_per_stage": list(features),
            "conv_op": f"torch.nn.modules.conv.Conv{dimensions}d",
            "kernel_sizes": [list(kernel_size) for kernel_size in kernel_sizes],
            "strides": [list(stride) for stride in strides],
            **depth,
            "n_conv_per_stage_decoder": [1 if residual else 2] * (stages - 1),
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.{norm.lower()}.{norm}{dimensions}d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
    )


_1, _2 = (1, 1), (2, 2)
PLANS = (
    make_plan("2d-plain", (32, 32), (6, 10, 12), (_1, _2, _2), [(3, 3)] * 3, residual=False),
    make_plan(
        "2d-residual-odd-channels-anisotropic",
        (32, 24),
        (5, 7, 9, 9),
        (_1, _2, (2, 1), _2),
        [(3, 3)] * 4,
        residual=True,
        norm="BatchNorm",
    ),
    make_plan(
        "3d-plain-anisotropic",
        (4, 16, 16),
        (4, 7, 8),
        ((1, 1, 1), (1, 2, 2), (2, 2, 2)),
        [(1, 3, 3), (3, 3, 3), (3, 3, 3)],
        residual=False,
    ),
    make_plan("3d-residual", (16, 16, 16), (4, 5, 8, 8), ((1, 1, 1), *[(2, 2, 2)] * 3), [(3, 3, 3)] * 4, residual=True),
)


def first_of_each_dimension(plans: Sequence[Plan]) -> list[Plan]:
    """The first 2-D plan and the first 3-D plan, for checks that take long."""
    first = {plan.dimensions: plan for plan in reversed(plans)}
    return [first[dimensions] for dimensions in sorted(first)]


def outputs(prediction: Any) -> list[torch.Tensor]:
    """All tensors of what a network returned, with or without classes, with or without deep supervision."""
    if isinstance(prediction, torch.Tensor):
        return [prediction]
    return [tensor for part in prediction for tensor in outputs(part)]


def build_network(
    network_class: type[nn.Module],
    plan: Plan,
    channels: int = 1,
    heads: int = NUM_SEGMENTATION_HEADS,
    deep_supervision: bool = False,
    **kwargs: Any,
) -> Any:
    """A network as nnU-Net builds it from its plans; ``kwargs`` complete and override the plan's."""
    return get_network_from_plans(
        f"{network_class.__module__}.{network_class.__qualname__}",
        {**plan.arch_kwargs, **kwargs},
        REQUIRE_IMPORT,
        channels,
        heads,
        allow_init=True,
        deep_supervision=deep_supervision,
    )


class NetworkContract:
    """Subclassed once a network.

    Attributes:
        network_class: class under test.
        classifies: whether it has a classification head, hence ``forward(x, with_classes=True)`` and
            ``num_tumour_classes``.
        extra_kwargs: further arguments of its constructor.
        plans: plans that it can be built from.
        stock_topology: whether it keeps nnU-Net's state-dict keys, ``decoder.encoder.*`` included.
    """

    network_class: ClassVar[type[nn.Module]]
    classifies: ClassVar[bool] = True
    extra_kwargs: ClassVar[dict[str, Any]] = {}
    plans: ClassVar[Sequence[Plan]] = PLANS
    stock_topology: ClassVar[bool] = False

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """``plan`` runs through all plans, ``representative_plan`` through one a dimension."""
        if "plan" in metafunc.fixturenames:
            metafunc.parametrize("plan", self.plans, ids=lambda plan: plan.name)
        if "representative_plan" in metafunc.fixturenames:
            plans = first_of_each_dimension(self.plans)
            metafunc.parametrize("representative_plan", plans, ids=lambda plan: plan.name)

    @pytest.fixture(autouse=True)
    def fixed_weights_and_patches(self) -> None:
        torch.manual_seed(0)

    def build(
        self,
        plan: Plan,
        channels: int = 1,
        heads: int = NUM_SEGMENTATION_HEADS,
        deep_supervision: bool = False,
        **kwargs: Any,
    ) -> Any:
        """The network as nnU-Net builds it; ``kwargs`` override the class' ``extra_kwargs``."""
        classes = {"num_tumour_classes": NUM_TUMOUR_CLASSES} if self.classifies else {}
        return build_network(
            self.network_class, plan, channels, heads, deep_supervision, **{**classes, **self.extra_kwargs, **kwargs}
        )

    def run(self, network: Any, patch: torch.Tensor) -> list[torch.Tensor]:
        """Every output of the network."""
        return outputs(network(patch, with_classes=True) if self.classifies else network(patch))

    # ------------------------------------------------------------------ outputs

    @pytest.mark.parametrize("channels", [1, 4])
    def test_segmentation_shapes(self, plan: Plan, channels: int) -> None:
        network = self.build(plan, channels)
        segmentation = network(plan.patch(2, channels))
        assert isinstance(segmentation, torch.Tensor)
        assert segmentation.shape == (2, NUM_SEGMENTATION_HEADS, *plan.patch_size)

    def test_deep_supervision_lists_nnunets_scales(self, plan: Plan) -> None:
        network = self.build(plan, deep_supervision=True)
        segmentation = network(plan.patch(2, 1))
        assert isinstance(segmentation, list)  # nnU-Net's loss wrapper takes a list or a tuple; never a tuple here
        assert [tuple(scale.shape) for scale in segmentation] == [
            (2, NUM_SEGMENTATION_HEADS, *size) for size in plan.scales()
        ]

    def test_deep_supervision_can_be_switched_off(self, plan: Plan) -> None:
        network = self.build(plan, deep_supervision=True).eval()
        assert network.decoder.deep_supervision is True
        patch = plan.patch(1, 1)
        with torch.no_grad():
            supervised = network(patch)
            network.decoder.deep_supervision = False  # what nnU-Net does before prediction
            torch.testing.assert_close(network(patch), supervised[0], rtol=0, atol=0)

    def test_weights_do_not_depend_on_deep_supervision(self, plan: Plan) -> None:
        with_heads, without = (self.build(plan, deep_supervision=flag).state_dict() for flag in (True, False))
        assert with_heads.keys() == without.keys()
        assert {key: value.shape for key, value in with_heads.items()} == {
            key: value.shape for key, value in without.items()
        }

    @pytest.mark.parametrize("deep_supervision", [False, True])
    def test_class_logits_on_request_only(self, plan: Plan, deep_supervision: bool) -> None:
        network = self.build(plan, deep_supervision=deep_supervision).eval()
        patch = plan.patch(2, 1)
        with torch.no_grad():
            alone = network(patch)
            assert not isinstance(alone, tuple)
            if not self.classifies:
                return
            both = network(patch, with_classes=True)
        assert isinstance(both, tuple) and len(both) == 2
        assert type(both[0]) is type(alone)
        for expected, found in zip(outputs(alone), outputs(both[0]), strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=0)
        assert both[1].shape == (2, NUM_TUMOUR_CLASSES) and both[1].dtype == torch.float32

    def test_regions_as_segmentation(self, representative_plan: Plan) -> None:
        regions = {"sigmoid_segmentation": True} if self.classifies else {}  # only heads need to know
        network = self.build(representative_plan, heads=3, **regions)
        predictions = self.run(network, representative_plan.patch(2, 1))
        assert predictions[0].shape == (2, 3, *representative_plan.patch_size)
        assert all(prediction.isfinite().all() for prediction in predictions)

    def test_cases_of_a_batch_do_not_mix_in_prediction(self, plan: Plan) -> None:
        network = self.build(plan).eval()
        patches = plan.patch(2, 1)
        with torch.no_grad():
            together, alone = self.run(network, patches), self.run(network, patches[1:])
        for of_both, of_one in zip(together, alone, strict=True):
            torch.testing.assert_close(of_both[1:], of_one, rtol=1e-3, atol=1e-4)

    # ------------------------------------------------------------------ training

    def test_every_parameter_receives_a_gradient(self, plan: Plan) -> None:
        network = self.build(plan, channels=4, deep_supervision=True).train()
        trainable = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
        assert trainable
        with torch.no_grad():  # branches that start at zero would hide that something behind them is cut off
            for parameter in trainable.values():
                parameter.add_(0.05 * torch.randn_like(parameter))
        predictions = self.run(network, plan.patch(2, 4))
        sum((prediction * torch.randn_like(prediction)).sum() for prediction in predictions).backward()
        assert [name for name, parameter in trainable.items() if parameter.grad is None] == []
        assert [name for name, parameter in trainable.items() if not parameter.grad.isfinite().all()] == []
        # a bias in front of a normalisation has a gradient of zero up to rounding: only weights are asked for more
        unused = [name for name, parameter in trainable.items() if parameter.ndim > 1 and not parameter.grad.any()]
        # on grids within one window both attention modes of a BT block are the same, and what mixes them does nothing
        assert [name for name in unused if not name.endswith(".mixture_of_input")] == []

    def test_batch_of_one_can_be_trained_on(self, plan: Plan) -> None:
        network = self.build(plan, deep_supervision=True).train()
        predictions = self.run(network, plan.patch(1, 1))
        assert all(prediction.isfinite().all() for prediction in predictions)

    def test_bfloat16_autocast(self, representative_plan: Plan) -> None:
        network = self.build(representative_plan, deep_supervision=True).train()
        with torch.autocast("cpu", torch.bfloat16):
            predictions = self.run(network, representative_plan.patch(2, 1))
        sum(prediction.float().square().sum() for prediction in predictions if prediction.requires_grad).backward()
        assert all(prediction.isfinite().all() for prediction in predictions)
        gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
        assert gradients and all(gradient.isfinite().all() for gradient in gradients)
        if self.classifies:
            assert predictions[-1].dtype == torch.float32

    # ------------------------------------------------------------------ what nnU-Net reads

    def test_attributes_that_nnunet_reads(self, representative_plan: Plan) -> None:
        network = self.build(representative_plan)
        assert isinstance(network.encoder, nn.Module)
        assert network.decoder.deep_supervision is False
        assert isinstance(inspect.getattr_static(self.network_class, "initialize"), staticmethod)
        assert hasattr(network, "classification_head") == self.classifies  # joint prediction asks for it

    def test_memory_estimate_grows_with_the_patch(self, plan: Plan) -> None:
        network = self.build(plan, deep_supervision=True)
        small = network.compute_conv_feature_map_size(plan.patch_size)
        large = network.compute_conv_feature_map_size(tuple(2 * edge for edge in plan.patch_size))
        assert small == int(small) > 0
        assert large > 1.5 * small

    def test_no_parameter_is_registered_twice(self, representative_plan: Plan) -> None:
        names = defaultdict(set)
        for name, parameter in self.build(representative_plan).named_parameters(remove_duplicate=False):
            if self.stock_topology:
                name = re.sub(r"^decoder\.encoder\.", "encoder.", name)
            # nnU-Net's convolution block holds its members once by name and once in a sequence
            names[id(parameter)].add(re.sub(r"\.(conv|norm|all_modules\.\d+)\.(weight|bias)$", r".member.\2", name))
        assert [sorted(several) for several in names.values() if len(several) > 1] == []

    def test_pretrained_weights_exempt_every_head(self, representative_plan: Plan) -> None:
        """nnU-Net's ``-pretrained_weights`` wants equal shapes of all but ``.seg_layers.``."""
        network = self.build(representative_plan)
        more_classes = {"num_tumour_classes": NUM_TUMOUR_CLASSES + 1} if self.classifies else {}
        other = self.build(representative_plan, heads=NUM_SEGMENTATION_HEADS + 1, **more_classes).state_dict()
        shapes = {key: value.shape for key, value in network.state_dict().items()}
        assert other.keys() == shapes.keys()
        different = [key for key, value in other.items() if value.shape != shapes[key]]
        assert different and [key for key in different if ".seg_layers." not in key] == []
        head = [name for name, _ in network.named_parameters() if name.startswith("classification_head.")]
        assert bool(head) == self.classifies
        assert [name for name in head if ".seg_layers." not in name] == []

    # ------------------------------------------------------------------ checkpoints and export

    def test_save_and_load(self, plan: Plan) -> None:
        network, file = self.build(plan).eval(), io.BytesIO()
        torch.save(network.state_dict(), file)
        file.seek(0)
        restored = self.build(plan).eval()
        restored.load_state_dict(torch.load(file, weights_only=True))
        patch = plan.patch(1, 1)
        with torch.no_grad():
            for expected, found in zip(self.run(network, patch), self.run(restored, patch), strict=True):
                torch.testing.assert_close(found, expected, rtol=0, atol=0)

    @pytest.mark.slow
    def test_graphs_compile_without_breaks(self) -> None:
        plan = self.plans[0]  # takes seconds
        network = self.build(plan).eval()
        torch._dynamo.reset()
        compiled = torch.compile(network, backend="eager", fullgraph=True)
        patch = plan.patch(1, 1)
        with torch.no_grad():
            torch.testing.assert_close(compiled(patch), network(patch))
            for expected, found in zip(self.run(network, patch), self.run(compiled, patch), strict=True):
                torch.testing.assert_close(found, expected)

    @pytest.mark.slow
    def test_can_be_exported(self, representative_plan: Plan) -> None:
        network = self.build(representative_plan).eval()
        patch = representative_plan.patch(1, 1)
        keywords = {"with_classes": True} if self.classifies else {}
        exported = torch.export.export(network, (patch,), keywords)
        other = representative_plan.patch(1, 1)
        with torch.no_grad():
            for expected, found in zip(
                self.run(network, other), outputs(exported.module()(other, **keywords)), strict=True
            ):
                torch.testing.assert_close(found, expected)
