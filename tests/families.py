"""A tiny random model with its real processor for each family: `FAMILIES[name](folder)` writes one and returns it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import families_more
import families_omni
import families_others
import families_qwen
import tiny
from family_parts import CHATML, CLIP, VICUNA, byte_bpe, save, sentence_bpe, text_of
from vstar_fast import torchvision_compat

torchvision_compat.ensure()


def llava_onevision(folder: Path, text: Callable[[Any], dict[str, Any]] | None = None) -> Path:
    """LLaVA-OneVision: pooled frames and a newline token. `text`: configuration of another text stack."""
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionForConditionalGeneration,
        LlavaOnevisionImageProcessor,
        LlavaOnevisionProcessor,
        LlavaOnevisionVideoProcessor,
    )

    tokens = byte_bpe("<video>", "<image>")
    size = {"height": 28, "width": 28}
    vision = {**CLIP, "model_type": "siglip_vision_model", "vision_use_head": False}
    config = LlavaOnevisionConfig(
        text_config=text(tokens) if text else text_of(tokens, "qwen2"),
        vision_config={k: v for k, v in vision.items() if k != "projection_dim"},
        image_token_index=tokens.convert_tokens_to_ids("<image>"),
        video_token_index=tokens.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=[[28, 28]],
    )
    processor = LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=[[28, 28]]),
        tokens,
        LlavaOnevisionVideoProcessor(size=size),
        chat_template=CHATML.replace("VIDEO", "<video>\n"),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
    )
    return save(folder, LlavaOnevisionForConditionalGeneration(config), processor, tokens)


def llava_next_video(folder: Path) -> Path:
    """LLaVA-NeXT-Video: frames are pooled before the projector."""
    from transformers import (
        LlavaNextImageProcessor,
        LlavaNextVideoConfig,
        LlavaNextVideoForConditionalGeneration,
        LlavaNextVideoProcessor,
        LlavaNextVideoVideoProcessor,
    )

    tokens = sentence_bpe("<video>", "<image>")
    config = LlavaNextVideoConfig(
        text_config=text_of(tokens, "llama"),
        vision_config=CLIP,
        image_token_index=tokens.convert_tokens_to_ids("<image>"),
        video_token_index=tokens.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=[[28, 28]],
    )
    size = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
    processor = LlavaNextVideoProcessor(
        video_processor=LlavaNextVideoVideoProcessor(**size),
        image_processor=LlavaNextImageProcessor(**size, image_grid_pinpoints=[[28, 28]]),
        tokenizer=tokens,
        chat_template=VICUNA,
        patch_size=7,
        vision_feature_select_strategy="default",
    )
    return save(folder, LlavaNextVideoForConditionalGeneration(config), processor, tokens)


def video_llava(folder: Path) -> Path:
    """Video-LLaVA, the paper's: two CLIP towers, one token a patch and frame."""
    from transformers import (
        VideoLlavaConfig,
        VideoLlavaForConditionalGeneration,
        VideoLlavaImageProcessor,
        VideoLlavaProcessor,
        VideoLlavaVideoProcessor,
    )

    tokens = sentence_bpe("<video>", "<image>")
    config = VideoLlavaConfig(
        text_config=text_of(tokens, "llama"),
        vision_config=CLIP,
        image_token_index=tokens.convert_tokens_to_ids("<image>"),
        video_token_index=tokens.convert_tokens_to_ids("<video>"),
    )
    size = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
    processor = VideoLlavaProcessor(
        image_processor=VideoLlavaImageProcessor(**size),
        video_processor=VideoLlavaVideoProcessor(**size),
        tokenizer=tokens,
        patch_size=7,
        chat_template=VICUNA,
    )
    return save(folder, VideoLlavaForConditionalGeneration(config), processor, tokens)


def smolvlm(folder: Path) -> Path:
    """SmolVLM2: frames are images, each behind its time, with words around the video."""
    pytest.importorskip("num2words", reason="SmolVLM's processor needs num2words: pip install num2words")
    from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration, SmolVLMImageProcessor, SmolVLMProcessor
    from transformers.models.smolvlm.processing_smolvlm import DEFAULT_CHAT_TEMPLATE
    from transformers.models.smolvlm.video_processing_smolvlm import SmolVLMVideoProcessor

    special = ("<fake_token_around_image>", "<image>", "<video>", "<global-img>", "<end_of_utterance>")
    tokens = byte_bpe(*special, eos="<end_of_utterance>")
    config = SmolVLMConfig(
        text_config=text_of(tokens, "llama"),
        vision_config={k: v for k, v in CLIP.items() if k not in ("model_type", "projection_dim")},
        image_token_id=tokens.convert_tokens_to_ids("<image>"),
        scale_factor=2,
    )
    size = {"size": {"longest_edge": 56}, "max_image_size": {"longest_edge": 28}}
    processor = SmolVLMProcessor(
        SmolVLMImageProcessor(**size),
        tokens,
        SmolVLMVideoProcessor(**size, num_frames=8, fps=1),
        image_seq_len=4,
        chat_template=DEFAULT_CHAT_TEMPLATE,
    )
    return save(folder, SmolVLMForConditionalGeneration(config), processor, tokens)


