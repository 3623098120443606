"""Frames through `patchify` in place of a processor's own steps: the same inputs, or the processor's own."""

import logging

import pytest
import torch

import families
from vstar_fast import backends, models
from vstar_fast.models import frame_path
from vstar_fast.models.preprocessing import How, _call, _probed, probe_clip


@pytest.fixture(scope="module", params=sorted(families.FAMILIES))
def lm(request, tmp_path_factory):
    return models.load(str(families.write(request.param, tmp_path_factory.mktemp(request.param) / "model")))


def prompt_of(lm):
    return lm._place.before + lm.placeholder


def tried(lm):
    return lambda processor: _probed(processor, text=prompt_of(lm), device=torch.device("cpu"), how=How(True))


def test_inputs_of_every_family_are_the_processors_own(lm):
    backends.reset_report()
    made = frame_path.fused_or_own(lm.processor, tried(lm))
    assert made is not lm.processor and frame_path.fused_or_own(lm.processor, None) is made
    assert backends.report()["patchify"]["reference"] >= 1
    data, times = probe_clip()
    for frames in (data, data[:3], data[:, :70, :110]):
        own = _call(lm.processor, prompt_of(lm), frames, times[: len(frames)], How(True))
        ours = _call(made, prompt_of(lm), frames, times[: len(frames)], How(True))
        assert list(own) == list(ours)
        for name, value in own.items():
            torch.testing.assert_close(ours[name], value, atol=1e-5, rtol=1e-5)


def test_the_processor_itself_is_as_it_was(lm):
    before = dict(vars(lm.processor.video_processor))
    made = frame_path.fused(lm.processor)
    assert vars(lm.processor.video_processor) == before
    assert made.tokenizer is lm.processor.tokenizer and made.video_processor is not lm.processor.video_processor


def test_frames_on_the_host_stay_with_the_processor(lm):
    assert frame_path.processor_for(lm.processor, torch.device("cpu"), None) is lm.processor


def test_a_processor_that_cuts_otherwise_keeps_its_own_steps(lm, caplog, monkeypatch):
    def other(*args, **kwargs):
        return plain(*args, **kwargs).flip(-1)

    plain = frame_path.patchify
    monkeypatch.setattr(frame_path, "patchify", other)
    processor = frame_path.copy.copy(lm.processor)
    with caplog.at_level(logging.WARNING):
        assert frame_path.fused_or_own(processor, tried(lm)) is processor
    assert "`patchify` differs" in caplog.text


@pytest.mark.gpu
def test_frames_on_a_gpu_are_processed_as_by_the_processor_itself_there(lm):
    """On the host a resize keeps bytes between its two passes, on a GPU floats: single pixels differ by some levels."""
    data, times = probe_clip()
    backends.reset_report()
    ours, host = lm.processed(prompt_of(lm), data.cuda(), times), lm.processed(prompt_of(lm), data, times)
    assert backends.report()["patchify"]["triton"] >= 1
    own = _call(lm.processor, prompt_of(lm), data.cuda(), times, How(True))
    pixels = [name for name, value in own.items() if isinstance(value, torch.Tensor) and value.is_floating_point()]
    assert pixels
    for name in pixels:
        torch.testing.assert_close(ours[name], own[name].to(ours[name].device), atol=1e-4, rtol=1e-4)
        assert (ours[name].cpu() - host[name].cpu()).abs().mean() < 2e-2
