"""Qwen's families and their kin, tiny and random: see `families`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from family_parts import (
    CHATML,
    QWEN,
    QWEN_CHAT,
    byte_bpe,
    ids_of,
    mrope,
    qwen2_processor,
    qwen3_processor,
    qwen_ids,
    save,
    text_of,
)


def qwen2_vl(folder: Path) -> Path:
    """Qwen2-VL: tower of width 32, LayerNorm merger."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLProcessor

    tokens = byte_bpe(*QWEN)
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2, "num_heads": 2}
    config = Qwen2VLConfig(text_config=text_of(tokens, **mrope()), vision_config=vision, **qwen_ids(tokens))
    return save(folder, Qwen2VLForConditionalGeneration(config), qwen2_processor(Qwen2VLProcessor, tokens), tokens)


def qwen2_5_vl(folder: Path) -> Path:
    """Qwen2.5-VL: one windowed and one full block, so that patches are reordered."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

    tokens = byte_bpe(*QWEN)
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "out_hidden_size": 32,
        "fullatt_block_indexes": [1],
        "window_size": 56,
        "tokens_per_second": 2,
    }
    config = Qwen2_5_VLConfig(text_config=text_of(tokens, **mrope()), vision_config=vision, **qwen_ids(tokens))
    model = Qwen2_5_VLForConditionalGeneration(config)
    return save(folder, model, qwen2_processor(Qwen2_5_VLProcessor, tokens), tokens)


def qwen3_vl(folder: Path) -> Path:
    """Qwen3-VL: timestamps in the text, deep-stack features into two layers."""
    from transformers import Qwen2VLImageProcessor, Qwen3VLConfig, Qwen3VLForConditionalGeneration, Qwen3VLProcessor
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

    tokens = byte_bpe(*QWEN)
    vision = {
        "depth": 3,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "out_hidden_size": 32,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0, 1],
    }
    text = text_of(tokens, head_dim=8, **mrope(mrope_interleaved=True))
    config = Qwen3VLConfig(text_config=text, vision_config=vision, **qwen_ids(tokens))
    video = Qwen3VLVideoProcessor(size={"shortest_edge": 4 * 32 * 32, "longest_edge": 16 * 64 * 64})
    image = Qwen2VLImageProcessor(min_pixels=28 * 28, max_pixels=56 * 56)
    processor = Qwen3VLProcessor(image, tokens, video, chat_template=QWEN_CHAT)
    return save(folder, Qwen3VLForConditionalGeneration(config), processor, tokens)


LINEAR = {
    "linear_conv_kernel_dim": 3,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
MOE = {"moe_intermediate_size": 16, "num_experts_per_tok": 2, "num_experts": 4}
SIZE = {"shortest_edge": 4 * 32 * 32, "longest_edge": 16 * 64 * 64}


def _vision3(**more: Any) -> dict[str, Any]:
    sizes = {"depth": 3, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 32}
    return {**sizes, "num_position_embeddings": 64, **more}


def _hybrid(tokens: Any, **more: Any) -> dict[str, Any]:
    """A layer of linear attention under one of full attention."""
    rope = mrope(mrope_interleaved=True, partial_rotary_factor=0.5)
    kinds = ["linear_attention", "full_attention"]
    return text_of(tokens, head_dim=16, layer_types=kinds, **LINEAR, **rope, **more)


def _qwen3(folder: Path, name: str, text: dict[str, Any], tokens: Any, **vision: Any) -> Path:
    import transformers

    made = getattr(transformers, f"{name}Config")(
        text_config=text, vision_config=_vision3(**vision), **qwen_ids(tokens)
    )
    model = getattr(transformers, f"{name}ForConditionalGeneration")(made)
    return save(folder, model, qwen3_processor(transformers.Qwen3VLProcessor, tokens), tokens)


def qwen3_5(folder: Path) -> Path:
    """Qwen3.5: linear attention, no deep stack."""
    tokens = byte_bpe(*QWEN)
    return _qwen3(folder, "Qwen3_5", _hybrid(tokens), tokens)


def qwen3_5_moe(folder: Path) -> Path:
    """Qwen3.5 with experts."""
    tokens = byte_bpe(*QWEN)
    return _qwen3(folder, "Qwen3_5Moe", _hybrid(tokens, shared_expert_intermediate_size=16, **MOE), tokens)


def qwen3_vl_moe(folder: Path) -> Path:
    """Qwen3-VL with experts."""
    tokens = byte_bpe(*QWEN)
    text = text_of(tokens, head_dim=8, **MOE, **mrope(mrope_interleaved=True))
    return _qwen3(folder, "Qwen3VLMoe", text, tokens, deepstack_visual_indexes=[0, 1])


def cosmos3_omni(folder: Path) -> Path:
    """Cosmos 3 Omni: Qwen3-VL's parts."""
    tokens = byte_bpe(*QWEN)
    text = text_of(tokens, head_dim=8, **mrope(mrope_interleaved=True))
    return _qwen3(folder, "Cosmos3Omni", text, tokens, deepstack_visual_indexes=[0, 1])


