"""Video-LLaVA with seeded random weights, by size: what a whole cycle is measured with where nothing can be fetched."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vstar_fast.bench import language_models

if TYPE_CHECKING:
    from vstar_fast.models.video_lm import VideoLM

TOWERS: dict[str, dict[str, Any]] = {
    "tiny": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 7,
        "projection_dim": 32,
    },
    "Video-LLaVA-7B": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 224,
        "patch_size": 14,
        "projection_dim": 768,
    },
}
"""Name, also of a language model, -> its CLIP tower: 17 and 257 tokens a frame."""
CHAT = (
    "{% for m in messages %}USER: {% for p in m['content'] %}"
    "{% if p['type'] == 'video' %}<video>\n{% else %}{{ p['text'] }}{% endif %}{% endfor %} {% endfor %}ASSISTANT:"
)


def build(name: str, device: str = "cpu") -> VideoLM:
    """The model and a processor of its own; bf16 on a GPU. ConfigError for one that does not fit what is free."""
    import torch

    from vstar_fast.engine import Engine

    import transformers  # isort: skip

    language_models.check_size(name, device)
    tokens, text = _tokenizer(), dict(language_models.SHAPES[name])
    text["model_type"] = text.pop("kind").lower()
    ids = {f"{kind}_token_id": getattr(tokens, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}
    config = transformers.VideoLlavaConfig(
        text_config={**text, **ids, "max_position_embeddings": 1 << 14},
        vision_config={"model_type": "clip_vision_model", **TOWERS[name]},
        image_token_index=tokens.convert_tokens_to_ids("<image>"),
        video_token_index=tokens.convert_tokens_to_ids("<video>"),
    )
    torch.manual_seed(0)
    previous = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16 if device == "cuda" else torch.float32)
    try:
        with torch.device(device):
            model = transformers.VideoLlavaForConditionalGeneration(config).eval()
    finally:
        torch.set_default_dtype(previous)
    model.generation_config.update(eos_token_id=ids["eos_token_id"], pad_token_id=ids["pad_token_id"])
    return Engine(model, _processor(tokens, TOWERS[name])).lm


def _tokenizer() -> Any:
    """A byte a token; the model's other ids are no text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({c: i for i, c in enumerate([*letters, "<s>", "</s>", "<unk>"])}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<unk>"
    )
    made.add_special_tokens({"additional_special_tokens": ["<video>", "<image>"]})
    return made


def _processor(tokens: Any, tower: dict[str, Any]) -> Any:
    import transformers

    side = tower["image_size"]
    size = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    return transformers.VideoLlavaProcessor(
        image_processor=transformers.VideoLlavaImageProcessor(**size),
        video_processor=transformers.VideoLlavaVideoProcessor(**size),
        tokenizer=tokens,
        patch_size=tower["patch_size"],
        chat_template=CHAT,
    )
