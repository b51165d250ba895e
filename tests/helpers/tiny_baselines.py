"""Arguments that make the networks of others small."""

from typing import Any

TINY: dict[str, dict[str, Any]] = {
    "TransUNet": {
        **{"blocks": (1, 1, 1), "stem_width": 32, "stage_widths": (128, 128, 128), "embed_dim": 16, "depth": 1},
        **{"num_heads": 2, "bottleneck": 8, "decoder_channels": (8, 8, 4, 4)},
    },
    "SwinUNet": {"embed_dim": 4, "depths": (2, 1, 1, 1), "num_heads": (1, 1, 2, 2), "window": 4, "drop_path": 0.0},
    "DeepLabV3Plus": {"backbone": "test_resnet", "width": 8},
    "MedFormer": {
        **{"features": (4, 4, 8, 8, 8), "convolutions": (1, 0, 0, 0, 0, 0, 1, 1), "fusion": (8, 2, 1)},
        **{"attentions": (0, 1, 1, 1, 1, 2, 0, 0), "num_heads": (1, 2, 2, 2, 2, 2, 1, 1), "num_codes": 3},
    },
    "SwinUNETR": {"feature_size": 4, "depths": (2, 1, 1, 1), "num_heads": (1, 1, 2, 2)},
    "MedNeXt": {"filters": 4, "blocks": (1, 1, 1, 1), "bottleneck_blocks": 1, "expansion": (2, 2, 2, 2)},
    "UPerNet": {"backbone": "test_convnext", "width": 8},
    "SegFormer": {"backbone": "test_convnext", "width": 8},
}
"""By the network's name."""
