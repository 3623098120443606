"""Every family, tiny and random, over unmodified transformers classes: what its adapter gives is the model's own."""

from __future__ import annotations

import re

import pytest
import torch

import families
from vstar_fast import frames, models
from vstar_fast.errors import ModelError
from vstar_fast.models import cuts, tower
from vstar_fast.models.hf_cache import CACHE
from vstar_fast.records import Frames, Label, LabeledVideo
from vstar_fast.run.runtime import unload

TEXTS = ["which colour", "Which colour is it?", "is it red? Answer: a"]


@pytest.fixture(scope="module", params=sorted(families.FAMILIES))
def lm(request, tmp_path_factory):
    return models.load(str(families.write(request.param, tmp_path_factory.mktemp(request.param) / "model")))


def batch_of(*sizes, frames_each=4, step_s=0.5):
    """Random clips of these (height, width), first frame seen at half a step."""
    videos, read = [], []
    for i, (height, width) in enumerate(sizes):
        video = LabeledVideo(f"v{i}", f"v{i}.mp4", (Label("class", "colour", "red"),))
        seed = torch.Generator().manual_seed(i)
        data = torch.randint(0, 255, (frames_each, height, width, 3), dtype=torch.uint8, generator=seed)
        times = tuple(step_s * (0.5 + n) for n in range(frames_each))
        videos.append(video)
        read.append(Frames(video.id, data, times, height, width, step_s * frames_each, "test"))
    return frames.to_batch(read, videos)


def row(lm, text, features):
    """Ids of a prompt, and what the text stack gets for it."""
    head, tail = lm.split(text)
    ids = torch.cat([head, features.ids, tail])
    return ids, lm.embed(ids, features, masked=True)


def through_stack(lm, given):
    """Hidden states `[1, T, H]` of the text stack alone. Without a mask, positions that repeat may look like rows."""
    mask = torch.ones(1, given.inputs_embeds.shape[1]) if given.mask is None else given.mask
    call = {"inputs_embeds": given.inputs_embeds, "position_ids": given.stack_positions, "use_cache": False}
    return lm.text_model(**call, attention_mask=mask, **given.extras).last_hidden_state


@torch.no_grad()
def test_ids_are_the_processors_own_for_text_and_video(lm):
    batch = batch_of((56, 84), (70, 56), frames_each=6)
    for data, times, features in zip(batch.data, batch.times_s, lm.encode(batch), strict=True):
        for text in TEXTS:
            head, tail = lm.split(text)
            theirs = lm.processed(lm.prompt(text), data, times)["input_ids"][0]
            assert torch.cat([head, features.ids, tail]).tolist() == theirs.tolist()
            assert lm.inputs([text], [features])["input_ids"][0].tolist() == theirs.tolist()


@torch.no_grad()
def test_head_is_the_same_for_every_video_and_question(lm):
    heads = {tuple(lm.split(text)[0].tolist()) for text in TEXTS}
    assert len(heads) == 1 and len(next(iter(heads))) > 1


def test_a_prompt_without_a_video_is_the_processors_own(lm):
    content = [{"role": "user", "content": [{"type": "text", "text": TEXTS[1]}]}]
    call = {"tokenize": True, "add_generation_prompt": True, "return_dict": True, "return_tensors": "pt"}
    theirs = lm.processor.apply_chat_template(content, **call)["input_ids"][0].tolist()
    assert lm.text_ids(TEXTS[1]).tolist() == lm.text_ids(lm.placeholder + TEXTS[1]).tolist() == theirs


