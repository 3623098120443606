"""The generic adapter over unmodified transformers families, tiny and random: no family code of ours is involved."""

import json

import pytest
import torch

import tiny
from vstar_fast import frames, generate, models, torchvision_compat
from vstar_fast.errors import ModelError
from vstar_fast.generate import Sampling
from vstar_fast.models.video_lm import VideoLM, pick_device
from vstar_fast.records import Frames, Label, LabeledVideo, Question

torchvision_compat.ensure()

SPECIAL = [
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<image>",
    "<video>",
]
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "initializer_range": 0.3,
}
TEMPLATE = (
    "{% for m in messages %}<|im_start|> {% for p in m['content'] %}{% if p['type'] == 'video' %}VIDEO {% else %}"
    "{{ p['text'] }} {% endif %}{% endfor %}<|im_end|> {% endfor %}<|im_start|>"
)


def words(video="<|video_pad|>", image="<|image_pad|>"):
    made = tiny.tokenizer()
    made.add_special_tokens({"additional_special_tokens": ["<|im_start|>", *SPECIAL]})
    made.video_token, made.image_token = video, image
    return made


def qwen2_5_vl(folder):
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
    )

    tokens = words()
    ids = {t: tokens.convert_tokens_to_ids(t) for t in SPECIAL}
    config = Qwen2_5_VLConfig(
        text_config={
            **TEXT,
            "vocab_size": len(tokens),
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
            "eos_token_id": tokens.eos_token_id,
            "pad_token_id": tokens.pad_token_id,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": 32,
            "fullatt_block_indexes": [1],
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    model = Qwen2_5_VLForConditionalGeneration(config)
    pixels = {"min_pixels": 28 * 28, "max_pixels": 56 * 56}
    video = Qwen2VLVideoProcessor(size={"shortest_edge": 28 * 28, "longest_edge": 56 * 56 * 8})
    template = TEMPLATE.replace("VIDEO", "<|vision_start|><|video_pad|><|vision_end|>")
    processor = Qwen2_5_VLProcessor(Qwen2VLImageProcessor(**pixels), tokens, video, chat_template=template)
    return _save(folder, model, processor, tokens)


def llava_onevision(folder):
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionForConditionalGeneration,
        LlavaOnevisionImageProcessor,
        LlavaOnevisionProcessor,
        LlavaOnevisionVideoProcessor,
    )

    tokens = words("<video>", "<image>")
    size = {"height": 28, "width": 28}
    config = LlavaOnevisionConfig(
        text_config={**TEXT, "model_type": "qwen2", "vocab_size": len(tokens), "eos_token_id": tokens.eos_token_id},
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 7,
            "vision_use_head": False,
        },
        image_token_index=tokens.convert_tokens_to_ids("<image>"),
        video_token_index=tokens.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=[[28, 28]],
    )
    model = LlavaOnevisionForConditionalGeneration(config)
    processor = LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=[[28, 28]]),
        tokens,
        LlavaOnevisionVideoProcessor(size=size),
        chat_template=TEMPLATE.replace("VIDEO", "<video>"),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
    )
    return _save(folder, model, processor, tokens)


def _save(folder, model, processor, tokens):
    model.generation_config.eos_token_id = tokens.eos_token_id
    model.generation_config.pad_token_id = tokens.pad_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


FAMILIES = {"qwen2_5_vl": qwen2_5_vl, "llava_onevision": llava_onevision}


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def lm(request, tmp_path_factory):
    torch.manual_seed(0)
    return models.load(str(FAMILIES[request.param](tmp_path_factory.mktemp(request.param) / "model")))


def clips(count):
    videos, read = [], []
    for i in range(count):
        video = LabeledVideo(f"v{i}", f"v{i}.mp4", (Label("class", "colour", "red"),))
        data = torch.randint(0, 255, (4, 56, 56, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(i))
        videos.append(video)
        read.append(Frames(video.id, data, (0.0, 0.5, 1.0, 1.5), 56, 56, 2.0, "test"))
    return frames.to_batch(read, videos)


def test_a_family_without_code_of_ours_is_generic(lm):
    assert type(lm) is VideoLM


def test_spliced_prompts_are_the_processors_own(lm):
    from transformers.video_utils import VideoMetadata

    batch = clips(1)
    (features,) = lm.encode(batch)
    ours = lm.inputs(["which colour"], [features])
    theirs = lm.processor(
        text=[lm.prompt("which colour")],
        videos=[batch.data[0].permute(0, 3, 1, 2)],
        return_tensors="pt",
        do_sample_frames=False,
        video_metadata=[VideoMetadata(total_num_frames=4, fps=2.0, duration=2.0, frames_indices=[0, 1, 2, 3])],
    )
    assert ours["input_ids"].tolist() == theirs["input_ids"].tolist()
    for name, value in theirs.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(ours[name].to(value.dtype), value)


def test_greedy_answers_are_those_of_hf_generate(lm):
    batch = clips(3)
    features = lm.encode(batch)
    texts = ["which colour", "I see a red . which colour", "a"]
    asked = [Question(v.id, v.id, t, v.labels, "t") for v, t in zip(batch.videos, texts, strict=True)]
    found = generate.generate(lm, asked, features, Sampling(1, 0.0, 1.0, 0, 12), lambda q: q.text, lambda q, n: 1)
    forked = generate.generate(lm, asked, features, Sampling(3, 0.0, 1.0, 0, 12), lambda q: q.text, lambda q, n: 1)
    for i, (text, feature) in enumerate(zip(texts, features, strict=True)):
        inputs = lm.inputs([text], [feature])
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
    monkeypatch.setattr(lm.processor, "chat_template", TEMPLATE.replace("VIDEO", ""))
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


def test_unknown_family_and_missing_folder_are_named(tmp_path):
    with pytest.raises(ModelError, match="unknown model family 'qwen9'; known: vstar_demo, generic"):
        models.load(str(tiny.write_model(tmp_path / "m")), family="qwen9")
    with pytest.raises(ModelError, match="no model given"):
        models.load("")
    with pytest.raises(ModelError, match="not a model folder"):
        models.load(str(tmp_path / "nothing"))


def test_a_text_model_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ModelError):
        models.load(str(tmp_path))
