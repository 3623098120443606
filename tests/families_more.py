"""Gemma 4, GLM, MiniCPM and Muse, tiny and random: see `families`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from families_qwen import LINEAR
from family_parts import CHATML, byte_bpe, ids_of, mrope, save, text_of


def _gemma(folder: Path, name: str, vision: dict[str, Any], **text: Any) -> Path:
    import transformers

    named = {"image_token": "<|image|>", "boi_token": "<|image>", "eoi_token": "<image|>"}
    named |= {"audio_token": "<|audio|>", "boa_token": "<|audio>", "eoa_token": "<audio|>"}
    tokens = byte_bpe("<|video|>", **named)
    part = {n: getattr(transformers, f"{name}{n}") for n in ("Config", "ForConditionalGeneration", "Processor")}
    kinds = ["sliding_attention", "sliding_attention", "full_attention"]
    layers = {"layer_types": kinds, "sliding_window": 8, "head_dim": 8, "global_head_dim": 16}
    config = part["Config"](
        text_config=text_of(tokens, **layers, **text) | {"num_hidden_layers": 3},
        vision_config=vision,
        audio_config=None,
        **ids_of(tokens, boi_token_id="<|image>", eoi_token_id="<image|>", image_token_id="<|image|>"),
        **ids_of(tokens, video_token_id="<|video|>"),
    )
    pieces = [getattr(transformers, f"{name}{n}")() for n in ("AudioFeatureExtractor", "ImageProcessor")]
    video = getattr(transformers, f"{name}VideoProcessor")()
    processor = part["Processor"](*pieces, tokens, video, chat_template=CHATML.replace("VIDEO", "<|video|>"))
    return save(folder, part["ForConditionalGeneration"](config), processor, tokens)


GEMMA_VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "position_embedding_size": 256,
}


def gemma4(folder: Path) -> Path:
    """Gemma 4, the small ones: an embedding a layer, heads of two widths, sliding windows, capped logits."""
    more = {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 408, "final_logit_softcapping": 5.0}
    return _gemma(folder, "Gemma4", GEMMA_VISION, **more)


def gemma4_large(folder: Path) -> Path:
    """Gemma 4, the large ones: a video's tokens see one another, keys are values, experts."""
    experts = {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 16}
    more = {"hidden_size_per_layer_input": 0, "use_bidirectional_attention": "vision", "attention_k_eq_v": True}
    return _gemma(folder, "Gemma4", GEMMA_VISION, **more, **experts)


def gemma4_unified(folder: Path) -> Path:
    """Gemma 4 without a tower: pixels are embedded."""
    return _gemma(folder, "Gemma4Unified", {"mm_embed_dim": 32, "mm_posemb_size": 64, "output_proj_dims": 32})


GLM_VISION = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_heads": 2,
    "out_hidden_size": 32,
    "image_size": 56,
}


def _glm(folder: Path, names: str, text: dict[str, Any], vision: dict[str, Any], size: dict[str, Any]) -> Path:
    """`names`: of configuration, model, processor, and the classes for pictures and videos."""
    import transformers

    tokens = _glm_tokens()
    config, model, processor, pixels = names.split()
    ends = {f"{end}_of_{what}": f"<|{end}_of_{what}|>" for what in ("image", "video") for end in ("begin", "end")}
    ids = ids_of(tokens, image_token_id="<|image|>", video_token_id="<|video|>")
    for what in ("image", "video"):
        ids |= ids_of(tokens, **{f"{what}_start_token_id": ends[f"begin_of_{what}"]})
        ids |= ids_of(tokens, **{f"{what}_end_token_id": ends[f"end_of_{what}"]})
    made = getattr(transformers, f"{config}Config")(text_config=text, vision_config=vision, **ids)
    chat = CHATML.replace("VIDEO", "<|begin_of_video|><|video|><|end_of_video|>")
    kinds = [getattr(transformers, f"{pixels}{n}")(**size) for n in ("ImageProcessor", "VideoProcessor")]
    whole = getattr(transformers, f"{processor}Processor")(kinds[0], tokens, kinds[1], chat_template=chat)
    return save(folder, getattr(transformers, f"{model}ForConditionalGeneration")(made), whole, tokens)


