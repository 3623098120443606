"""The Python blocks of docs/ops.md run one after the other as they are written, and give what stands beside them."""

import ast
import re
from pathlib import Path

import torch

from vstar_fast import torchvision_compat

torchvision_compat.ensure()

TEXT = (Path(__file__).parents[1] / "docs" / "ops.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


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


def test_the_page_runs_and_gives_what_it_says():
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = byte_tokenizer()
    sizes = {"vocab_size": 264, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, eos_token_id=tokenizer.eos_token_id)).eval()
    names = {"tokenizer": tokenizer, "model": model, "prompt": torch.tensor([[5, 6, 7]])}
    names |= {"logits": torch.randn(3, 264), "seeds": torch.tensor([1, 2, 3])}
    found = [pair for block in BLOCKS for pair in shown(block, names)]
    assert len(found) >= 12
    for value, said in found:
        assert value == said
    assert names["output"].shape == (4, 8, 64) and names["patches"].shape == (32, 1176)
    low, high = names["spans"].value(names["out"][0, 3:].tolist())["when"]
    assert 0 <= low <= high <= 9
