"""Adapters at work in the stages, and what is said of a model folder that cannot be used."""

import json

import pytest
import torch

import families
import tiny
from vstar_fast import frames, generate, models
from vstar_fast.errors import ModelError
from vstar_fast.generate import Sampling
from vstar_fast.models.loading import pick_device
from vstar_fast.records import Frames, Label, LabeledVideo, Question


@pytest.fixture(scope="module", params=["llava_onevision", "qwen2_5_vl"])
def lm(request, tmp_path_factory):
    return models.load(str(families.write(request.param, tmp_path_factory.mktemp(request.param) / "model")))


def clips(count, frames_each=4, step_s=0.5):
    videos, read = [], []
    for i in range(count):
        video = LabeledVideo(f"v{i}", f"v{i}.mp4", (Label("class", "colour", "red"),))
        data = torch.randint(
            0, 255, (frames_each, 56, 56, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(i)
        )
        videos.append(video)
        times = tuple(n * step_s for n in range(frames_each))
        read.append(Frames(video.id, data, times, 56, 56, frames_each * step_s, "test"))
    return frames.to_batch(read, videos)


@pytest.mark.parametrize("step_s", [0.5, 8.0])
def test_greedy_answers_are_those_of_hf_generate(lm, step_s):
    """Frames 8 s apart: Qwen2.5-VL's time positions reach past the text, which `generate` goes on from all the same."""
    batch = clips(3, 8, step_s)
    features, pixels = lm.encode(batch), lm.pixels(batch)
    texts = ["which colour", "I see a red . which colour", "a"]
    asked = [Question(v.id, v.id, t, v.labels, "t") for v, t in zip(batch.videos, texts, strict=True)]
    found = generate.generate(lm, asked, features, Sampling(1, 0.0, 1.0, 0, 12), lambda q: q.text, lambda q, n: 1)
    forked = generate.generate(lm, asked, features, Sampling(3, 0.0, 1.0, 0, 12), lambda q: q.text, lambda q, n: 1)
    for i, (text, pixel) in enumerate(zip(texts, pixels, strict=True)):
        inputs = lm.inputs([text], [pixel])
        out = lm.model.generate(**inputs, max_new_tokens=12, do_sample=False)
        theirs = out[0, inputs["input_ids"].shape[1] :].tolist()
        n = int(found.lengths[i])
        assert found.token_ids[i, :n].tolist() == theirs[:n]
        for k in range(3):
            assert forked.token_ids[3 * i + k, :n].tolist() == theirs[:n]


def test_training_targets_are_the_text_stack(lm):
    import re

    pattern = re.compile(lm.language_linears())
    hit = [n for n, m in lm.model.named_modules() if isinstance(m, torch.nn.Linear) and pattern.fullmatch(n)]
    assert len(hit) == 2 * 7 and all("visual" not in n and "vision" not in n for n in hit)
    assert lm.projector_names()


def test_a_question_with_the_models_own_placeholder_is_asked_without_it(lm):
    (features,) = lm.encode(clips(1))
    plain = lm.inputs(["which colour ."], [features])["input_ids"].tolist()
    for mark in {lm.placeholder, lm.processor.video_token, lm.processor.image_token}:
        for text in (f"{mark}\nwhich colour .", f"which colour {mark} .", f"which{mark} colour {mark}.{mark}"):
            assert lm.inputs([text], [features])["input_ids"].tolist() == plain
            lm.model(**lm.inputs([text], [features], [f"red {mark}"]))
    assert "<other> \n" in lm.prompt("<other> \nwhich colour")


def test_a_template_without_the_video_is_named(lm, monkeypatch):
    monkeypatch.setattr(lm.processor, "chat_template", families.CHATML.replace("VIDEO", ""))
    with pytest.raises(ModelError, match="gave 0 video placeholders"):
        lm.prompt("which colour")


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("cud", "model.device = 'cud' is no device; use auto, cpu, cuda or cuda:N"),
        ("cuda", "model.device = 'cuda', but torch sees 0 CUDA devices; use auto, cpu, or install"),
        ("cuda:3", "model.device = 'cuda:3', but torch sees 0 CUDA devices; use auto, cpu, or install"),
    ],
)
def test_a_device_that_is_not_there_is_named(tmp_path, monkeypatch, device, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ModelError) as error:
        models.load(str(tiny.write_model(tmp_path / "m")), device=device)
    assert message in str(error.value)
    assert pick_device("auto") == pick_device("cpu") == torch.device("cpu")


def test_a_cuda_device_that_is_there_is_taken(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [str(pick_device(x)) for x in ("auto", "cuda", "cuda:1")] == ["cuda", "cuda", "cuda:1"]
    with pytest.raises(ModelError, match="'cuda:2', but torch sees 2 CUDA devices; use auto, cpu, or cuda:0 to cuda:1"):
        pick_device("cuda:2")


@pytest.mark.parametrize(("missing", "message"), [("config.json", "no config.json"), ("processor", "processor")])
def test_incomplete_folders_are_named(tmp_path, missing, message):
    folder = tiny.write_model(tmp_path / "model")
    for path in folder.iterdir():
        if path.name == missing or (
            missing == "processor" and path.suffix in (".json", ".jinja") and path.stem != "config"
        ):
            path.unlink()
    with pytest.raises(ModelError, match=message):
        models.load(str(folder))


@pytest.mark.parametrize("content", ["{", "[]", ""])
def test_a_config_that_is_damaged_is_named(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ModelError, match=r"config.json is damaged \(.*\); copy or download"):
        models.load(str(tmp_path))


def test_a_hub_that_cannot_be_reached_is_told(monkeypatch):
    from transformers import PretrainedConfig

    def offline(_):
        raise OSError("We couldn't connect to the hub.")

    monkeypatch.setattr(PretrainedConfig, "get_config_dict", offline)
    with pytest.raises(ModelError, match="cannot read the config of owner/name from the hub: We couldn't connect"):
        models.load("owner/name")


def test_unknown_family_and_missing_folder_are_named(tmp_path):
    with pytest.raises(ModelError, match="unknown model family 'qwen9'; known: vstar_demo, cohere_compass, "):
        models.load(str(tiny.write_model(tmp_path / "m")), family="qwen9")
    with pytest.raises(ModelError, match="no model given"):
        models.load("")
    with pytest.raises(ModelError, match="not a model folder"):
        models.load(str(tmp_path / "nothing"))


def test_a_text_model_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ModelError):
        models.load(str(tmp_path))