def _glm_tokens() -> Any:
    ends = [f"<|{end}_of_{what}|>" for what in ("image", "video") for end in ("begin", "end")]
    return byte_bpe("<|image|>", "<|video|>", *ends)


GLM_SIZE = {"size": {"shortest_edge": 28 * 28, "longest_edge": 16 * 56 * 56}}


def glm4v(folder: Path) -> Path:
    """GLM-4V: every two frames an image, their second behind it."""
    return _glm(folder, "Glm4v Glm4v Glm4v Glm4v", text_of(_glm_tokens(), **mrope()), GLM_VISION, GLM_SIZE)


def glm46v(folder: Path) -> Path:
    """GLM-4.6V."""
    text, vision = text_of(_glm_tokens(), "glm4v_text", **mrope()), {**GLM_VISION, "model_type": "glm4v_vision"}
    return _glm(folder, "Glm46V Glm46V Glm46V Glm46V", text, vision, GLM_SIZE)


def glmga(folder: Path) -> Path:
    """GLM-GA: GLM-4.6V's model and processor, its own pixels."""
    text, vision = text_of(_glm_tokens(), "glm4v_text", **mrope()), {**GLM_VISION, "model_type": "glm4v_vision"}
    return _glm(folder, "Glmga Glm46V Glm46V Glmga", text, vision, GLM_SIZE)


def glm5_next(folder: Path) -> Path:
    """GLM 5 Next: linear and indexed latent attention, experts, several residual streams."""
    kinds = {"layer_types": ["linear_attention", "full_attention"], "mlp_layer_types": ["dense", "sparse"]}
    experts = {"moe_intermediate_size": 16, "n_routed_experts": 4, "num_experts_per_tok": 2}
    latent = {"kv_lora_rank": 16, "q_lora_rank": 16, "qk_nope_head_dim": 8, "v_head_dim": 8}
    index = {"index_topk": 16, "index_head_dim": 8, "index_n_heads": 2, "index_kpool": 4}
    linear = {"linear_head_dim": 8, "linear_num_heads": 4, "hc_mult": 2, "num_key_value_heads": 4}
    text = text_of(_glm_tokens(), **kinds, **experts, **latent, **index, **linear)
    vision = {**GLM_VISION, "projection_intermediate_size": 64}
    return _glm(
        folder, "Glm5Next Glm5Next Glm5Next Glm5Next", text, vision, {"max_image_tokens": 64, "min_image_tokens": 1}
    )


def _minicpm(folder: Path, name: str, pixels: str, text: dict[str, Any], **ids: Any) -> Path:
    import transformers

    tokens = _minicpm_tokens()
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
    config = getattr(transformers, f"{name}Config")(
        text_config=text,
        vision_config={**vision, "image_size": 112, "patch_size": 14},
        insert_layer_id=1,
        **ids_of(tokens, image_token_id="<|image_pad|>", video_token_id="<|video_pad|>"),
        **ids,
    )
    processor = getattr(transformers, f"{name}Processor")(
        image_processor=getattr(transformers, f"{pixels}ImageProcessor")(scale_resolution=112),
        video_processor=getattr(transformers, f"{pixels}VideoProcessor")(scale_resolution=112, max_slice_nums=1),
        tokenizer=tokens,
        chat_template=CHATML.replace("VIDEO", "<|video_pad|>\n"),
    )
    return save(folder, getattr(transformers, f"{name}ForConditionalGeneration")(config), processor, tokens)


def _minicpm_tokens() -> Any:
    named = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
    for name in ("image", "slice", "image_id"):
        named |= {f"{name}_start_token": f"<{name}>", f"{name}_end_token": f"</{name}>"}
    return byte_bpe(**named)


