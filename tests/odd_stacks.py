"""Text stacks of kinds that packed tokens have no form for, or had none: alone, and in a video-LMM."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

import families
from family_parts import TEXT, text_of

MLA = {"kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 6}
LINEAR = {"linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4}
MIXED = {"layer_types": ["linear_attention", "full_attention"], "head_dim": 8}
EXPERTS = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "moe_intermediate_size": 16}
ODD: dict[str, dict[str, Any]] = {
    "qwen3_5_text": {**MIXED, **LINEAR},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "gemma2": {"sliding_window": 16, "head_dim": 8},
    "deepseek_v3": {"q_lora_rank": None, **MLA, **EXPERTS, "first_k_dense_replace": 1},
    "minimax": {**MIXED, "num_local_experts": 2, "block_size": 8},
    "recurrent_gemma": {"attention_window_size": 16, "block_types": ["recurrent", "attention"]},
}
"""model_type -> what makes it odd. MiniMax's cache has states that do not follow its rows; RecurrentGemma's lies in
its layers, so that each answer is read from its beginning."""


def odd(kind: str, sizes: dict[str, Any]) -> dict[str, Any]:
    """The sizes of a text stack, with those of its kind."""
    heads = {"num_key_value_heads": sizes["num_attention_heads"]} if kind == "deepseek_v3" else {}
    width = {"lru_width": sizes["hidden_size"]} if kind == "recurrent_gemma" else {}
    return {**sizes, **ODD[kind], **heads, **width}


def text_model(kind: str, sizes: dict[str, Any]) -> Any:
    """A random causal language model of a kind."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **odd(kind, sizes))).eval()


def write(kind: str, folder: Path) -> Path:
    """A LLaVA-OneVision whose text stack is of a kind."""
    torch.manual_seed(0)
    return families.llava_onevision(folder, lambda tokens: text_of(tokens, kind, **odd(kind, TEXT)))
