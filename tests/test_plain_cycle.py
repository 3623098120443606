"""Models that cannot be packed: trained row by row, and a whole cycle; the same cycle where both ways run."""

import dataclasses
import json

import pytest
import torch

import odd_stacks
import tiny
from test_cycle import go, lines, make
from test_families import batch_of
from vstar_fast import backends, doctor, models
from vstar_fast import config as settings
from vstar_fast.config import FinetuneConfig
from vstar_fast.config.finetune import weighty
from vstar_fast.engine import ways
from vstar_fast.errors import ConfigError, ModelError, NotPacked
from vstar_fast.finetune import packing
from vstar_fast.finetune.adapter import lora_settings
from vstar_fast.finetune.items import Reader
from vstar_fast.finetune.loss import row_nll
from vstar_fast.finetune.packing import decided
from vstar_fast.finetune.step import accumulate
from vstar_fast.models.hf_cache import CACHE
from vstar_fast.models.lora_targets import targets_of
from vstar_fast.records import Example
from vstar_fast.run.runtime import unload

CONFIG = FinetuneConfig(batch_size=4, micro_batch_size=4, lora_r=2, lora_alpha=4)
KINDS = ["qwen3_5_text", "gemma2", "deepseek_v3", "minimax"]


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tmp_path_factory):
    return odd_stacks.write(request.param, tmp_path_factory.mktemp(request.param) / "model")


@pytest.fixture
def trained(folder):
    from peft import get_peft_model

    lm = models.load(str(folder))
    features = lm.encode(batch_of((56, 84), (70, 56)))
    answers = ["red", "it is green", "a red ball", "why not"]
    asked = [Example(f"v{n % 2}", f"q{n}", "which colour", said, "direct") for n, said in enumerate(answers)]
    asked = [dataclasses.replace(e, rejected="blue") for e in asked]

    def rows(part):
        return ["which colour"] * len(part), [features[int(e.video_id[1:])] for e in part]

    peft = get_peft_model(lm.model, lora_settings(lm, CONFIG))
    yield lm, peft, Reader(lm, rows)(asked), features
    unload(peft)


@torch.no_grad()
def test_row_by_row_is_the_models_own_loss(trained):
    lm, peft, items, features = trained
    peft.eval()
    for item, loss in zip(items, row_nll(lm, items), strict=True):
        inputs = lm.inputs([item.text], [item.features], [item.said])
        labels = inputs.pop("labels")[0, 1:]
        logits = lm.model(**inputs, use_cache=False).logits[0, :-1].float()
        theirs = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
        assert loss.item() == pytest.approx(theirs.item(), rel=1e-5)


@pytest.mark.parametrize("objective", ["sft", "dpo", "kto"])
def test_every_objective_trains_row_by_row(trained, objective):
    lm, peft, items, _ = trained
    config = dataclasses.replace(CONFIG, objective=objective, pack=False)
    items = [i.alone for i in items] + [i.against for i in items] if objective == "kto" else items
    loss, counts = accumulate(lm, peft.train(), items, config)
    grads = [p.grad for p in peft.parameters() if p.grad is not None]
    assert loss > 0 and counts["packed_tokens"] == counts["row_tokens"]
    assert len(grads) > 10 and all(g.isfinite().all() for g in grads) and any(g.any() for g in grads)


def test_all_of_a_stack_that_keeps_states_on_its_modules_is_trained(tmp_path):
    """RecurrentGemma's blocks reset a module inside them by an attribute, which must not be that of PEFT's wrapper."""
    from peft import get_peft_model

    if CACHE != "cache":
        pytest.skip("LLaVA-OneVision wants a cache of RecurrentGemma before transformers 5.24")
    lm = models.load(str(odd_stacks.write("recurrent_gemma", tmp_path / "model")))
    peft = get_peft_model(lm.model, lora_settings(lm, dataclasses.replace(CONFIG, tune="full")))
    asked = [Example("v", f"q{n}", "which colour", said, "direct") for n, said in enumerate(["red", "it is green"])]
    (features,) = lm.encode(batch_of((56, 84)))
    items = Reader(lm, lambda part: (["which colour"] * len(part), [features] * len(part)))(asked)
    config = dataclasses.replace(CONFIG, pack=False)
    first, second = (accumulate(lm, peft.train(), items, config)[0] for _ in range(2))
    assert first == second and all(p.grad is not None for p in peft.parameters() if p.requires_grad)


def test_packing_decides_itself_and_says_why_once(trained, caplog):
    lm, peft, items, _ = trained
    notes = []
    backends.reset_report()
    found = decided(lm, peft, items, CONFIG, notes.append)
    why = packing.obstacle(lm, peft, items)
    assert found.pack is not bool(why) and packing.refusal(lm) in ("", why)
    assert decided(lm, peft, items, CONFIG, notes.append) == found
    assert notes == [f"training goes row by row, slower: {why}"] * bool(why)
    assert not [r for r in caplog.records if r.name == packing.__name__]
    assert list(backends.report()["training"]) == ["row by row" if why else "packed"]
    if why:
        with pytest.raises(ModelError, match=r"set finetune\.pack = false"):
            accumulate(lm, peft, items, dataclasses.replace(CONFIG, pack=True))


