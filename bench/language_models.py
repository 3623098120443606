"""Language models by name with random weights, text only: what the engine's benches run."""

from __future__ import annotations

from typing import Any

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {
        "kind": "Llama",
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    "SmolLM2-135M": {
        "kind": "Llama",
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "tie_word_embeddings": True,
    },
    "Qwen3.5-small": {
        "kind": "Qwen3_5",
        "config": "Qwen3_5Text",
        "vocab_size": 8192,
        "hidden_size": 256,
        "intermediate_size": 768,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "linear_num_key_heads": 4,
        "linear_num_value_heads": 8,
        "linear_key_head_dim": 64,
        "linear_value_head_dim": 64,
    },
    "Qwen2.5-VL-7B": {
        "kind": "Qwen2",
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
    },
    "Qwen3-VL-8B": {
        "kind": "Qwen3",
        "vocab_size": 151936,
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
    },
    "Video-LLaVA-7B": {
        "kind": "Llama",
        "vocab_size": 32064,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
    },
}
"""Name -> the text stack's configuration; `kind` is the transformers class, `config` that of its configuration."""


def check_size(name: str, device: str) -> None:
    """Raise ConfigError for a model whose weights do not fit what is free; nothing is allocated to find out."""
    import torch

    from vstar_fast.errors import ConfigError
    from vstar_fast.models import memory

    if name not in SHAPES:
        raise ConfigError(f"no model named {name!r}; there are: {', '.join(SHAPES)}")
    need = sum(p.nbytes for p in build(name, "meta").parameters()) // (2 if device == "cuda" else 1)
    free = memory.free_bytes(torch.device(device))
    if need > free:
        raise ConfigError(
            f"the weights of {name} take {need / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free on {device}; "
            "take a smaller model or a larger machine"
        )


def build(name: str, device: str = "cpu", layers: int | None = None) -> Any:
    """The model of SHAPES[name] with seeded random weights, no end-of-turn token; bf16 on a GPU. `layers`: so many."""
    import torch

    import vstar_fast.engine  # noqa: F401 - makes transformers importable beside CPU torch

    import transformers  # isort: skip

    sizes = SHAPES[name] | ({} if layers is None else {"num_hidden_layers": layers})
    kind = sizes.pop("kind")
    config_kind = sizes.pop("config", kind)
    torch.manual_seed(0)
    more = {"max_position_embeddings": 1 << 15, "eos_token_id": None, "pad_token_id": 0, "bos_token_id": None}
    config = getattr(transformers, f"{config_kind}Config")(**sizes, **more)
    with torch.device(device):
        previous = torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16 if device == "cuda" else torch.float32)
        try:
            model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
        finally:
            torch.set_default_dtype(previous)
    model.generation_config.eos_token_id = None
    return model


def matrix_flops(model: Any) -> tuple[float, float]:
    """Floating-point operations a token: (in the text stack's linear layers, in the head)."""
    import torch

    linear = sum(
        m.weight.numel() for n, m in model.model.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"
    )
    return 2.0 * linear, 2.0 * model.get_output_embeddings().weight.numel()
