"""Which attention a model's parts run: what is chosen, why not another, and that values and gradients are torch's."""

from types import SimpleNamespace

import pytest
import torch

import families
from vstar_fast import backends, models, probes
from vstar_fast.errors import BackendError
from vstar_fast.models import attention

HOST = torch.device("cpu")


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    return models.load(str(families.write("qwen2_5_vl", tmp_path_factory.mktemp("qwen") / "model")))


def stand_in(change=lambda out: out, tuple_=False):
    """A flash-attention package that is torch's, but for `change`."""

    def flash_attn_func(query, key, value, causal):
        assert causal
        out = change(attention.sdpa(query, key, value))
        return (out, None) if tuple_ else out

    return lambda: flash_attn_func


@pytest.fixture
def installed(monkeypatch):
    """`installed(name=function)`: these flash-attentions are there, and all models are on a GPU."""

    def install(**given):
        named = {name.replace("_", "-"): function for name, function in given.items()}
        own = backends.available
        probe = backends.Probe(False, "the Python module is not installed")
        monkeypatch.setattr(
            backends,
            "available",
            lambda name: (backends.Probe(True, name) if name in named else probe) if "attn" in name else own(name),
        )
        monkeypatch.setitem(backends.ORDER["attention"], "cpu", backends.ORDER["attention"]["cuda"])
        for name, function in named.items():
            monkeypatch.setitem(attention.FUNCTIONS, name, function)
        attention.differs.cache_clear()

    yield install
    attention.differs.cache_clear()


class Switches:
    """A model of two parts that transformers lets switch, or not."""

    def __init__(self, refuse=(), dtype=torch.bfloat16):
        self.device, self.dtype, self.refuse = HOST, dtype, refuse
        part = {"num_attention_heads": 2, "_attn_implementation": "sdpa"}
        self.config = SimpleNamespace(
            sub_configs={"vision_config": None, "text_config": None},
            vision_config=SimpleNamespace(hidden_size=128, **part),
            text_config=SimpleNamespace(hidden_size=64, **part),
            _attn_implementation="sdpa",
        )

    def set_attn_implementation(self, wanted):
        for part, name in wanted.items():
            if part in self.refuse and name != "sdpa":
                raise ValueError(f"{part} does not support it\nplease ask")
            (getattr(self.config, part) if part else self.config)._attn_implementation = name


def test_without_a_gpu_all_parts_run_torchs(lm):
    found = attention.use(lm.model)
    assert {part: choice.name for part, choice in found.items()} == {"text_config": "sdpa", "vision_config": "sdpa"}
    row = next(row for row in backends.doctor() if row.name == "attention")
    assert row.backend == "sdpa"
    with pytest.raises(BackendError, match="flash-attn-4"):
        attention.use(lm.model, "flash-attn-4")


def test_the_best_that_works_is_taken_and_the_others_are_explained(installed):
    installed(flash_attn_4=stand_in(lambda out: out * 1.1), flash_attn_2=stand_in(tuple_=True))
    model = Switches()
    found = attention.use(model)
    assert {choice.name for choice in found.values()} == {"flash-attn-2"}
    assert "not flash-attn-4: its values are not torch's at head width 64" in found["vision_config"].reason
    assert "not flash-attn-3: the Python module is not installed" in found["vision_config"].reason
    assert model.config.vision_config._attn_implementation == "flash_attention_2"
    assert model.config.text_config._attn_implementation == "flash_attention_2"


def test_a_part_that_cannot_be_switched_keeps_its_own(installed):
    installed(flash_attn_3=stand_in())
    found = attention.use(Switches(refuse=("text_config",)))
    assert found["vision_config"].name == "flash-attn-3" and found["text_config"].name == "sdpa"
    assert "not flash-attn-3: text_config does not support it" in found["text_config"].reason
    with pytest.raises(BackendError, match="cannot run 'flash-attn-3' in text_config"):
        attention.use(Switches(refuse=("text_config",)), "flash-attn-3")


def broken(*_args, **_kwargs):
    raise RuntimeError("no kernel image is available")


def test_packages_that_fail_here_and_models_in_fp32_are_left_alone(installed):
    installed(flash_attn_4=lambda: broken)
    found = attention.use(Switches())
    assert found["text_config"].name == "sdpa"
    assert "fails at head width 32 (RuntimeError: no kernel image" in found["text_config"].reason
    installed(flash_attn_4=stand_in())
    assert "the model is float32" in attention.use(Switches(dtype=torch.float32))["text_config"].reason


class Wrong(torch.autograd.Function):
    """Right values, wrong gradients."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * 1.2


def test_wrong_gradients_are_found(installed):
    installed(flash_attn_4=stand_in(Wrong.apply))
    assert attention.differs("flash-attn-4", 64, torch.float32, HOST) == (
        "its query gradients are not torch's at head width 64"
    )
    installed(flash_attn_4=stand_in())
    assert attention.differs("flash-attn-4", 64, torch.float32, HOST) == ""


def test_what_the_tower_ran_is_reported(lm):
    backends.reset_report()
    data = torch.randint(0, 255, (4, 56, 56, 3), dtype=torch.uint8)
    lm.encode(SimpleNamespace(data=[data], times_s=[(0.0, 1.0, 2.0, 3.0)]))
    assert backends.report()["attention"]["sdpa"] >= 1


def test_cards_too_old_for_a_flash_attention_are_told(monkeypatch):
    monkeypatch.setattr(probes, "_module", lambda *_: lambda: backends.Probe(True, "flash-attn-4 4.0"))
    monkeypatch.setattr(probes, "_torch_cuda", lambda: backends.Probe(True, "a GPU"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    probe = probes._flash("flash_attn.cute", "flash-attn-4", "", 9)()
    assert not probe.ok and "needs compute capability 9.0, this card has 8.0" in probe.why
    assert "gpu-ampere" in probe.remedy
    assert probes._flash("flash_attn", "flash-attn", "", 8)().ok


@pytest.mark.gpu
@pytest.mark.parametrize("name", attention.FUNCTIONS)
@pytest.mark.parametrize("width", [64, 80, 128])
def test_flash_attention_on_a_gpu(name, width):
    probe = backends.available(name)
    if not probe.ok:
        pytest.skip(probe.why)
    assert attention.differs(name, width, torch.bfloat16, torch.device("cuda", 0)) == ""
