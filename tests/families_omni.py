"""Families with another model type's video processor, and Qwen's that hear too, tiny and random: see `families`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from families_more import GLM_SIZE, GLM_VISION, _glm, _glm_tokens
from families_qwen import MOE
from family_parts import QWEN_CHAT, byte_bpe, mrope, save, text_of

HEARING = {"encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32, "d_model": 32, "output_dim": 32}
SEEING = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 32}


def glm4v_moe(folder: Path) -> Path:
    """GLM-4.5V: GLM-4V's tower and processor, experts."""
    experts = {"moe_intermediate_size": 16, "n_routed_experts": 4, "num_experts_per_tok": 2}
    text = text_of(_glm_tokens(), head_dim=16, **experts, **mrope())
    return _glm(folder, "Glm4vMoe Glm4vMoe Glm4v Glm4v", text, GLM_VISION, GLM_SIZE)


def glm_ocr(folder: Path) -> Path:
    """GLM-OCR, whose processor is GLM-4.6V's."""
    return _glm(folder, "GlmOcr GlmOcr Glm46V Glm46V", text_of(_glm_tokens(), **mrope()), GLM_VISION, GLM_SIZE)


def _omni(folder: Path, name: str, text: dict[str, Any], vision: dict[str, Any]) -> Path:
    import transformers as t

    named = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>", "audio_token": "<|audio_pad|>"}
    named |= {f"vision_{end}_token": f"<|vision_{mark}|>" for end, mark in (("bos", "start"), ("eos", "end"))}
    named |= {f"audio_{end}_token": f"<|audio_{mark}|>" for end, mark in (("bos", "start"), ("eos", "end"))}
    tokens = byte_bpe(**named)
    found = {key: tokens.convert_tokens_to_ids(token) for key, token in named.items()}
    kinds = ("image", "video", "audio")
    ids = {f"{what}_token_{end}": found[f"{what}_token"] for what in kinds for end in ("id", "index")}
    ids = {k: v for k, v in ids.items() if k.endswith("index" if name == "Qwen2_5Omni" else "id")}
    ids |= {"audio_start_token_id": found["audio_bos_token"], "audio_end_token_id": found["audio_eos_token"]}
    ids |= {"vision_start_token_id": found["vision_bos_token"], "vision_end_token_id": found["vision_eos_token"]}
    config = getattr(t, f"{name}ThinkerConfig")(
        text_config=text_of(tokens, **text), vision_config=vision, audio_config=HEARING, **ids
    )
    sizes = {"min_pixels": 4 * 28 * 28, "max_pixels": 9 * 28 * 28}
    patch = {"patch_size": vision.get("patch_size", 14)}
    video = t.Qwen2VLVideoProcessor(size={"shortest_edge": 4 * 32 * 32, "longest_edge": 16 * 64 * 64}, **patch)
    image, hearing = t.Qwen2VLImageProcessor(**sizes, **patch), t.WhisperFeatureExtractor()
    processor = getattr(t, f"{name}Processor")(image, video, hearing, tokens, chat_template=QWEN_CHAT)
    return save(folder, getattr(t, f"{name}ThinkerForConditionalGeneration")(config), processor, tokens)


def qwen2_5_omni_thinker(folder: Path) -> Path:
    """Qwen2.5-Omni, the part that answers in words."""
    vision = {**SEEING, "fullatt_block_indexes": [1], "window_size": 56}
    return _omni(folder, "Qwen2_5Omni", mrope(), vision)


def qwen3_omni_moe_thinker(folder: Path) -> Path:
    """Qwen3-Omni, the part that answers in words: deep-stack features, experts."""
    vision = {**SEEING, "depth": 3, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1], "patch_size": 16}
    text = {"head_dim": 8, **MOE, **mrope(mrope_interleaved=True, interleaved=True)}
    return _omni(folder, "Qwen3OmniMoe", text, vision)


MORE = (glm4v_moe, glm_ocr, qwen2_5_omni_thinker, qwen3_omni_moe_thinker)