def refused(folder, **settings):
    with pytest.raises(ModelError) as error:
        models.load(str(folder), **settings)
    return str(error.value)


def test_a_folder_without_chat_template_is_named(tmp_path):
    folder = families.write("video_llava", tmp_path / "m")
    (folder / "chat_template.jinja").unlink()
    assert "VideoLlavaProcessor has no usable chat template" in refused(folder)


def test_a_chat_template_that_refuses_a_prompt_is_named(tmp_path):
    folder = families.write("video_llava", tmp_path / "model")
    (folder / "chat_template.jinja").write_text("{{ raise_exception('content must be a text') }}")
    assert "VideoLlavaProcessor has no usable chat template: content must be a text" in refused(folder)


def test_a_chat_template_that_drops_videos_is_named(tmp_path):
    folder = families.write("video_llava", tmp_path / "m")
    (folder / "chat_template.jinja").write_text("USER: {{ messages[0]['content'][1]['text'] }} ASSISTANT:")
    assert "the chat template does not print '<video>' for a video" in refused(folder)


def test_a_processor_for_images_only_is_named(tmp_path):
    from transformers import CLIPImageProcessor, LlavaProcessor

    folder = families.write("video_llava", tmp_path / "m")
    tokens = models.load(str(folder)).tokenizer
    for path in folder.glob("*processor*"):
        path.unlink()
    LlavaProcessor(CLIPImageProcessor(), tokens, patch_size=7, chat_template=families.VICUNA).save_pretrained(folder)
    assert "LlavaProcessor" in refused(folder) and "this model takes no videos" in refused(folder)


def test_a_tokenizer_alone_is_named(tmp_path):
    folder = families.write("video_llava", tmp_path / "m")
    for path in folder.glob("*processor*"):
        path.unlink()
    assert "no usable processor" in refused(folder) or "no video processor" in refused(folder)


def test_a_model_without_video_features_is_named(tmp_path, monkeypatch):
    from transformers import VideoLlavaModel

    folder = families.write("video_llava", tmp_path / "m")
    monkeypatch.delattr(VideoLlavaModel, "get_video_features")
    monkeypatch.delattr(VideoLlavaModel, "get_image_features")
    assert "VideoLlavaModel has neither get_video_features nor get_image_features" in refused(folder)


def test_an_unknown_model_type_is_named(tmp_path):
    folder = families.write("video_llava", tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "video_llava_9", "architectures": None}))
    assert "video_llava_9" in refused(folder)


def test_weights_and_processor_of_two_models_are_named(tmp_path):
    folder = families.write("llava_onevision", tmp_path / "m")
    settings = folder / "processor_config.json"
    config = json.loads(settings.read_text())
    settings.write_text(json.dumps({**config, "num_image_tokens": 36}))
    lm = models.load(str(folder))
    (features,) = lm.encode(clips(1))
    with pytest.raises(ModelError, match="cannot take a row made by its processor"):
        lm.embed(torch.cat([lm.split("a")[0], features.ids]), features)


@pytest.mark.parametrize("dtype", ["int8", "float33", "load"])
def test_a_dtype_that_is_none_is_named(tmp_path, dtype):
    message = refused(tiny.write_model(tmp_path / "m"), dtype=dtype)
    assert f"model.dtype = {dtype!r} is no kind of float; use auto, float32, mixed, bfloat16 or float16" in message


def test_a_model_is_described_without_its_weights(tmp_path):
    folder = families.write("qwen3_vl", tmp_path / "m")
    for weights in folder.glob("*.safetensors"):
        weights.unlink()
    found = models.without_weights(str(folder)).facts()
    assert found["model class"] == "Qwen3VLForConditionalGeneration" and found["adapter"] == "VideoLM, generic"
    assert found["text stack"] == "model.language_model, 3 row(s) of positions"
    assert "visual.deepstack_merger_list.1" in found["may be trained"]


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")], ids=str)
def test_memory_that_runs_out_is_not_taken_for_a_misfit(lm, monkeypatch, error):
    from vstar_fast.models import prompts

    def ran_out(*_args, **_kwargs):
        raise error

    monkeypatch.delitem(vars(lm), "joined_along", raising=False)  # what an earlier test found out
    monkeypatch.setattr(prompts, "joined_along", ran_out)
    with pytest.raises(type(error)):
        lm.joined_along  # noqa: B018
    monkeypatch.setattr(prompts, "preprocess", ran_out)
    with pytest.raises(type(error)):
        lm.pixels(clips(1))
