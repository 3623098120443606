"""A tiny random model with its real processor for each family: `FAMILIES[name](folder)` writes one and returns it.

Tokenizers are small but of the families' kinds: byte-level BPE that merges across words and new lines, or
SentencePiece-like BPE with a first token of its own. Chat templates are shortened copies of the published ones.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from vstar_fast import torchvision_compat

torchvision_compat.ensure()

CORPUS = [
    "You are provided the following series of four frames from a 0:00:04 [H:MM:SS] video.\n\n",
    "Which colour is it? Answer: red\n\nIt is green. Frame1: a b\nFrame2: c\n",
    "USER: User: Assistant: ASSISTANT: system user assistant\nYou are a helpful assistant.\n",
    "<0.5 seconds><12.0 seconds>",
    "\n\nFrame from 00:01: I see a red ball\n\nwhat is there \nFrame from 00:02: why not",
]
TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "initializer_range": 0.3,
}
CLIP: dict[str, Any] = {
    "model_type": "clip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 7,
    "projection_dim": 32,
}
CHATML = (
    "{% for m in messages %}"
    "{% if loop.first and m['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ m['role'] }}\n"
    "{% for p in m['content'] %}{% if p['type'] == 'video' %}VIDEO{% else %}{{ p['text'] }}{% endif %}{% endfor %}"
    "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VICUNA = (
    "{% for m in messages %}{% if m['role'] == 'user' %}USER: {% else %}ASSISTANT: {% endif %}"
    "{% for p in m['content'] %}{% if p['type'] == 'video' %}<video>\n{% else %}{{ p['text'] }}{% endif %}{% endfor %} "
    "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def byte_bpe(*special: str, eos: str = "<|im_end|>", **named: str) -> Any:
    """A byte-level BPE tokenizer in the manner of GPT-2 and Qwen; `named`: tokens that processors look up by name."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=letters, show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=eos, pad_token="<|endoftext|>", extra_special_tokens=named or None
    )
    made.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>", *special]})
    return made


def sentence_bpe(*special: str) -> Any:
    """A BPE tokenizer in the manner of Llama's: spaces are letters, and every text begins with <s>."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=["<unk>", "<s>", "</s>", *bytes_], show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<unk>"
    )
    made.add_special_tokens({"additional_special_tokens": list(special)})
    return made


def text_of(tokens: Any, model_type: str | None = None, **more: Any) -> dict[str, Any]:
    """Configuration of a text stack for this tokenizer."""
    ids = {f"{n}_token_id": getattr(tokens, f"{n}_token_id") for n in ("bos", "eos", "pad")}
    kind = {"model_type": model_type} if model_type else {}
    return {**TEXT, **kind, "vocab_size": len(tokens), **ids, **more}


def save(folder: Path, model: Any, processor: Any, tokens: Any) -> Path:
    """Write model and processor as `save_pretrained` does."""
    model.generation_config.eos_token_id = tokens.eos_token_id
    model.generation_config.pad_token_id = tokens.pad_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


QWEN = ("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")
QWEN_CHAT = CHATML.replace("VIDEO", "<|vision_start|><|video_pad|><|vision_end|>")


def _qwen_ids(tokens: Any) -> dict[str, int]:
    names = {"image_token_id": "image_pad", "video_token_id": "video_pad"}
    names |= {f"{n}_token_id": n for n in ("vision_start", "vision_end")}
    return {key: tokens.convert_tokens_to_ids(f"<|{name}|>") for key, name in names.items()}


def _mrope(**more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2], **more}}


def qwen2_vl(folder: Path) -> Path:
    """Qwen2-VL: tower of width 32, LayerNorm merger."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLProcessor

    tokens = byte_bpe(*QWEN)
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2, "num_heads": 2}
    config = Qwen2VLConfig(text_config=text_of(tokens, **_mrope()), vision_config=vision, **_qwen_ids(tokens))
    return save(folder, Qwen2VLForConditionalGeneration(config), _qwen2_processor(Qwen2VLProcessor, tokens), tokens)


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
    config = Qwen2_5_VLConfig(text_config=text_of(tokens, **_mrope()), vision_config=vision, **_qwen_ids(tokens))
    model = Qwen2_5_VLForConditionalGeneration(config)
    return save(folder, model, _qwen2_processor(Qwen2_5_VLProcessor, tokens), tokens)


def _qwen2_processor(kind: Any, tokens: Any) -> Any:
    from transformers import Qwen2VLImageProcessor, Qwen2VLVideoProcessor

    video = Qwen2VLVideoProcessor(size={"shortest_edge": 28 * 28, "longest_edge": 84 * 84})
    image = Qwen2VLImageProcessor(min_pixels=28 * 28, max_pixels=56 * 56)
    return kind(image, tokens, video, chat_template=QWEN_CHAT)


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
    text = text_of(tokens, head_dim=8, **_mrope(mrope_interleaved=True))
    config = Qwen3VLConfig(text_config=text, vision_config=vision, **_qwen_ids(tokens))
    video = Qwen3VLVideoProcessor(size={"shortest_edge": 4 * 32 * 32, "longest_edge": 16 * 64 * 64})
    image = Qwen2VLImageProcessor(min_pixels=28 * 28, max_pixels=56 * 56)
    processor = Qwen3VLProcessor(image, tokens, video, chat_template=QWEN_CHAT)
    return save(folder, Qwen3VLForConditionalGeneration(config), processor, tokens)


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
    "qwen2_vl": qwen2_vl,
    "qwen2_5_vl": qwen2_5_vl,
    "qwen3_vl": qwen3_vl,
    "llava_onevision": llava_onevision,
    "llava_next_video": llava_next_video,
    "video_llava": video_llava,
    "smolvlm": smolvlm,
    "internvl": internvl,
    "video_llama_3": video_llama_3,
}


def write(name: str, folder: Path, seed: int = 0) -> Path:
    """The seeded model folder of a family."""
    torch.manual_seed(seed)
    return FAMILIES[name](folder)
