"""Every family, tiny and random, over unmodified transformers classes: what its adapter gives is the model's own."""

from __future__ import annotations

import pytest
import torch

import families
from vstar_fast import frames, models
from vstar_fast.models.hf_cache import CACHE
from vstar_fast.records import Frames, Label, LabeledVideo

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
    return ids, lm.embed(ids, features)


def through_stack(lm, given):
    """Hidden states `[1, T, H]` of the text stack alone."""
    call = {"inputs_embeds": given.inputs_embeds, "position_ids": given.stack_positions, "use_cache": False}
    return lm.text_model(**call, **given.extras).last_hidden_state


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


@torch.no_grad()
def test_greedy_decoding_with_positions_of_ours_is_generate(lm):
    from transformers import DynamicCache

    batch = batch_of((56, 84), (84, 56), (56, 56), frames_each=8)
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
            position = torch.full((1, 1), given.decode_position + step)
            rows = position if lm.position_rows == 1 else position.expand(lm.position_rows, 1, 1)
            call = {"inputs_embeds": lm.embed_tokens(torch.tensor([found[-1:]])), "position_ids": rows}
        assert found == theirs
