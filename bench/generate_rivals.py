"""Others' engines that answer several times to one prompt: Hugging Face's continuous batching, and vLLM.

Each takes (model, prompts [V, P], k, new tokens) and gives ids [V, k, new tokens], greedy. Text only: neither knows
random weights of a video model without its files.
"""

from __future__ import annotations

import contextlib
import importlib.util
import tempfile
import time
from collections.abc import Iterator
from typing import Any


class Absent(Exception):
    """Why a rival cannot run here."""


@contextlib.contextmanager
def _attention_kept(model: Any) -> Iterator[None]:
    """`generate_batch` switches a model to paged attention; afterwards it has its own again."""
    before = model.config._attn_implementation
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _sizes(rows: int, tokens: int) -> Any:
    """A cache that holds all rows; left to itself it takes most of the memory there is."""
    from dataclasses import fields

    from transformers import ContinuousBatchingConfig

    page = 256
    wanted = {"num_blocks": rows * -(-tokens // page) + 8, "max_batch_tokens": max(2048, rows), "use_cuda_graph": None}
    names = {f.name for f in fields(ContinuousBatchingConfig)}
    return ContinuousBatchingConfig(**{k: v for k, v in wanted.items() if k in names and v is not None})


def generate_batch(model: Any, prompts: Any, k: int, tokens: int) -> tuple[Any, float]:
    """Hugging Face's continuous batching: each prompt prefilled once, its cache blocks shared. (ids, 0 s of start)."""
    import torch
    from transformers import GenerationConfig

    kinds = set(getattr(model.config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if kinds:
        raise Absent(f"generate_batch takes no layers of {', '.join(sorted(kinds))}")
    listed = [p for p in prompts.tolist() for _ in range(k)]
    config = GenerationConfig(max_new_tokens=tokens, do_sample=False, eos_token_id=-1, pad_token_id=0)
    sizes = _sizes(len(listed), prompts.shape[1] + tokens)
    with _attention_kept(model), torch.inference_mode():
        found = model.generate_batch(
            listed, generation_config=config, continuous_batching_config=sizes, progress_bar=False
        )
    answers = [list(out.generated_tokens)[:tokens] for out in found.values()]
    if len(answers) != len(listed) or any(len(x) != tokens for x in answers):
        raise Absent(f"generate_batch gave {len(answers)} of {len(listed)} answers on {model.device}")
    return torch.tensor(answers).view(len(prompts), k, tokens), 0.0


def vllm(model: Any, prompts: Any, k: int, tokens: int) -> tuple[Any, float]:
    """vLLM over the same weights: (ids, seconds it took to start, which are no part of the answer)."""
    import torch

    if importlib.util.find_spec("vllm") is None:
        raise Absent("vLLM is not importable (it brings a torch of its own: use an environment of its own)")
    from vllm import LLM, SamplingParams

    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        engine = LLM(folder, skip_tokenizer_init=True, dtype=str(model.dtype).removeprefix("torch."))
        started = time.perf_counter() - began
        drawn = SamplingParams(n=k, temperature=0.0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        found = engine.generate([{"prompt_token_ids": p} for p in prompts.tolist()], drawn, use_tqdm=False)
    ids = [[list(answer.token_ids) for answer in request.outputs] for request in found]
    return torch.tensor(ids), started


RIVALS = {"HF generate_batch": generate_batch, "vLLM": vllm}
