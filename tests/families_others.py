"""Families that share little with others, tiny and random: see `families`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from family_parts import CHATML, QWEN, QWEN_CHAT, VICUNA, byte_bpe, ids_of, mrope, save, sentence_bpe, text_of

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
LATENT = {"kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
EXPERTS = {"moe_intermediate_size": 16, "n_routed_experts": 4, "num_experts_per_tok": 2, "num_key_value_heads": 4}
INDEX = {"index_topk": 16, "index_head_dim": 8, "index_n_heads": 2}


def molmo2(folder: Path) -> Path:
    """Molmo 2: two layers of its tower, pooled by index; all of a video's tokens see one another."""
    import transformers as t

    marks = ["im_patch", "im_col", "im_start", "low_res_im_start", "frame_start", "im_end", "frame_end", "im_low"]
    tokens = byte_bpe(*(f"<{mark}>" for mark in marks), "<|image|>", "<|video|>")
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16}
    text = text_of(tokens, head_dim=8, additional_vocab_size=8)
    config = t.Molmo2Config(
        text_config={**text, "vocab_size": text["vocab_size"] - 8},
        vision_config={**SIZES, **heads, "num_hidden_layers": 3, "image_size": [56, 56], "patch_size": 14},
        adapter_config={**heads, "vision_feature_layer": [2, 1], "hidden_size": 32, "intermediate_size": 64}
        | {"text_hidden_size": 32},
        **ids_of(tokens, image_start_token_id="<im_start>", low_res_image_start_token_id="<low_res_im_start>"),
        **ids_of(tokens, image_end_token_id="<im_end>", image_patch_id="<im_patch>"),
        **ids_of(tokens, frame_start_token_id="<frame_start>", frame_end_token_id="<frame_end>"),
    )
    size = {"height": 56, "width": 56}
    image, video = t.Molmo2ImageProcessor(size=size), t.Molmo2VideoProcessor(size=size, pooling_size=[3, 3])
    processor = t.Molmo2Processor(image, video, tokens, chat_template=CHATML.replace("VIDEO", "<|video|>"))
    return save(folder, t.Molmo2ForConditionalGeneration(config), processor, tokens)


def perception_lm(folder: Path) -> Path:
    """PerceptionLM: a tower of timm's, videos through the method for images, pooled in the projector."""
    pytest.importorskip("timm", reason="PerceptionLM's tower needs timm: pip install timm")
    import transformers as t

    tokens = byte_bpe(image_token="<|image|>", video_token="<|video|>")
    tower = {"embed_dim": 32, "img_size": (28, 28), "depth": 2, "num_heads": 2, "patch_size": 7}
    tower |= {"use_post_transformer_norm": False, "global_pool": "", "ref_feat_shape": (4, 4)}
    vision = {"model_type": "timm_wrapper", "architecture": "vit_pe_core_large_patch14_336", "global_pool": "map"}
    config = t.PerceptionLMConfig(
        text_config=text_of(tokens, "llama"),
        vision_config={**vision, "do_pooling": True, "num_classes": 1, "model_args": tower},
        projector_pooling_ratio=2,
        **ids_of(tokens, image_token_id="<|image|>", video_token_id="<|video|>"),
    )
    video = t.PerceptionLMVideoProcessor(size={"height": 28, "width": 28})
    image = t.PerceptionLMImageProcessor(tile_size=28, max_num_tiles=4)
    chat = CHATML.replace("VIDEO", "<|video|>")
    processor = t.PerceptionLMProcessor(video, image, tokens, patch_size=7, pooling_ratio=2, chat_template=chat)
    return save(folder, t.PerceptionLMForConditionalGeneration(config), processor, tokens)


def kimi_k25(folder: Path) -> Path:
    """Kimi K2.5: four frames a chunk, each behind its time; latent attention, experts."""
    import transformers as t

    if tuple(map(int, t.__version__.split(".")[:2])) < (5, 24):
        pytest.skip("Kimi's own features of a video fail before transformers 5.24")
    video_token = "<|kimi_k25_video_placeholder|>"
    tokens = byte_bpe("<|media_pad|>", video_token, "<|media_begin|>", "<|media_content|>", "<|media_end|>")
    experts = {**EXPERTS, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}
    config = t.Kimi_K25Config(
        text_config=text_of(tokens, "deepseek_v3", **LATENT, **experts),
        vision_config={**SIZES, "pos_emb_height": 8, "pos_emb_width": 8},
        projection_hidden_size=32,
        tie_word_embeddings=False,
        **ids_of(tokens, image_token_id="<|media_pad|>", video_token_id=video_token),
        **ids_of(tokens, vision_start_token_id="<|media_begin|>", vision_end_token_id="<|media_end|>"),
    )
    size = {"size": {"max_height": 84, "max_width": 84}}
    image, video = t.Kimi_K25ImageProcessor(**size), t.Kimi_K25VideoProcessor(**size)
    processor = t.Kimi_K25Processor(image, tokens, video, chat_template=CHATML.replace("VIDEO", video_token))
    return save(folder, t.Kimi_K25ForConditionalGeneration(config), processor, tokens)


