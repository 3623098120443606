"""docs/: examples run and give what stands beside them; settings, flags, reasons and files that are named are there."""

import ast
import dataclasses
import re
from pathlib import Path

import pytest
import torch

import tiny
from vstar_fast import config, readers, torchvision_compat
from vstar_fast.cli import main
from vstar_fast.match import REASONS

torchvision_compat.ensure()

PAGES = {path.stem: path.read_text() for path in (Path(__file__).parents[1] / "docs").glob("*.md")}


FILES = {"cache.py", "generate.py", "finetune.py", "evaluate.py"}


def _fields(section):
    return dataclasses.fields(getattr(config.CycleConfig(), section)) if section not in ("recipe", "seed") else ()


def blocks(page):
    return re.findall(r"```python\n(.*?)```", PAGES[page], re.DOTALL)


def byte_tokenizer():
    """Every byte a token, and nothing else but an end."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    made = Tokenizer(BPE({**vocab, "<eos>": len(vocab)}, []))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<eos>", pad_token="<eos>")


def plain(value):
    """What a comment would say: lists for tensors, three digits."""
    if isinstance(value, torch.Tensor):
        return plain(value.tolist())
    if isinstance(value, list):
        return [plain(v) for v in value]
    return round(value, 3) if isinstance(value, float) else value


def shown(block, names):
    """Runs a block; (what a bare expression gives, what its comment says) where that is a value."""
    for statement in ast.parse(block).body:
        source = ast.get_source_segment(block, statement)
        if not isinstance(statement, ast.Expr):
            exec(source, names)
            continue
        value = plain(eval(source, names))
        said = re.search(r"# ([\[({].*[\])}])(:.*)?$", block.splitlines()[statement.end_lineno - 1])
        if said:
            yield value, ast.literal_eval(said[1])


def test_the_ops_give_what_the_page_says():
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = byte_tokenizer()
    sizes = {"vocab_size": 264, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, eos_token_id=tokenizer.eos_token_id)).eval()
    names = {"tokenizer": tokenizer, "model": model, "prompt": torch.tensor([[5, 6, 7]])}
    names |= {"logits": torch.randn(3, 264), "seeds": torch.tensor([1, 2, 3])}
    found = [pair for block in blocks("ops") for pair in shown(block, names)]
    assert len(found) >= 12
    for value, said in found:
        assert value == said
    assert names["output"].shape == (4, 8, 64) and names["patches"].shape == (32, 1176)
    low, high = names["spans"].value(names["out"][0, 3:].tolist())["when"]
    assert 0 <= low <= high <= 9


def test_the_cycle_runs_from_python(tmp_path, monkeypatch, capsys):
    project = tiny.settings(tiny.write_data(tmp_path / "data"), tiny.write_model(tmp_path / "model"))
    (tmp_path / "run.toml").write_text(config.to_toml(config.from_dict(project)))
    monkeypatch.chdir(tmp_path)
    for block in blocks("cycle"):
        exec(block, {})
    assert "'low'" in capsys.readouterr().out
    tree = re.search(r"```\nrun/\n(.*?)```", PAGES["cycle"], re.DOTALL)[1]
    told = re.findall(r"^ +([\w./-]+\w)/? ", tree, re.MULTILINE)
    assert len(told) == 10
    there = {path.name for path in (tmp_path / "runs" / "mine").rglob("*")}
    assert {Path(name).name for name in told} <= there


def test_every_reason_stands_on_the_page():
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", PAGES["cycle"], re.MULTILINE))
    assert rows == REASONS


@pytest.mark.parametrize("page", sorted(PAGES))
def test_settings_and_flags_that_are_named_exist(page):
    sections = {f.name: f.type for f in dataclasses.fields(config.CycleConfig)}
    known = {f"{s}.{f.name}" for s in sections for f in _fields(s)}
    named = set(re.findall(rf"`((?:{'|'.join(sections)})\.\w+)\b(?!\.)", PAGES[page])) - FILES
    assert not named - known, named - known
    flags = {o for c in main.commands.values() for p in c.params for o in p.opts}
    used = set(re.findall(r"(?<=`)--[a-z-]+|(?<=vstar-fast )--[a-z-]+", PAGES[page]))
    assert not used - flags, used - flags


DATA = re.findall(r"```(csv|json|text)\n(.*?)```", PAGES["data"], re.DOTALL)
KINDS = [
    {"class"},
    {"choice"},
    {"number"},
    {"interval"},
    {"class"},
    {"class", "sequence", "interval", "number", "answer"},
]


@pytest.mark.parametrize(("block", "kinds"), zip(DATA, KINDS, strict=True))
def test_data_reads_as_the_page_has_it(block, kinds, tmp_path):
    suffix, text = block
    for name in re.findall(r"[\w/]+\.(?:mp4|avi)", text):
        tiny.write_clip(tmp_path / name, (30, 200, 30))
    if "vstar_manifest" in text:
        suffix, text = "jsonl", text.replace("\n  ", " ")
    path = tmp_path / f"data.{suffix.replace('text', 'txt')}"
    path.write_text(text)
    videos, rejected, _ = readers.read(config.from_dict({"data": {"path": str(path)}}).data)
    assert not rejected
    assert {label.kind for video in videos for label in video.labels} == kinds