def qwen4_exp(folder: Path) -> Path:
    """Qwen4-Exp: linear and indexed attention, experts, several residual streams."""
    tokens = byte_bpe(*QWEN)
    index = {"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 16}
    more = {**index, "indexer_compress_ratio": 4, "hc_count": 2, "hc_lowrank": 8, **MOE}
    return _qwen3(folder, "Qwen4Exp", _hybrid(tokens, shared_expert_intermediate_size=16, **more), tokens)


def lfm3_vl(folder: Path) -> Path:
    """LFM3-VL: convolutions in text stack and tower."""
    from transformers import Lfm3VlConfig, Lfm3VlForConditionalGeneration, Lfm3VlProcessor

    tokens = byte_bpe(*QWEN)
    heads = {"num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = Lfm3VlConfig(
        text_config=text_of(tokens, "lfm2", layer_types=["conv", "full_attention"]),
        vision_config={"hidden_size": 32, "intermediate_size": 64, **heads},
        projector_hidden_size=48,
        **qwen_ids(tokens),
    )
    return save(folder, Lfm3VlForConditionalGeneration(config), qwen3_processor(Lfm3VlProcessor, tokens), tokens)


def cosmos3_edge(folder: Path) -> Path:
    """Cosmos 3 Edge: a projector of its own, and a processor that does not give the token types it needs."""
    from transformers import (
        Cosmos3EdgeConfig,
        Cosmos3EdgeForConditionalGeneration,
        Cosmos3EdgeImageProcessor,
        Cosmos3EdgeProcessor,
        Cosmos3EdgeVideoProcessor,
    )

    tokens = byte_bpe(*QWEN)
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = Cosmos3EdgeConfig(
        text_config=text_of(tokens, head_dim=8, **mrope()),
        vision_config={**vision, "num_patches": 16},
        projector_hidden_size=64,
        **qwen_ids(tokens),
    )
    image, video = Cosmos3EdgeImageProcessor(size=SIZE), Cosmos3EdgeVideoProcessor(size=SIZE)
    processor = Cosmos3EdgeProcessor(image, tokens, video, chat_template=QWEN_CHAT)
    return save(folder, Cosmos3EdgeForConditionalGeneration(config), processor, tokens)


def cohere_compass(folder: Path) -> Path:
    """Cohere Compass: deep stack, positions on three rows a kind of layer, sliding windows, scaled logits."""
    from transformers import (
        CohereCompassConfig,
        CohereCompassForConditionalGeneration,
        CohereCompassImageProcessor,
        CohereCompassProcessor,
        CohereCompassVideoProcessor,
    )

    marks = [f"<|{name}|>" for name in ("VISION_START", "VISION_END", "IMAGE_PAD", "VIDEO_PAD")]
    tokens = byte_bpe(*marks)
    names = ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id")
    kinds = ["sliding_attention", "full_attention"]
    rope = {kind: mrope()["rope_parameters"] for kind in kinds}
    config = CohereCompassConfig(
        text_config=text_of(tokens, logit_scale=0.5, sliding_window=8, layer_types=kinds, rope_parameters=rope),
        vision_config=_vision3(deepstack_visual_indexes=[0, 1]),
        **ids_of(tokens, **dict(zip(names, marks, strict=True))),
    )
    chat = CHATML.replace("VIDEO", f"{marks[0]}{marks[3]}{marks[1]}")
    image, video = CohereCompassImageProcessor(size=SIZE), CohereCompassVideoProcessor(size=SIZE)
    processor = CohereCompassProcessor(image, tokens, video, chat_template=chat)
    return save(folder, CohereCompassForConditionalGeneration(config), processor, tokens)


WINDOWED = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "fullatt_block_indexes": [1], "window_size": 56}


def exaone4_5(folder: Path) -> Path:
    """EXAONE 4.5: a windowed tower that reorders patches, sliding windows in the text stack."""
    from transformers import Exaone4_5_Config, Exaone4_5_ForConditionalGeneration, Exaone4_5_Processor

    tokens = byte_bpe(*QWEN)
    kinds = ["sliding_attention", "full_attention"]
    config = Exaone4_5_Config(
        text_config=text_of(tokens, "exaone4", sliding_window=16, layer_types=kinds),
        vision_config={**WINDOWED, "num_heads": 4, "num_key_value_heads": 2, "out_hidden_size": 32},
        **ids_of(tokens, image_token_id="<|image_pad|>", video_token_id="<|video_pad|>"),
    )
    processor = qwen2_processor(Exaone4_5_Processor, tokens)
    return save(folder, Exaone4_5_ForConditionalGeneration(config), processor, tokens)


def hyperclovax_vision_v2(folder: Path) -> Path:
    """HyperCLOVA X Vision 2: Qwen2.5-VL's tower with its merger, a projector behind it, the length before a video."""
    from transformers import (
        HyperCLOVAXVisionV2Config,
        HyperCLOVAXVisionV2ForConditionalGeneration,
        HyperCLOVAXVisionV2Processor,
    )

    tokens = byte_bpe(*QWEN)
    config = HyperCLOVAXVisionV2Config(
        text_config=text_of(tokens, "hyperclovax"),
        vision_config={**WINDOWED, "model_type": "qwen2_5_vl_vision", "num_heads": 2, "out_hidden_size": 32},
        **ids_of(tokens, image_token_id="<|image_pad|>", video_token_id="<|video_pad|>"),
    )
    processor = qwen2_processor(HyperCLOVAXVisionV2Processor, tokens)
    lasting = '{"video_duration": <|video_duration|>}<|im_end|>\n'
    processor.chat_template = CHATML.replace("VIDEO", f"{lasting}<|vision_start|><|video_pad|><|vision_end|>")
    return save(folder, HyperCLOVAXVisionV2ForConditionalGeneration(config), processor, tokens)


MORE = (
    qwen3_5,
    qwen3_5_moe,
    qwen3_vl_moe,
    qwen4_exp,
    cosmos3_omni,
    cosmos3_edge,
    cohere_compass,
    lfm3_vl,
    exaone4_5,
    hyperclovax_vision_v2,
)