def ernie4_5_vl_moe(folder: Path) -> Path:
    """ERNIE 4.5 VL: a resampler over frames, and other experts for a video's tokens than for words."""
    import transformers as t

    named = {f"{what}_token": f"<|{what.upper()}_PLACEHOLDER|>" for what in ("image", "video")}
    named |= {
        f"{w}_{end}_token": f"<|{w.upper()}_{end.upper()}|>" for w in ("image", "video") for end in ("start", "end")
    }
    tokens = byte_bpe(**named)
    experts = {"moe_intermediate_size": [16, 8], "moe_k": 2, "moe_num_experts": 4, "moe_num_shared_experts": 1}
    config = t.Ernie4_5_VLMoeConfig(
        text_config=text_of(tokens, **experts, **mrope()),
        vision_config={"depth": 2, "hidden_size": 32, "num_heads": 2, "intermediate_size": 64},
        tie_word_embeddings=False,
        **ids_of(tokens, **{f"{name}_id": token for name, token in named.items()}),
    )
    size = {"shortest_edge": 28 * 28, "longest_edge": 56 * 56}
    processor = t.Ernie4_5_VLMoeProcessor(
        t.Ernie4_5_VLMoeImageProcessor(size=size),
        tokens,
        t.Ernie4_5_VLMoeVideoProcessor(size=size, draw_on_frames=False),
        chat_template=CHATML.replace("VIDEO", "<|VIDEO_START|><|VIDEO_PLACEHOLDER|><|VIDEO_END|>"),
    )
    return save(folder, t.Ernie4_5_VLMoeForConditionalGeneration(config), processor, tokens)


def minimax_m3_vl(folder: Path) -> Path:
    """MiniMax M3 VL: sparse attention, and a processor that by default resizes nothing."""
    import transformers as t

    kind = t.MiniMaxM3VLProcessor
    tokens = byte_bpe(kind.IMAGE_TOKEN, kind.VIDEO_TOKEN, kind.VISION_START_TOKEN, kind.VISION_END_TOKEN)
    experts = {"num_experts_per_tok": 2, "num_local_experts": 4, "dense_intermediate_size": 64}
    layers = {"mlp_layer_types": ["dense", "sparse"], "layer_types": ["full_attention", "minimax_m3_sparse"]}
    index = {"index_n_heads": 2, "index_head_dim": 8, "index_block_size": 8, "index_topk_blocks": 2}
    more = {"head_dim": 8, "rotary_dim": 4, "shared_intermediate_size": 16}
    config = t.MiniMaxM3VLConfig(
        text_config=text_of(tokens, **experts, **layers, **index, **more),
        vision_config={**SIZES, "image_size": 56},
        projector_hidden_size=32,
        **ids_of(tokens, image_token_index=kind.IMAGE_TOKEN, video_token_index=kind.VIDEO_TOKEN),
    )
    processor = kind(
        t.MiniMaxM3VLImageProcessor(max_pixels=56 * 56),
        tokens,
        t.MiniMaxM3VLVideoProcessor(min_pixels=4 * 28 * 28, max_pixels=12 * 28 * 28),
        chat_template=CHATML.replace("VIDEO", kind.VIDEO_TOKEN),
    )
    return save(folder, t.MiniMaxM3SparseForConditionalGeneration(config), processor, tokens)


