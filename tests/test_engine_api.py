"""The engine for other projects: a model as it is, its attention by name, adapters."""

import pytest
import torch

import tiny
from test_engine import drawn, prompts, request, text_model, theirs
from vstar_fast import models, ops
from vstar_fast.engine import Engine, Scheduler, Settings, SharedPrefixCache, TextLM
from vstar_fast.errors import ConfigError, DataError
from vstar_fast.frames import FrameRequest, FramesConfig, FrameSource
from vstar_fast.models.hf_cache import CACHE


@pytest.fixture(scope="module")
def spoken(tmp_path_factory):
    return models.load(str(tiny.write_model(tmp_path_factory.mktemp("tiny") / "model")))


def test_engine_takes_a_model_and_its_processor_as_they_are(spoken):
    engine = Engine(spoken.model, spoken.processor)
    video = torch.randint(0, 255, (4, 40, 40, 3), dtype=torch.uint8)
    template = ops.sequence(
        [ops.text(until="Answer:"), ops.optional(" "), ops.choice(list(tiny.COLOURS))], separator=""
    )
    found = engine.generate([video, video, None], ["which colour", "", "see a"], n=2, template=template)
    assert [len(answers) for answers in found] == [2, 2, 2]
    assert all(a.finish == "stop" and engine.text(a).split()[-1] in tiny.COLOURS for x in found for a in x)
    (again,) = engine.generate([video], ["which colour"], n=2, template=template)
    assert [a.token_ids for a in again] == [a.token_ids for a in found[0]]
    text = Engine(text_model(), None)
    ids = prompts(7)[0]
    assert drawn(text.scheduler, [request(ids)])[0][0] == theirs(text.lm.model, ids, 64)


def test_engine_takes_what_a_frame_source_gives(spoken, tmp_path):
    clip = str(tiny.write_clip(tmp_path / "a.mp4", tiny.COLOURS["red"]))
    engine, source = Engine(spoken.model, spoken.processor), FrameSource(FramesConfig(isolate=False))
    (frames, gone) = source.read([FrameRequest(clip), FrameRequest("gone.mp4")])
    source.close()
    asked = [frames, frames.data, frames.data.numpy(), engine.encode([frames])[0]]
    found = engine.generate(asked, ["which colour"] * 4)
    assert len({tuple(answers[0].token_ids) for answers in found}) == 1
    wrong = {"gone.mp4 gave no frames: missing_file": gone, "not a str; read files with": clip}
    wrong |= {r"got float32 \[8, ": frames.data.float(), r"got uint8 \[0, 32": frames.data[:0]}
    for message, video in wrong.items():
        with pytest.raises(DataError, match=message):
            engine.generate([video], ["which colour"])


def test_nothing_to_say_is_an_error(spoken):
    engine = Engine(spoken.model, spoken.processor)
    for n in (0, 2.0):
        with pytest.raises(ConfigError, match=f"n is {n}; give a whole number, a question gets at least 1 answer"):
            engine.generate([None], ["which"], n=n)
    for question in (None, [{"role": "user", "content": "which"}]):
        with pytest.raises(ConfigError, match=r"a question is .*; give its text, or a Talk"):
            engine.generate([None], [question])
    with pytest.raises(ConfigError, match="max_new_tokens is 0"):
        Settings(max_new_tokens=0)


def test_the_attention_by_name_in_a_plain_model_and_its_generate():
    model = text_model()
    ids = torch.stack(prompts(11, 11))
    ids[0, :4] = 0
    mask = (ids != 0).long()
    want = model.generate(ids, attention_mask=mask, max_new_tokens=12, do_sample=False)
    from vstar_fast.engine.cache import register

    register()
    model.set_attn_implementation("vstar_prefix")
    assert torch.equal(model.generate(ids, attention_mask=mask, max_new_tokens=12, do_sample=False), want)
    ids = torch.stack(prompts(11, 11))
    want = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
    cache = SharedPrefixCache()
    with torch.no_grad():
        model(input_ids=ids[:, :-1], **{CACHE: cache})
    cache.fork(3)
    rows = ids.repeat_interleave(3, 0)
    found = model.generate(
        rows, attention_mask=torch.ones_like(rows), max_new_tokens=12, do_sample=False, **{CACHE: cache}
    )
    assert torch.equal(found, want.repeat_interleave(3, 0))
    assert cache.layers[0].prefix[0].shape[0] == 2


def test_an_adapter_is_merged_for_the_while_and_the_model_is_as_before():
    from peft import LoraConfig, get_peft_model

    from vstar_fast.engine.merged import merged

    model = text_model()
    get_peft_model(
        model, LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
    ).eval()
    ids = prompts(30)[0]
    want = theirs(model, ids, 30)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modules = [name for name, _ in model.named_modules()]
    with merged(model, model.device) as done:
        assert done and not any("lora_A" in name for name, _ in model.named_modules())
        assert drawn(Scheduler(TextLM(model)), [request(ids, max_new_tokens=30)])[0][0] == want
    assert [name for name, _ in model.named_modules()] == modules
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
