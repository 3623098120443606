"""Qwen3.5 in miniature: layers with a running state between those that attend, Qwen3-VL's tower and processor."""

from pathlib import Path

from families import QWEN, QWEN_CHAT, _mrope, _qwen_ids, byte_bpe, save, text_of


def write(folder: Path) -> Path:
    """The seeded model folder."""
    import torch
    from transformers import Qwen2VLImageProcessor, Qwen3_5Config, Qwen3_5ForConditionalGeneration, Qwen3VLProcessor
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

    torch.manual_seed(0)
    tokens = byte_bpe(*QWEN)
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 32}
    delta = {f"linear_{name}": 2 for name in ("num_value_heads", "num_key_heads")}
    delta |= {f"linear_{name}": 8 for name in ("key_head_dim", "value_head_dim")}
    layers = ["linear_attention", "full_attention", "linear_attention"]
    more = {"num_hidden_layers": 3, "layer_types": layers, "head_dim": 16, "initializer_range": 0.2}
    text = text_of(tokens, **more, **delta, **_mrope(mrope_interleaved=True, partial_rotary_factor=0.5))
    config = Qwen3_5Config(
        text_config=text, vision_config=vision | {"num_position_embeddings": 64}, **_qwen_ids(tokens)
    )
    video = Qwen3VLVideoProcessor(size={"shortest_edge": 4 * 32 * 32, "longest_edge": 16 * 64 * 64})
    image = Qwen2VLImageProcessor(min_pixels=28 * 28, max_pixels=56 * 56)
    processor = Qwen3VLProcessor(image, tokens, video, chat_template=QWEN_CHAT)
    return save(folder, Qwen3_5ForConditionalGeneration(config), processor, tokens)
