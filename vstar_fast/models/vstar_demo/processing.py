"""Processor of the demo video-LMM: tokenizer and video processor; `<video>` becomes one token a frame."""

from __future__ import annotations

from typing import Any

from transformers import ProcessorMixin
from transformers.image_utils import PILImageResampling
from transformers.video_processing_utils import BaseVideoProcessor

CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['content'] is string -%}
{{- message['content'] -}}
{%- else -%}
{%- for part in message['content'] if part['type'] == 'video' -%}{{- '<video>\\n' -}}{%- endfor -%}
{%- for part in message['content'] if part['type'] == 'text' -%}{{- part['text'] -}}{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""
"""ChatML without a default system prompt; the videos of a message stand before its text."""


class VStarDemoVideoProcessor(BaseVideoProcessor):
    """Frames -> `pixel_values_videos` `[V, F, 3, 128, 128]` in [-1, 1]; the middle 70 % of the shorter side."""

    resample = PILImageResampling.BILINEAR
    image_mean = [0.5, 0.5, 0.5]
    image_std = [0.5, 0.5, 0.5]
    size = {"shortest_edge": 182}
    crop_size = {"height": 128, "width": 128}
    default_to_square = False
    do_resize = True
    do_center_crop = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    do_sample_frames = False
    model_input_names = ["pixel_values_videos"]


class VStarDemoProcessor(ProcessorMixin):
    """`processor(text=..., videos=...)` -> `input_ids`, `attention_mask`, `pixel_values_videos`."""

    def __init__(self, tokenizer: Any = None, video_processor: Any = None, chat_template: str | None = None) -> None:
        self.video_token = "<video>"
        self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
        super().__init__(tokenizer, video_processor, chat_template=chat_template or CHAT_TEMPLATE)

    def replace_video_token(self, video_inputs: dict[str, Any], video_idx: int, **_: Any) -> str:
        """What one `<video>` of the text becomes: a token for each of its frames."""
        return self.video_token * len(video_inputs["pixel_values_videos"][video_idx])