def internvl(folder: Path) -> Path:
    """InternVL 3: frames are images, numbered, four patches a token."""
    from transformers import GotOcr2ImageProcessor, InternVLConfig, InternVLForConditionalGeneration, InternVLProcessor
    from transformers.models.internvl.video_processing_internvl import InternVLVideoProcessor

    named = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    tokens = byte_bpe(**named)
    vision = {k: v for k, v in CLIP.items() if k not in ("model_type", "projection_dim")}
    config = InternVLConfig(
        text_config=text_of(tokens, "qwen2"),
        vision_config={**vision, "image_size": [28, 28], "patch_size": [7, 7]},
        image_token_id=tokens.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
    )
    size = {"height": 28, "width": 28}
    processor = InternVLProcessor(
        GotOcr2ImageProcessor(size=size),
        tokens,
        InternVLVideoProcessor(size=size),
        image_seq_length=4,
        chat_template=CHATML.replace("VIDEO", "<video>\n"),
    )
    return save(folder, InternVLForConditionalGeneration(config), processor, tokens)


def video_llama_3(folder: Path) -> Path:
    """VideoLLaMA 3, a family that no adapter of ours names."""
    from transformers import VideoLlama3Config, VideoLlama3ForConditionalGeneration, VideoLlama3Processor
    from transformers.models.video_llama_3.image_processing_video_llama_3 import VideoLlama3ImageProcessor
    from transformers.models.video_llama_3.video_processing_video_llama_3 import VideoLlama3VideoProcessor

    tokens = byte_bpe(image_token="<image>", video_token="<video>")
    vision = {k: v for k, v in CLIP.items() if k not in ("model_type", "projection_dim", "image_size")}
    config = VideoLlama3Config(
        text_config=text_of(tokens, "qwen2"),
        vision_config={**vision, "patch_size": 14},
        image_token_id=tokens.convert_tokens_to_ids("<image>"),
        video_token_id=tokens.convert_tokens_to_ids("<video>"),
    )
    processor = VideoLlama3Processor(
        VideoLlama3ImageProcessor(min_pixels=28 * 28, max_pixels=56 * 56),
        tokens,
        VideoLlama3VideoProcessor(size={"shortest_edge": 28 * 28, "longest_edge": 56 * 56}),
        chat_template=CHATML.replace("VIDEO", "<video>"),
    )
    return save(folder, VideoLlama3ForConditionalGeneration(config), processor, tokens)


def demo(folder: Path) -> Path:
    """The demo model's classes."""
    return tiny.write_model(folder)


FAMILIES: dict[str, Callable[[Path], Path]] = {
    "vstar_demo": demo,
    "qwen2_vl": families_qwen.qwen2_vl,
    "qwen2_5_vl": families_qwen.qwen2_5_vl,
    "qwen3_vl": families_qwen.qwen3_vl,
    "llava_onevision": llava_onevision,
    "llava_next_video": llava_next_video,
    "video_llava": video_llava,
    "smolvlm": smolvlm,
    "internvl": internvl,
    "video_llama_3": video_llama_3,
}
MORE: dict[str, Callable[[Path], Path]] = {
    made.__name__: made
    for made in (*families_qwen.MORE, *families_more.MORE, *families_others.MORE, *families_omni.MORE)
}
"""Families with a shorter test each (`test_more_families.py`)."""
REFUSED: dict[str, Callable[[Path], Path]] = {"instructblipvideo": families_others.instructblipvideo}


def write(name: str, folder: Path, seed: int = 0) -> Path:
    """The seeded model folder of a family. Skips the test where this transformers does not have it."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    if name not in FAMILIES and name.removesuffix("_large") not in CONFIG_MAPPING_NAMES:
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    torch.manual_seed(seed)
    return (FAMILIES | MORE | REFUSED)[name](folder)
