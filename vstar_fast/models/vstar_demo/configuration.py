"""Configuration of the demo video-LMM."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import LlamaConfig, PretrainedConfig

LITE0_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
)
"""EfficientNet-lite0 without its last stage: (blocks, kernel_px, stride_px, expansion, output channels) of each.

What follows (320 channels, the 1280 of the head) knows ImageNet's classes better and a body's pose worse.
"""


class VStarDemoVisionConfig(PretrainedConfig):
    """EfficientNet-lite tower; the defaults are lite0's.

    `rows`: bands, top to bottom, that the last feature map is averaged over, so that a feature says how high
    in the picture something is, and not how far left.
    """

    model_type = "vstar_demo_vision"
    base_config_key = "vision_config"

    def __init__(
        self,
        stages: Any = LITE0_STAGES,
        stem_channels: int = 32,
        rows: int = 4,
        image_size: int = 128,
        **kwargs: Any,
    ) -> None:
        self.stages = [list(stage) for stage in stages]
        self.stem_channels = stem_channels
        self.rows = rows
        self.image_size = image_size
        super().__init__(**kwargs)

    @property
    def hidden_size(self) -> int:
        """Width of a frame's feature: the last stage's channels, once a row."""
        return int(self.stages[-1][-1]) * self.rows


class VStarDemoConfig(PretrainedConfig):
    """`text_config`: a `LlamaConfig` (or its dict); one `video_token_id` stands for one frame.

    `video_positions`: learned places in a video, from its first to its last frame.
    `projector_size`: width of the projector's hidden layer.
    """

    model_type = "vstar_demo"
    sub_configs: ClassVar[dict[str, type[PretrainedConfig]]] = {
        "text_config": LlamaConfig,
        "vision_config": VStarDemoVisionConfig,
    }

    def __init__(
        self,
        text_config: LlamaConfig | dict[str, Any] | None = None,
        vision_config: VStarDemoVisionConfig | dict[str, Any] | None = None,
        video_token_id: int = 16,
        video_positions: int = 8,
        projector_size: int = 384,
        tie_word_embeddings: bool = True,
        **kwargs: Any,
    ) -> None:
        self.text_config = _sub_config(LlamaConfig, text_config)
        self.vision_config = _sub_config(VStarDemoVisionConfig, vision_config)
        self.video_token_id = video_token_id
        self.video_positions = video_positions
        self.projector_size = projector_size
        super().__init__(tie_word_embeddings=tie_word_embeddings, **kwargs)


def _sub_config(cls: type[PretrainedConfig], value: Any) -> PretrainedConfig:
    if isinstance(value, PretrainedConfig):
        return value
    return cls(**(value or {}))