def nemotron_h_omni(folder: Path) -> Path:
    """Nemotron H Omni: no body apart from its head, which is inside a language model; Mamba layers, tubelets."""
    import transformers as t

    tokens = byte_bpe("<image>", "<video>", "<so_embedding>", "<so_start>", "<so_end>", "<img>", "</img>")
    mamba = {"ssm_state_size": 8, "mamba_num_heads": 4, "mamba_head_dim": 16, "n_groups": 2, "conv_kernel": 3}
    kinds = ["linear_attention", "full_attention", "mlp"]
    text = text_of(tokens, "nemotron_h", head_dim=8, layer_types=kinds, chunk_size=8, expand=2, **mamba)
    radio = {"model_type": "radio", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    radio |= {"mlp_ratio": 2.0, "patch_size": 14, "image_size": 56, "max_img_size": 112, "video_temporal_patch_size": 2}
    name = "NemotronH_Omni_Reasoning_V3"
    config = getattr(t, f"{name}_Config")(
        text_config={k: v for k, v in text.items() if k != "num_hidden_layers"},
        vision_config=radio,
        audio_config=None,
        vision_hidden_size=32,
        projector_hidden_size=48,
        **ids_of(tokens, image_token_id="<image>", video_token_id="<video>", audio_token_id="<so_embedding>"),
    )
    norm = {"patch_size": 14, "norm_mean": [0.5] * 3, "norm_std": [0.5] * 3}
    processor = getattr(t, f"{name}Processor")(
        getattr(t, f"{name}ImageProcessor")(**norm),
        getattr(t, f"{name}VideoProcessor")(**norm, video_target_num_patches=16),
        tokens,
        t.ParakeetFeatureExtractor(),
        chat_template=CHATML.replace("VIDEO", "<video>\n"),
    )
    return save(folder, getattr(t, name)(config), processor, tokens)


def hy_v4_vl(folder: Path) -> Path:
    """HY V4 VL: the projector is part of the tower; indexed latent attention, several residual streams."""
    import transformers as t

    tokens = byte_bpe(*QWEN)
    config = t.HYV4VLConfig(
        text_config=text_of(tokens, hc_mult=2, **LATENT, **EXPERTS, **INDEX, **mrope()),
        vision_config={**SIZES, "out_hidden_size": 32, "max_image_size": 128},
        **ids_of(tokens, image_token_id="<|image_pad|>", video_token_id="<|video_pad|>"),
    )
    video = t.HYV4VLVideoProcessor(size={"shortest_edge": 32 * 32, "longest_edge": 16 * 64 * 64})
    processor = t.HYV4VLProcessor(t.HYV4VLImageProcessor(), tokens, video, chat_template=QWEN_CHAT)
    return save(folder, t.HYV4VLForConditionalGeneration(config), processor, tokens)


def dots3_note(folder: Path) -> Path:
    """Dots 3 Note: experts in the tower too, indexed and windowed latent attention."""
    import transformers as t
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

    tokens = byte_bpe("<|imgpad|>", "<|video_pad|>", "<|audio_comp_pad|>", "<|img|>", "<|endofimg|>")
    layers = {"layer_types": ["indexed_attention", "sliding_attention"], "mlp_layer_types": ["dense", "sparse"]}
    experts = {**EXPERTS, "n_shared_experts": 1, "shared_experts_intermediate_size": 16}
    seeing = {"mlp_layer_types": ["dense", "sparse"], "num_local_experts": 4, "moe_intermediate_size": 16}
    hearing = {"num_hidden_layers": 1, "downsample_hidden_size": 8, "adapter_input_size": 32, "feature_size": 16}
    config = t.Dots3NoteConfig(
        text_config=text_of(tokens, head_dim=16, sliding_window=8, **layers, **experts, **LATENT, **INDEX),
        vision_config={**SIZES, **seeing, "adapter_in_dim": 32, "adapter_out_dim": 32},
        audio_config={**SIZES, **hearing, "adapter_out_dim": 32},
        **ids_of(tokens, image_token_id="<|imgpad|>", video_token_id="<|video_pad|>"),
        **ids_of(tokens, audio_token_id="<|audio_comp_pad|>"),
    )
    size = {"shortest_edge": 4 * 28 * 28, "longest_edge": 16 * 56 * 56}
    video = Qwen3VLVideoProcessor(size=size, patch_size=14, temporal_patch_size=1)
    image = t.Qwen2VLImageProcessor(min_pixels=28 * 28, max_pixels=56 * 56)
    chat = CHATML.replace("VIDEO", "<|img|><|video_pad|><|endofimg|>")
    processor = t.Dots3NoteProcessor(image, tokens, video, t.Dots3NoteFeatureExtractor(), chat_template=chat)
    return save(folder, t.Dots3NoteForConditionalGeneration(config), processor, tokens)


def instructblipvideo(folder: Path) -> Path:
    """InstructBLIP for videos, which is refused: its Q-Former reads the question as well."""
    import transformers as t

    tokens, asked = sentence_bpe("<video>"), sentence_bpe()
    config = t.InstructBlipVideoConfig(
        vision_config={**SIZES, "image_size": 28, "patch_size": 7},
        qformer_config={**SIZES, "vocab_size": len(asked)},
        text_config=text_of(tokens, "llama"),
        num_query_tokens=4,
        video_token_index=tokens.convert_tokens_to_ids("<video>"),
    )
    video: Any = t.InstructBlipVideoVideoProcessor(size={"height": 28, "width": 28})
    processor = t.InstructBlipVideoProcessor(video, tokens, asked, num_query_tokens=4, chat_template=VICUNA)
    return save(folder, t.InstructBlipVideoForConditionalGeneration(config), processor, tokens)


MORE = (
    molmo2,
    perception_lm,
    kimi_k25,
    ernie4_5_vl_moe,
    minimax_m3_vl,
    nemotron_h_omni,
    hy_v4_vl,
    dots3_note,
)
