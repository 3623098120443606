"""An adapter on a model that it was not made for, and a base model in 4 bits."""

import json
import shutil
import types

import pytest
import torch
from torch.testing._internal.two_tensor import TwoTensor

import killed_fit
import tiny
from vstar_fast import models
from vstar_fast.config import FinetuneConfig, from_dict
from vstar_fast.errors import BackendError, ModelError
from vstar_fast.finetune import finetune, lora_settings
from vstar_fast.models import base_model, loading
from vstar_fast.profiling import Profiler
from vstar_fast.progress import Progress
from vstar_fast.run.runtime import Runtime, unload

CONFIG = FinetuneConfig(batch_size=4, micro_batch_size=4, steps=25, lora_r=2, lr=2e-2, track="none")


def train(path, out, **load):
    from peft import get_peft_model

    lm = models.load(str(path), device="cpu", **load)
    torch.manual_seed(0)
    peft = get_peft_model(lm.model, lora_settings(lm, CONFIG))
    log = finetune(lm, peft, *killed_fit.examples(lm), CONFIG, out, seed=0)
    unload(peft)
    return lm, log


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("tiny")
    lm, log = train(tiny.write_model(root / "model"), root / "adapter")
    return root, lm, log


def runtime(model, folder):
    config = from_dict({"model": {"base": str(model)}})
    return Runtime(config, folder, Profiler("off"), Progress(quiet=True))


def test_an_adapter_knows_its_model_and_takes_a_copy_of_it(trained, tmp_path):
    root, lm, log = trained
    assert log["base"]["path"] == lm.path and len(log["base"]["key"]) == 16
    shutil.copytree(root / "model", tmp_path / "moved")
    runtime(tmp_path / "moved", tmp_path).adapted(root / "adapter")


def test_other_weights_of_the_same_shape_are_refused(trained, tmp_path):
    root, lm, _ = trained
    other = tiny.write_model(tmp_path / "other", seed=1)
    with pytest.raises(ModelError) as error:
        runtime(other, tmp_path).adapted(root / "adapter")
    text = str(error.value)
    assert f"made for the base model {lm.path}, and this is {other}: its layers fit, but the files" in text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.text_config.update({"intermediate_size": 80}), "takes 32 values|gives 80 values|takes 80 values"),
        (lambda c: c.text_config.update({"num_hidden_layers": 1}), r"there is no model\S*layers\.1"),
    ],
    ids=["width", "depth"],
)
def test_a_model_of_another_shape_is_refused_without_a_record_of_the_first(trained, tmp_path, change, words):
    from transformers import AutoConfig, AutoModelForImageTextToText

    root, lm, _ = trained
    shutil.copytree(root / "model", tmp_path / "other")
    config = AutoConfig.from_pretrained(root / "model")
    change(config)
    AutoModelForImageTextToText.from_config(config).save_pretrained(tmp_path / "other")
    adapter = shutil.copytree(root / "adapter", tmp_path / "adapter")
    (adapter / "training.json").write_text(json.dumps({"steps": 1}))
    with pytest.raises(ModelError, match=rf"made for the base model {lm.path}, and this is .*other: .*({words})"):
        base_model.check(models.load(str(tmp_path / "other")), adapter)


@pytest.mark.parametrize("name", ["training.json", "adapter_config.json", "adapter_model.safetensors"])
@pytest.mark.parametrize("content", [b"", b"[]"])
def test_a_damaged_adapter_is_named(trained, tmp_path, name, content):
    root, lm, _ = trained
    shutil.copytree(root / "adapter", tmp_path / "a")
    (tmp_path / "a" / name).write_bytes(content)
    with pytest.raises(ModelError, match=r"a is damaged \(.*\); delete it and run the same command again"):
        base_model.check(lm, tmp_path / "a")


def test_four_bits_without_bitsandbytes_is_an_error_with_the_install_line(trained, monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BackendError, match="needs bitsandbytes, which is not installed; pip install bitsandbytes"):
        loading.four_bit(str(trained[0] / "model"), type(trained[1]), torch.float32)


def test_a_base_model_in_four_bits_is_trained_and_answers(trained, tmp_path):
    pytest.importorskip("bitsandbytes")
    from bitsandbytes.nn import Linear4bit
    from peft import PeftModel

    lm, log = train(trained[0] / "model", tmp_path / "a", quantize="4bit")
    packed = {n for n, m in lm.model.named_modules() if isinstance(m, Linear4bit)}
    assert packed and all(n.startswith(f"{lm.stack_name}.") for n in packed)
    assert log["loss"][0] == pytest.approx(trained[2]["loss"][0], rel=0.1) and log["loss"] != trained[2]["loss"]
    assert sum(log["loss"][-5:]) < sum(log["loss"][:5])
    whole = models.load(str(trained[0] / "model"), device="cpu")
    loaded = PeftModel.from_pretrained(whole.model, str(tmp_path / "a"))
    rows, features = killed_fit.examples(lm)
    texts, shown = features(rows)
    with torch.no_grad():
        assert loaded(**whole.inputs(texts, shown)).logits.isfinite().all()


def held(**buffers):
    module = torch.nn.Linear(2, 2)
    for name, tensor in buffers.items():
        module.register_buffer(name, tensor)
    return types.SimpleNamespace(model=module, path="hub/id")


NUMBERS = torch.tensor([[0.0, 2.0], [-1.0, 0.0]])
KINDS = {
    "complex": lambda x: torch.complex(x.double(), -x.double()),
    "conjugate": lambda x: torch.complex(x, x).conj(),
    "sparse": lambda x: x.to_sparse(),
    "csr": lambda x: x.to_sparse_csr(),
    "quantised": lambda x: torch.quantize_per_tensor(x, 0.5, 0, torch.qint8),
    "bool": lambda x: x > 0,
    "empty": lambda x: x[:0],
    "transposed": lambda x: x.t(),
    "of others": lambda x: TwoTensor(x, x + 1),
}


@pytest.mark.filterwarnings("ignore:.*(sparse|Sparse|quantize)")
@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_every_kind_have_a_key(kind):
    torch.manual_seed(0)
    lm = held(odd=KINDS[kind](NUMBERS))
    key = base_model.key_of(lm)
    assert key == base_model.key_of(lm)
    lm.model.odd = KINDS[kind](NUMBERS + torch.tensor([[0.0, 1.0], [0.0, 3.0]]))
    assert (base_model.key_of(lm) == key) == (kind == "empty")


def test_weights_that_are_not_there_have_no_key():
    with pytest.raises(ModelError, match=r"odd has no values .*meta device.*load the model's weights first"):
        base_model.key_of(held(odd=torch.empty(2, device="meta")))
