"""A whole project in miniature: a tiny video-LMM with a ten-word vocabulary, and clips of plain colours.

Its head is set by hand so that it tends to say "I see a Answer: <some colour>" and ends there; the rest is
random. So about one answer in ten holds its label, whatever the machine: every path of the cycle is walked in
seconds.
"""

from __future__ import annotations

import json
from pathlib import Path

import av
import numpy as np
import torch

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 40, 220)}
WORDS = ["I", "see", "a", "Answer:", *COLOURS, "which", "colour", "."]
SPACE = "\u0120"
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<video>"]


def write_clip(path: Path, colour: tuple[int, int, int], frames: int = 8, fps: int = 8, title: str = "") -> Path:
    """A clip of one colour (with a moving dark bar), H.264. `title` tells files of the same pictures apart."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as file:
        file.metadata["title"] = title
        stream = file.add_stream("libx264", rate=fps)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for i in range(frames):
            picture = np.full((32, 32, 3), colour, np.uint8)
            picture[:, 4 * (i % 8) : 4 * (i % 8) + 4] = 0
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")):
                file.mux(packet)
        for packet in stream.encode():
            file.mux(packet)
    return path


def write_data(root: Path, train: int = 6, held_out: int = 3) -> Path:
    """A manifest with `train` + 2 x `held_out` clips; returns its path."""
    names = list(COLOURS)
    rows: list[dict[str, object]] = [{"vstar_manifest": 1, "name": "colours", "label_sets": {"colours": names}}]
    for split, count in (("train", train), ("dev", held_out), ("test", held_out)):
        for i in range(count):
            name = names[i % len(names)]
            write_clip(root / split / f"{i}.mp4", COLOURS[name], frames=6 + i % 3, title=split)
            label = {"kind": "class", "name": "colour", "value": name, "set": "colours"}
            rows.append({"id": f"{split}-{i}", "path": f"{split}/{i}.mp4", "split": split, "labels": [label]})
    path = root / "manifest.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def tokenizer():  # type: ignore[no-untyped-def]
    """Words with the space before them, written as byte-level BPE writes them; anything else is unknown."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {w: i for i, w in enumerate([*SPECIAL, *(SPACE + w for w in WORDS)])}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="<|endoftext|>"))
    split = pre_tokenizers.Split(Regex(r"\s+"), "removed")
    spaced = pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, spaced])
    backend.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>", unk_token="<|endoftext|>"
    )
    made.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<video>"]})
    return made


def write_model(folder: Path, seed: int = 0) -> Path:
    """A loadable model folder with random weights."""
    from vstar_fast import torchvision_compat
    from vstar_fast.models.vstar_demo import register

    torchvision_compat.ensure()
    register()
    from transformers import LlamaConfig

    from vstar_fast.models.vstar_demo.configuration import VStarDemoConfig, VStarDemoVisionConfig
    from vstar_fast.models.vstar_demo.modeling import VStarDemoForConditionalGeneration
    from vstar_fast.models.vstar_demo.processing import VStarDemoProcessor, VStarDemoVideoProcessor

    words = tokenizer()
    text = LlamaConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.05,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
        bos_token_id=None,
    )
    vision = VStarDemoVisionConfig(stages=[(1, 3, 1, 1, 8), (1, 3, 2, 2, 8)], stem_channels=8, rows=2, image_size=32)
    torch.manual_seed(seed)
    video = words.convert_tokens_to_ids("<video>")
    config = VStarDemoConfig(text, vision, video_token_id=video, tie_word_embeddings=False)
    model = VStarDemoForConditionalGeneration(config).eval()
    _set_head(model, words)
    model.generation_config.eos_token_id = words.eos_token_id
    model.generation_config.pad_token_id = words.pad_token_id
    model.save_pretrained(folder)
    VStarDemoProcessor(
        words, VStarDemoVideoProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    ).save_pretrained(folder)
    return folder


FOLLOWS = {
    "<|endoftext|>": ("I",),
    "I": ("see",),
    "see": ("a",),
    "a": ("Answer:",),
    "Answer:": tuple(COLOURS),
    **dict.fromkeys((*COLOURS, "which", "colour", "."), ("<|im_end|>",)),
}
"""Word -> words that are likely next; the prompt ends in an unknown word."""


def token_id(words, word):  # type: ignore[no-untyped-def]
    """The id of a word of this vocabulary, or of a special token."""
    return words.convert_tokens_to_ids(word if word in SPECIAL else SPACE + word)


def _set_head(model, words):  # type: ignore[no-untyped-def]
    """Embeddings at right angles, and a head that reads the last word off them: likely next words get logit 4."""
    size = len(words)
    table = torch.linalg.qr(torch.randn(32, 32))[0][:size]
    head = torch.zeros(size, 32)
    for word, following in FOLLOWS.items():
        for after in following:
            head[token_id(words, after)] += 4 / 32**0.5 * table[token_id(words, word)]
    with torch.no_grad():
        model.get_input_embeddings().weight.copy_(table)
        model.lm_head.weight.copy_(head)


def settings(data: Path, model: Path) -> dict[str, dict[str, object]]:
    """Run settings that walk the whole cycle in seconds."""
    return {
        "data": {"path": str(data)},
        "model": {"base": str(model)},
        "frames": {"count": 4},
        "generate": {"samples": 8, "temperature": 1.0, "max_new_tokens": 20, "batch_size": 16},
        "evaluate": {"max_new_tokens": 12, "batch_size": 8, "bootstrap": 200},
        "finetune": {"batch_size": 4, "micro_batch_size": 2, "epochs": 1.0, "lora_r": 2, "lora_alpha": 4},
        "loop": {"max_cycles": 2, "patience": 2},
    }