@torch.no_grad()
def test_stack_and_head_give_the_models_own_forward(lm):
    batch = batch_of((56, 84), (84, 56), (56, 56), frames_each=4)
    for text, pixels, features in zip(TEXTS, lm.pixels(batch), lm.encode(batch), strict=True):
        ids, given = row(lm, text, features)
        full = lm.model(**lm.inputs([text], [pixels]), output_hidden_states=True)
        hidden = through_stack(lm, given)
        torch.testing.assert_close(hidden, full.hidden_states[-1], atol=1e-5, rtol=1e-5)
        ours, theirs = lm.logits(hidden).log_softmax(-1), full.logits.log_softmax(-1)
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
        assert given.position_ids.shape == (lm.position_rows, len(ids))


@pytest.mark.parametrize("step_s", [0.5, 8.0])
@torch.no_grad()
def test_greedy_decoding_with_positions_of_ours_is_generate(lm, step_s):
    """Frames 8 s apart: the time positions of Qwen2.5-VL then reach past the text behind the video."""
    from transformers import DynamicCache

    batch = batch_of((56, 84), (84, 56), (56, 56), frames_each=8, step_s=step_s)
    for text, pixels, features in zip(TEXTS, lm.pixels(batch), lm.encode(batch), strict=True):
        inputs = lm.inputs([text], [pixels])
        start = inputs["input_ids"].shape[1]
        theirs = lm.model.generate(**inputs, max_new_tokens=8, min_new_tokens=8, do_sample=False)[0, start:].tolist()
        _, given = row(lm, text, features)
        cache = DynamicCache(config=lm.text_model.config)
        call = {"inputs_embeds": given.inputs_embeds, "position_ids": given.stack_positions, **given.extras}
        found = []
        for step in range(8):
            hidden = lm.text_model(**call, **{CACHE: cache}, use_cache=True).last_hidden_state
            logits = lm.logits(hidden[:, -1])
            logits[:, lm.eos_ids] = -torch.inf
            found.append(int(logits.argmax()))
            position = torch.full((1, 1), given.next_position + step)
            rows = position if lm.position_rows == 1 else position.expand(lm.position_rows, 1, 1)
            call = {"inputs_embeds": lm.embed_tokens(torch.tensor([found[-1:]])), "position_ids": rows}
        assert found == theirs