def _hybrid(**more: Any) -> dict[str, Any]:
    kinds = ["linear_attention", "full_attention"]
    return text_of(_minicpm_tokens(), "qwen3_5_text", head_dim=16, layer_types=kinds, **LINEAR, **more)


def minicpmv4_6(folder: Path) -> Path:
    """MiniCPM-V 4.6: frames packed in one row of patches, merged inside and behind the tower."""
    return _minicpm(folder, "MiniCPMV4_6", "MiniCPMV4_6", _hybrid())


def minicpmv4_7(folder: Path) -> Path:
    """MiniCPM-V 4.7: positions on three rows."""
    tokens = _minicpm_tokens()
    marks = {
        f"{name}_{end}_id": f"<{'/' * (end == 'end')}{name}>" for name in ("image", "slice") for end in ("start", "end")
    }
    ids = {**ids_of(tokens, **marks), "newline_id": tokens("\n")["input_ids"][0]}
    text = _hybrid(**mrope(mrope_interleaved=True, partial_rotary_factor=0.5))
    return _minicpm(folder, "MiniCPMV4_7", "MiniCPMV4_6", text, **ids)


def minicpm_ocr(folder: Path) -> Path:
    """MiniCPM-OCR."""
    return _minicpm(folder, "MiniCPMOcr", "MiniCPMOcr", text_of(_minicpm_tokens(), "llama"))


MUSE_VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "pos_emb_height": 8,
    "pos_emb_width": 8,
    "max_position_embeddings": 64,
}


def _muse(folder: Path, name: str, more: dict[str, Any], listens: bool = False, **text: Any) -> Path:
    import transformers

    video = ["video", "vid_frame_separator", "vid_start", "vid_end"]
    audio = ["audio", "soft_audio_start", "soft_audio_end"]
    tokens = byte_bpe(*(f"<|{n}|>" for n in ("patch", "image_start", "image_end", *video, *audio)))
    kinds = ["sliding_attention", "full_attention"]
    rope = {"rope_type": "default", "rope_theta": 1e4}
    config = getattr(transformers, f"{name}Config")(
        text_config=text_of(tokens, head_dim=8, sliding_window=8, layer_types=kinds, rope_parameters=rope, **text),
        vision_config=MUSE_VISION,
        out_hidden_size=128,
        projector_hidden_size=48,
        **ids_of(tokens, image_token_id="<|patch|>", video_token_id="<|video|>"),
        **({"audio_token_id": tokens.convert_tokens_to_ids("<|audio|>")} if listens else {}),
        **more,
    )
    processor = getattr(transformers, f"{name}Processor")(
        image_processor=transformers.MuseGlimmerImageProcessor(),
        tokenizer=tokens,
        video_processor=transformers.MuseGlimmerVideoProcessor(max_video_frame_tokens=6),
        **({"feature_extractor": transformers.MuseSparkFeatureExtractor()} if listens else {}),
        chat_template=CHATML.replace("VIDEO", "<|video|>"),
    )
    return save(folder, getattr(transformers, f"{name}ForConditionalGeneration")(config), processor, tokens)


def muse_glimmer(folder: Path) -> Path:
    """Muse Glimmer: an adapter, a projection and a norm behind the tower; windows, layers without positions."""
    return _muse(folder, "MuseGlimmer", {})


def muse_spark(folder: Path) -> Path:
    """Muse Spark: experts, and an ear that stays shut."""
    ear = {"patch_sizes": [16, 2], "hidden_sizes": [16, 32], "depths": [1, 1], "num_hidden_layers": 2}
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2, "moe_hidden_size": 16, "moe_intermediate_size": 16}
    text = {**experts, "mlp_layer_types": ["dense", "sparse"]}
    return _muse(folder, "MuseSpark", {"audio_config": {**ear, "out_hidden_size": 32}}, listens=True, **text)


MORE = (
    gemma4,
    gemma4_large,
    gemma4_unified,
    glm4v,
    glm46v,
    glmga,
    glm5_next,
    minicpmv4_6,
    minicpmv4_7,
    minicpm_ocr,
    muse_glimmer,
    muse_spark,
)