def test_packing_that_gives_another_loss_is_not_taken(trained, monkeypatch):
    lm, peft, items, _ = trained
    monkeypatch.setattr(packing, "packed_rows", lambda _: torch.no_grad())
    monkeypatch.setattr(packing, "packed_nll", lambda lm, tried: row_nll(lm, tried) + 1)
    assert "the loss of a packed token is" in packing.obstacle(lm, peft, items)

    def refused(*_):
        raise NotPacked("Layer has softcap: not with packed rows; set finetune.pack = false")

    monkeypatch.setattr(packing, "packed_nll", refused)
    assert packing.obstacle(lm, peft, items) == "Layer has softcap"


def test_settings_of_before_mean_what_they_meant():
    assert [FinetuneConfig(pack=given).pack for given in (True, False, "auto")] == [True, False, "auto"]
    toml = {given: settings.from_dict({"finetune": {"pack": given}}) for given in (True, False, "auto")}
    assert [c.finetune.pack for c in toml.values()] == [True, False, "auto"]
    assert "pack = false" in settings.to_toml(toml[False]) and 'pack = "auto"' in settings.to_toml(toml["auto"])
    assert weighty(FinetuneConfig()) == weighty(FinetuneConfig(pack=True)) != weighty(FinetuneConfig(pack=False))
    with pytest.raises(ConfigError, match="pack = 'never' is not one of auto, true, false"):
        FinetuneConfig(pack="never")
    with pytest.raises(ConfigError, match="generate.engine = 'fast' is not one of auto, packed, plain"):
        settings.from_dict({"generate": {"engine": "fast"}})


def test_lora_goes_on_layers_that_are_called():
    class Mixer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.in_proj, self.out_proj = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)

        def forward(self, x):
            return torch.nn.functional.linear(self.in_proj(x), self.out_proj.weight)

    class Gate(torch.nn.Module):
        pass

    stack = torch.nn.Module()
    stack.layers = torch.nn.ModuleList([torch.nn.Module() for _ in range(2)])
    stack.layers[0].mixer, stack.layers[0].gate = Mixer(), Gate()
    stack.layers[1].attention, stack.layers[1].mlp = torch.nn.Module(), torch.nn.Module()
    stack.layers[1].attention.out_proj = torch.nn.Linear(2, 2)
    stack.layers[1].mlp.gate = torch.nn.Linear(2, 2)
    assert targets_of(stack) == [r"attention\.out_proj", "in_proj", r"mlp\.gate"]


# -- whole cycles --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    root = tmp_path_factory.mktemp("tiny")
    return tiny.settings(tiny.write_data(root / "data"), tiny.write_model(root / "model"))


def judged(folder):
    return {str(p.relative_to(folder)): lines(p) for p in sorted(folder.rglob("judged.jsonl"))}


def without_logprobs(parts):
    for row in (row for rows in parts.values() for row in rows):
        row["candidate"].pop("logprob")
    return parts


def test_a_cycle_forced_to_the_plain_way_keeps_what_the_packed_one_keeps(project, tmp_path):
    scored = {"evaluate": {"score_labels": True}, "loop": {"max_cycles": 1}}
    packed = go(make(project, **scored), tmp_path / "packed")
    plain = go(make(project, generate={"engine": "plain"}, **scored), tmp_path / "plain")
    assert "plain" not in packed["backends"]["generation"] and set(plain["backends"]["generation"]) == {"plain"}
    assert plain["reasons"]["label_scores"] == "plain: asked for by name"
    found = [without_logprobs(judged(tmp_path / name)) for name in ("packed", "plain")]
    assert found[0] == found[1] and len(found[0]) > 3
    assert packed["cycles"][0]["kept"] == plain["cycles"][0]["kept"]
    assert packed["cycles"][0]["accuracy"] == plain["cycles"][0]["accuracy"]
    assert packed["base"]["accuracy"] == plain["base"]["accuracy"] and packed["gain"] == plain["gain"]


def test_a_cycle_of_a_model_that_cannot_be_packed(project, tmp_path, capfd):
    """Lightning attention, whose cache cannot be repeated either: answers, rationalizations, label scores, training."""
    model = odd_stacks.write("minimax", tmp_path / "model")
    config = make(
        project,
        model={"base": str(model)},
        generate={"propose": 2, "samples": 3},
        evaluate={"score_labels": True},
        loop={"max_cycles": 1},
    )
    summary = go(config, tmp_path / "run")
    assert summary["state"] == "done" and summary["cycles"][0]["kept"]["direct"] > 0
    why = "MiniMaxModel has layers of linear_attention"
    for stage in ("generation", "label_scores"):
        assert summary["reasons"][stage].startswith(f"plain: {why}")
    assert summary["reasons"]["training"].startswith(f"row by row: {why}")
    assert set(summary["backends"]["training"]) == {"row by row"}
    again = go(config, tmp_path / "run")
    assert again["cycles"] == summary["cycles"] and again["reasons"] == summary["reasons"]
    with pytest.raises(ModelError, match="use generate.engine = auto or plain"):
        go(make(project, model={"base": str(model)}, generate={"engine": "packed"}), tmp_path / "refused")
    strict = make(project, model={"base": str(model)}, finetune={"pack": True}, loop={"max_cycles": 1})
    with pytest.raises(ModelError, match=r"set finetune\.pack = false"):
        go(strict, tmp_path / "strict")


def test_doctor_says_which_way_a_model_goes(folder):
    found = doctor.examine(str(folder))["model"]
    lm = models.load(str(folder))
    way, why = ways.choose(lm)
    assert found["generation"] == ("packed" if way == "packed" else f"plain, slower: {why}")
    rows = packing.refusal(lm)
    assert found["training"] == (f"row by row, slower: {rows}" if rows else "packed")
    assert json.dumps(found)