@torch.no_grad()
def test_text_without_a_video_is_the_models_own_forward(lm):
    ids = torch.cat(lm.split("which colour"))
    given = lm.embed(ids)
    assert given.next_position == len(ids)
    torch.testing.assert_close(given.inputs_embeds[0], lm.embed_tokens(ids))
    logits = lm.model(input_ids=ids[None]).logits
    torch.testing.assert_close(lm.logits(through_stack(lm, given)), logits, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_nothing_of_one_call_is_left_for_the_next(lm):
    """Qwen's bodies keep rope_deltas: rows of other lengths, text rows and `generate` in between change nothing."""
    features = lm.encode(batch_of((56, 84), (84, 56), (56, 56), frames_each=6))
    first = [row(lm, text, f)[1] for text, f in zip(TEXTS, features, strict=True)]
    for i in (2, 0, 1):
        lm.model.generate(**lm.inputs([TEXTS[1]], [features[i - 1]]), max_new_tokens=2)
        lm.embed(torch.cat(lm.split(TEXTS[0])))
        again = row(lm, TEXTS[i], features[i])[1]
        assert torch.equal(again.position_ids, first[i].position_ids)
        torch.testing.assert_close(again.inputs_embeds, first[i].inputs_embeds)
    assert getattr(lm.body, "rope_deltas", None) is None


@torch.no_grad()
def test_the_prefix_of_a_row_is_a_prefix_of_its_inputs(lm):
    """So that a prefix is read once and questions follow it: same embeddings and positions, text at next_position."""
    (features,) = lm.encode(batch_of((56, 84), frames_each=8, step_s=8.0))
    head, tail = lm.split(TEXTS[1])
    whole = lm.embed(torch.cat([head, features.ids, tail]), features)
    part = lm.embed(torch.cat([head, features.ids]), features)
    n = len(head) + len(features.ids)
    torch.testing.assert_close(part.inputs_embeds, whole.inputs_embeds[:, :n])
    assert torch.equal(part.position_ids, whole.position_ids[:, :n])
    follow = part.next_position + torch.arange(len(tail))
    assert torch.equal(whole.position_ids[:, n:], follow.expand(lm.position_rows, -1))
    assert whole.next_position == part.next_position + len(tail)


@torch.no_grad()
def test_the_tower_runs_once_a_video(lm, monkeypatch):
    batch = batch_of((56, 84), (56, 56))
    seen = lm.pixels(batch)
    kept = lm.encode(batch)
    assert lm.tower.why_pixels == ""
    for text, pixels, features in zip(TEXTS, seen, kept, strict=False):
        assert not any(name.startswith("pixel_") for name in features.kwargs)
        theirs, ours = row(lm, text, pixels)[1], row(lm, text, features)[1]
        torch.testing.assert_close(ours.inputs_embeds, theirs.inputs_embeds, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(ours.extras, theirs.extras, atol=1e-5, rtol=1e-5)
    frozen = [m for n, m in lm.body.named_modules() if "vision" in n or "visual.blocks" in n or "video_tower" in n]
    assert frozen
    for module in frozen:
        monkeypatch.setattr(module, "forward", lambda *_, **__: pytest.fail("the tower ran again"))
    lm.embed(torch.cat([lm.split("a")[0], kept[0].ids]), kept[0])
    with pytest.raises(pytest.fail.Exception):
        lm.embed(torch.cat([lm.split("a")[0], seen[0].ids]), seen[0])


@torch.no_grad()
def test_what_is_kept_outlives_the_process(lm):
    (features,) = lm.encode(batch_of((56, 84)))
    again = models.load(lm.path)
    theirs, ours = row(lm, TEXTS[0], features)[1], row(again, TEXTS[0], features)[1]
    torch.testing.assert_close(ours.inputs_embeds, theirs.inputs_embeds, rtol=0, atol=0)


@torch.no_grad()
def test_training_mode_changes_nothing_that_is_kept(lm):
    batch = batch_of((56, 84))
    before = lm.encode(batch)[0].kwargs
    lm.model.train()
    during = lm.encode(batch)[0].kwargs
    assert lm.model.training and lm.body.training
    lm.model.eval()
    torch.testing.assert_close(during, before, rtol=0, atol=0)


@torch.no_grad()
def test_several_videos_in_one_batch_of_the_models_own_forward(lm):
    batch = batch_of((56, 84), (56, 84))
    asked = TEXTS[:2]
    pixels, kept = (lm.model(**lm.inputs(asked, f)).logits for f in (lm.pixels(batch), lm.encode(batch)))
    torch.testing.assert_close(kept, pixels, atol=1e-5, rtol=1e-5)


def test_preprocessing_is_the_processors_for_the_frames_it_would_pick(lm):
    """The whole clip's own metadata (16 frames at 8 a second, every fourth taken) and ours give the same inputs."""
    from transformers.video_utils import VideoMetadata

    picked = [2, 6, 10, 14]
    batch = batch_of((60, 90), frames_each=4, step_s=0.5)
    capped = {"cap_pixels_per_frame": True} if hasattr(lm.processor.video_processor, "cap_pixels_per_frame") else {}
    assert batch.times_s[0] == tuple(i / 8 for i in picked)
    theirs = lm.processor(
        text=[lm.prompt(TEXTS[1])],
        videos=[[batch.data[0].permute(0, 3, 1, 2)]],
        video_metadata=[VideoMetadata(total_num_frames=16, fps=8.0, duration=2.0, frames_indices=picked)],
        do_sample_frames=False,
        return_tensors="pt",
        **capped,
    )
    ours = lm.inputs([TEXTS[1]], lm.pixels(batch))
    for name, value in theirs.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(ours[name], value, rtol=0, atol=0)


def test_training_targets_are_the_text_stacks_linear_layers(lm):
    pattern = re.compile(lm.language_linears())
    hit = [n for n, m in lm.model.named_modules() if isinstance(m, torch.nn.Linear) and pattern.fullmatch(n)]
    stack = lm.model.get_submodule(lm.stack_name)
    assert len(hit) == len([m for m in stack.modules() if isinstance(m, torch.nn.Linear)]) == 2 * 7
    assert all(name.startswith(lm.stack_name) for name in hit)
    some = re.compile(lm.language_linears(("q_proj",)))
    assert len([n for n, _ in lm.model.named_modules() if some.fullmatch(n)]) == 2


def test_gradients_reach_every_projector_from_what_is_kept(lm):
    (features,) = lm.encode(batch_of((56, 84)))
    modules = [lm.model.get_submodule(name) for name in lm.projector_names()]
    assert modules
    _, given = row(lm, TEXTS[0], features)
    through_stack(lm, given).square().sum().backward()
    for module in modules:
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())
    lm.model.zero_grad(set_to_none=True)


def settings_of(lm):
    from peft import LoraConfig

    return LoraConfig(
        r=2, init_lora_weights=False, target_modules=lm.language_linears(), modules_to_save=lm.projector_names()
    )


@torch.no_grad()
def test_adapters_load_switch_and_unload_on_the_same_weights(lm, tmp_path):
    from peft import PeftModel, get_peft_model

    (features,) = lm.encode(batch_of((56, 84)))
    address = {p.data_ptr(): p.clone() for p in lm.model.parameters()}
    plain = through_stack(lm, row(lm, TEXTS[0], features)[1])
    answers = {}
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        peft = get_peft_model(lm.model, settings_of(lm))
        for module in lm.projector_names():
            for weight in lm.model.get_submodule(module).modules_to_save["default"].parameters():
                weight.add_(torch.randn_like(weight))
        answers[name] = through_stack(lm, row(lm, TEXTS[0], features)[1])
        peft.save_pretrained(str(tmp_path / name))
        unload(peft)
        torch.testing.assert_close(through_stack(lm, row(lm, TEXTS[0], features)[1]), plain)
    assert not torch.allclose(answers["a"], answers["b"])
    peft = PeftModel.from_pretrained(lm.model, str(tmp_path / "a"), adapter_name="a")
    peft.load_adapter(str(tmp_path / "b"), adapter_name="b")
    for name in "abab":
        peft.set_adapter(name)
        torch.testing.assert_close(through_stack(lm, row(lm, TEXTS[0], features)[1]), answers[name])
    unload(peft)
    assert {p.data_ptr() for p in lm.model.parameters()} == set(address)
    for weight in lm.model.parameters():
        torch.testing.assert_close(weight, address[weight.data_ptr()], rtol=0, atol=0)


def load(name, tmp_path, **settings):
    return models.load(str(families.write(name, tmp_path / "model")), **settings)


@pytest.mark.parametrize("name", sorted(families.FAMILIES))
@torch.no_grad()
def test_bf16_keeps_what_pixels_give(name, tmp_path):
    lm = load(name, tmp_path, dtype="bfloat16")
    batch = batch_of((56, 84))
    (pixels,), (features,) = lm.pixels(batch), lm.encode(batch)
    theirs, ours = row(lm, TEXTS[0], pixels)[1], row(lm, TEXTS[0], features)[1]
    assert lm.tower.why_pixels == "" and ours.inputs_embeds.dtype == torch.bfloat16
    torch.testing.assert_close(ours.inputs_embeds, theirs.inputs_embeds, atol=2e-2, rtol=2e-2)
    assert torch.equal(ours.position_ids, theirs.position_ids)


@pytest.mark.parametrize("name", ["llava_onevision", "qwen2_5_vl", "qwen3_vl"])
@torch.no_grad()
def test_pixels_are_kept_where_no_cut_fits_and_it_is_said(name, tmp_path, caplog, monkeypatch):
    why = "its features are not the projector's output"
    cut = load(name, tmp_path)
    batch = batch_of((56, 84), (84, 56))
    ours = cut.encode(batch)
    monkeypatch.setattr(tower, "CUTS", (cuts.BeforeProjector,))
    uncut = models.load(cut.path)
    for text, a, b in zip(TEXTS, uncut.encode(batch), ours, strict=False):
        torch.testing.assert_close(row(uncut, text, a)[1].inputs_embeds, row(cut, text, b)[1].inputs_embeds)
    assert "pixel_values_videos" in a.kwargs and uncut.tower.why_pixels == why
    assert why in caplog.text


@pytest.mark.parametrize("name", sorted(set(families.FAMILIES) - {"vstar_demo"}))
@torch.no_grad()
def test_every_family_may_be_cut_behind_its_tower(name, tmp_path, monkeypatch):
    """The cut for unknown families: found from calls alone, for one video, and for two where the model takes two."""
    monkeypatch.setattr(tower, "CUTS", (cuts.BehindTower,))
    lm = load(name, tmp_path)
    batch = batch_of((56, 84), (56, 84))
    for pixels, features in zip(lm.pixels(batch), lm.encode(batch), strict=True):
        theirs, ours = row(lm, TEXTS[0], pixels)[1], row(lm, TEXTS[0], features)[1]
        torch.testing.assert_close(ours.inputs_embeds, theirs.inputs_embeds, atol=1e-5, rtol=1e-5)
    assert lm.tower.why_pixels == "" and "tower_features" in features.kwargs
    joined = [lm.model(**lm.inputs(TEXTS[:2], f)).logits for f in (lm.pixels(batch), lm.encode(batch))]
    torch.testing.assert_close(joined[1], joined[0], atol=1e-5, rtol=1e-5)


def test_a_video_whose_features_do_not_fit_is_kept_as_pixels(tmp_path, caplog, monkeypatch):
    """One window of Qwen2.5-VL's tower keeps the order of the patches, so that a small clip looks as if all did."""
    monkeypatch.setattr(tower, "CUTS", (cuts.BeforeProjector,))
    lm = load("qwen2_5_vl", tmp_path)
    small, large = lm.pixels(batch_of((56, 56), (56, 84)))
    lm.tower.prepare(small.kwargs)
    assert "tower_features" in lm.tower.encode(small.kwargs) and not caplog.text
    assert lm.tower.encode(large.kwargs) is large.kwargs
    assert "the tower runs again for every use of a video" in caplog.text


@pytest.mark.parametrize("times", [(0.5, 1.5, 2.5, 3.5), (0.0, 0.21, 7.9, 61.0)])
def test_times_are_printed_as_the_frames_are_seen(times, tmp_path):
    data = torch.zeros(4, 56, 56, 3, dtype=torch.uint8)
    lms = {n: load(n, tmp_path / n) for n in ("qwen3_vl", "smolvlm")}
    said = {n: lm.tokenizer.decode(lm.processed(lm.prompt("a"), data, times)["input_ids"][0]) for n, lm in lms.items()}
    pairs = [(times[0] + times[1]) / 2, (times[2] + times[3]) / 2]
    assert [float(t) for t in re.findall(r"<([\d.]+) seconds>", said["qwen3_vl"])] == [round(t, 1) for t in pairs]
    stamps = [f"{int(t // 60):02d}:{int(t % 60):02d}" for t in times]
    assert re.findall(r"Frame from (\d\d:\d\d):", said["smolvlm"]) == stamps
    assert "series of four frames" in said["smolvlm"]


@pytest.mark.parametrize(
    ("name", "count", "tokens"), [("qwen2_vl", 64, 16), ("qwen2_5_vl", 64, 16), ("qwen3_vl", 4, 4)]
)
def test_pixels_are_capped_in_every_version(name, count, tokens, tmp_path, caplog):
    lm = load(name, tmp_path)
    lm.processor.video_processor.max_video_tokens = tokens
    capped = lm.pixels(batch_of((84, 84), frames_each=count))[0].kwargs["video_grid_thw"][0]
    assert "cap" not in caplog.text
    lm.processor.video_processor.cap_pixels_per_frame = False
    free = lm.pixels(batch_of((84, 84), frames_each=count))[0].kwargs["video_grid_thw"][0]
    assert capped[0] == free[0] == count // 2 and capped[1:].prod() < free[1:].prod()


def test_time_positions_follow_the_seconds_between_frames(tmp_path):
    """Qwen2.5-VL: two frames a grid, two positions a second."""
    lm = load("qwen2_5_vl", tmp_path)
    (features,) = lm.encode(batch_of((56, 56), frames_each=8, step_s=2.0))
    head, _ = lm.split("a")
    (time, height, width) = lm.embed(torch.cat([head, features.ids]), features).position_ids[:, len(head) + 1 : -1]
    assert time.unique().tolist() == [len(head) + 1 + 8 * n for n in range(4)]
    assert height.unique().numel() > 1 and width.unique().numel() > 1


@torch.no_grad()
def test_deep_stack_features_go_along(tmp_path):
    lm = load("qwen3_vl", tmp_path)
    (features,) = lm.encode(batch_of((56, 84)))
    ids, given = row(lm, TEXTS[0], features)
    marks = int((ids == lm.model.config.video_token_id).sum())
    assert int(given.extras["visual_pos_masks"].sum()) == marks
    assert [tuple(t.shape) for t in given.extras["deepstack_visual_embeds"]] == [(marks, 32)] * 2
    without = lm.text_model(inputs_embeds=given.inputs_embeds, position_ids=given.stack_positions).last_hidden_state
    assert not torch.allclose(without, through_stack(lm, given))


@torch.no_grad()
def test_what_stands_behind_a_head_is_kept(tmp_path, monkeypatch):
    lm = load("video_llava", tmp_path)
    own = type(lm.model).forward

    def capped(self, *args, **kwargs):
        out = own(self, *args, **kwargs)
        out.logits = 2 * torch.tanh(out.logits / 2)
        return out

    monkeypatch.setattr(type(lm.model), "forward", capped)
    hidden = torch.randn(2, 3, 32)
    torch.testing.assert_close(lm.logits(hidden), 2 * torch.tanh(lm.model.lm_head(hidden) / 2))


@pytest.mark.parametrize("strip", [False, True])
def test_tokens_that_eat_spaces_and_spaces_put_first_change_no_cut(tmp_path, monkeypatch, strip):
    """As in older Llama tokenizers: a normalizer writes a space before every piece of text."""
    from tokenizers import AddedToken, normalizers

    plain = families.sentence_bpe

    def legacy(*special):
        made = plain()
        made.backend_tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
        )
        eager = [AddedToken(token, lstrip=strip, rstrip=strip, special=True) for token in special]
        made.add_special_tokens({"additional_special_tokens": eager})
        return made

    monkeypatch.setattr(families, "sentence_bpe", legacy)
    lm = load("video_llava", tmp_path)
    batch = batch_of((56, 84))
    for text in (*TEXTS, " a", "\n\na", "Is it? "):
        head, tail = lm.split(text)
        theirs = lm.processed(lm.prompt(text), batch.data[0], batch.times_s[0])["input_ids"][0]
        assert torch.cat([head, lm.pixels(batch)[0].ids, tail]).tolist() == theirs.tolist()


def test_a_row_without_its_video_is_named(tmp_path):
    lm = load("video_llava", tmp_path)
    (features,) = lm.encode(batch_of((56, 56)))
    with pytest.raises(ModelError, match=r"does not hold the 68 ids of its video; see VideoLM.split"):
        lm.embed(torch.cat(lm.split("a")), features)
