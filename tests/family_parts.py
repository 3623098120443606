"""What the tiny models of `families` are made of: small tokenizers, chat templates, sizes, and how one is written.

Tokenizers are small but of the families' kinds: byte-level BPE that merges across words and new lines, or
SentencePiece-like BPE with a first token of its own. Chat templates are shortened copies of the published ones.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

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


def qwen_ids(tokens: Any) -> dict[str, int]:
    """Ids of the tokens that Qwen's configurations name."""
    names = {"image_token_id": "image_pad", "video_token_id": "video_pad"}
    names |= {f"{n}_token_id": n for n in ("vision_start", "vision_end")}
    return {key: tokens.convert_tokens_to_ids(f"<|{name}|>") for key, name in names.items()}


def mrope(**more: Any) -> dict[str, Any]:
    """Positions on three rows."""
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2], **more}}


def ids_of(tokens: Any, **named: str) -> dict[str, int]:
    """Ids of tokens by the names that a configuration gives them."""
    return {name: tokens.convert_tokens_to_ids(token) for name, token in named.items()}


def qwen2_processor(kind: Any, tokens: Any) -> Any:
    """A processor class over Qwen2-VL's pictures and videos."""
    from transformers import Qwen2VLImageProcessor, Qwen2VLVideoProcessor

    video = Qwen2VLVideoProcessor(size={"shortest_edge": 28 * 28, "longest_edge": 84 * 84})
    image = Qwen2VLImageProcessor(min_pixels=28 * 28, max_pixels=56 * 56)
    return kind(image, tokens, video, chat_template=QWEN_CHAT)


def qwen3_processor(kind: Any, tokens: Any, chat: str = QWEN_CHAT) -> Any:
    """A processor class over Qwen3-VL's videos."""
    from transformers import Qwen2VLImageProcessor
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

    video = Qwen3VLVideoProcessor(size={"shortest_edge": 4 * 32 * 32, "longest_edge": 16 * 64 * 64})
    image = Qwen2VLImageProcessor(min_pixels=28 * 28, max_pixels=56 * 56)
    return kind(image, tokens, video, chat_template=chat)
