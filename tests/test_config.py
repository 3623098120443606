"""Settings: one clear line for every mistake, recipes, and TOML that is read back as it was written."""

import dataclasses
import tomllib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vstar_fast import config
from vstar_fast.config import CycleConfig, FinetuneConfig, from_dict, load, to_dict, to_toml
from vstar_fast.config.finetune import weighty
from vstar_fast.config.ranges import RANGES
from vstar_fast.errors import ConfigError


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"generat": {}}, "unknown setting 'generat'; did you mean 'generate'?"),
        ({"generate": {"sampels": 2}}, "unknown setting 'sampels' in [generate]; did you mean 'samples'?"),
        ({"match": {"zzz": 2}}, "unknown setting 'zzz' in [match]; known: profile, rel_tolerance, iou"),
        ({"generate": 3}, "[generate] must be a table, got 3"),
        ({"generate": {"samples": "4"}}, "generate.samples must be int, got '4'"),
        ({"generate": {"samples": True}}, "generate.samples must be int, got True"),
        ({"generate": {"samples": 1.5}}, "generate.samples must be int, got 1.5"),
        ({"generate": {"reason": 1}}, "generate.reason must be bool, got 1"),
        ({"generate": {"temperature": "hot"}}, "generate.temperature must be float, got 'hot'"),
        ({"data": {"extra": "x"}}, "data.extra must be a list, got 'x'"),
        ({"data": {"extra": [1]}}, "data.extra must be str, got 1"),
        ({"data": {"columns": ["a"]}}, "data.columns must be a table, got ['a']"),
        ({"data": {"questions": {"class": "x"}}}, "data.questions.class must be a list, got 'x'"),
        ({"recipe": "slow"}, "recipe = 'slow' is not one of fast, paper"),
        ({"data": {"reader": "xml"}}, "data.reader = 'xml' is not one of auto, manifest, folder"),
        ({"data": {"dev_fraction": 0.6, "test_fraction": 0.5}}, "must sum to less than 1, got (0.6, 0.5)"),
        ({"data": {"dev_fraction": -0.1}}, "data.dev_fraction must be in [0, 1), got -0.1"),
        ({"data": {"test_fraction": float("nan")}}, "data.test_fraction must be in [0, 1), got nan"),
        ({"data": {"max_duration_s": 0}}, "data.max_duration_s must be > 0, got 0"),
        ({"data": {"questions_per_video": -1}}, "data.questions_per_video must be >= 0, got -1"),
        ({"model": {"dtype": "fp8"}}, "model.dtype = 'fp8' is not one of auto, float32"),
        ({"model": {"device": "cud"}}, "model.device = 'cud' is no device; use auto, cpu, cuda or cuda:N"),
        ({"model": {"device": "cuda:x"}}, "model.device = 'cuda:x' is no device; use auto, cpu, cuda or cuda:N"),
        ({"seed": -1}, "seed must be >= 0, got -1"),
        ({"frames": {"count": 0}}, "frames.count must be at least 1, got 0"),
        ({"generate": {"samples": 0}}, "generate.samples must be at least 1, got 0"),
        ({"generate": {"temperature": -1}}, "generate.temperature must be >= 0, got -1"),
        ({"generate": {"temperature": float("nan")}}, "generate.temperature must be >= 0, got nan"),
        ({"generate": {"temperature": float("inf")}}, "generate.temperature must be >= 0, got inf"),
        ({"generate": {"top_p": 1.5}}, "generate.top_p must be in (0, 1], got 1.5"),
        ({"generate": {"top_k": -1}}, "generate.top_k must be >= 0, got -1"),
        ({"generate": {"top_p": 0}}, "generate.top_p must be in (0, 1], got 0"),
        ({"generate": {"max_new_tokens": 0}}, "generate.max_new_tokens must be at least 1, got 0"),
        ({"generate": {"batch_size": -1}}, "generate.batch_size must be >= 0, got -1"),
        ({"rationalize": {"samples": 0}}, "rationalize.samples must be at least 1, got 0"),
        ({"rationalize": {"max_share": -1}}, "rationalize.max_share must be >= 0, got -1"),
        ({"match": {"profile": "llm"}}, "match.profile = 'llm' is not one of strict, paper, paper-code"),
        ({"match": {"keep": "worst"}}, "match.keep = 'worst' is not one of first, best, all"),
        ({"match": {"rel_tolerance": 1}}, "match.rel_tolerance must be in [0, 1), got 1"),
        ({"match": {"iou": 0}}, "match.iou must be in (0, 1], got 0"),
        ({"match": {"min_correct": 2}}, "match.min_correct must be in [0, 1], got 2"),
        ({"finetune": {"schedule": "step"}}, "finetune.schedule = 'step' is not one of cosine, linear, constant"),
        ({"finetune": {"lora_r": 0}}, "finetune.lora_r must be at least 1, got 0"),
        ({"finetune": {"batch_size": 2}}, "finetune needs batch_size >= micro_batch_size >= 1, got (2, 16)"),
        ({"finetune": {"micro_batch_size": 0}}, "finetune.micro_batch_size must be at least 1, got 0"),
        ({"finetune": {"lora_alpha": 0}}, "finetune.lora_alpha must be at least 1, got 0"),
        ({"finetune": {"lora_dropout": 1.0}}, "finetune.lora_dropout must be in [0, 1), got 1.0"),
        ({"finetune": {"lr": 0.0}}, "finetune.lr must be > 0, got 0.0"),
        ({"finetune": {"projector_lr": -1e-5}}, "finetune.projector_lr must be > 0, got -1e-05"),
        ({"finetune": {"epochs": 0}}, "finetune.epochs must be > 0, got 0"),
        ({"finetune": {"epochs": float("inf")}}, "finetune.epochs must be > 0, got inf"),
        ({"finetune": {"steps": -1}}, "finetune.steps must be >= 0, got -1"),
        ({"finetune": {"weight_decay": -0.1}}, "finetune.weight_decay must be >= 0, got -0.1"),
        ({"finetune": {"warmup_ratio": 1.5}}, "finetune.warmup_ratio must be in [0, 1], got 1.5"),
        ({"finetune": {"max_grad_norm": 0.0}}, "finetune.max_grad_norm must be > 0, got 0.0"),
        ({"finetune": {"mix_ratio": -1.0}}, "finetune.mix_ratio must be >= 0, got -1.0"),
        ({"finetune": {"target_modules": ""}}, "finetune.target_modules = '' has an empty name; use auto or module"),
        ({"evaluate": {"max_new_tokens": 0}}, "evaluate.max_new_tokens must be at least 1, got 0"),
        ({"evaluate": {"batch_size": -1}}, "evaluate.batch_size must be >= 0, got -1"),
        ({"evaluate": {"bootstrap": 0}}, "evaluate.bootstrap must be at least 1, got 0"),
        ({"loop": {"restart": "never"}}, "loop.restart = 'never' is not one of init, continue"),
        ({"loop": {"max_cycles": 0}}, "loop.max_cycles must be at least 1, got 0"),
        ({"loop": {"patience": 0}}, "loop.patience must be at least 1, got 0"),
    ],
)
def test_mistakes_are_named(values, message):
    with pytest.raises(ConfigError) as error:
        from_dict(values)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_every_number_among_the_settings_has_a_range():
    for f in dataclasses.fields(CycleConfig):
        section = f.default_factory if isinstance(f.default_factory, type) else None
        names = {f.name} if section is None else {x.name for x in dataclasses.fields(section)}
        of = CycleConfig() if section is None else section()
        numbers = {
            n for n in names if isinstance(getattr(of, n), (int, float)) and not isinstance(getattr(of, n), bool)
        }
        assert numbers <= RANGES.get("" if section is None else f.name, {}).keys(), f.name


def test_values_are_taken_over_the_defaults():
    made = from_dict(
        {"seed": 3, "generate": {"temperature": 1}, "data": {"extra": ["a", "b"], "columns": {"video": "c"}}}
    )
    assert (made.seed, made.generate.temperature, made.generate.samples) == (3, 1.0, CycleConfig().generate.samples)
    assert isinstance(made.generate.temperature, float)
    assert (made.data.extra, made.data.columns) == (("a", "b"), {"video": "c"})


def test_paper_recipe_sets_the_papers_settings_and_a_key_still_wins():
    paper = from_dict({"recipe": "paper", "generate": {"samples": 2}})
    assert (paper.generate.samples, paper.generate.temperature, paper.generate.max_new_tokens) == (2, 0.2, 1024)
    assert (paper.finetune.lr, paper.finetune.epochs, paper.finetune.batch_size) == (2e-5, 1.0, 128)
    assert (paper.finetune.warmup_ratio, paper.finetune.mix_ratio) == (0.03, 1.0)
    assert (paper.match.profile, paper.loop.restart, paper.loop.rationalize_last) == ("paper", "init", False)
    assert paper.rationalize.max_share == float("inf")
    assert from_dict({"recipe": "fast"}) == CycleConfig()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no config file {path}; write one with `vstar-fast init`"),
        (b"seed = ", "{path} is not valid TOML: "),
        (b"\xff", "{path} is not valid TOML: "),
        (b"sead = 1", "unknown setting 'sead'; did you mean 'seed'?"),
    ],
)
def test_bad_files_are_named(tmp_path, content, message):
    path = tmp_path / "run.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as error:
        load(path)
    assert message.format(path=path) in str(error.value)


def test_a_folder_is_no_config_file(tmp_path):
    with pytest.raises(ConfigError, match="cannot read config file"):
        load(tmp_path)


def test_overrides_go_over_the_file(tmp_path):
    (tmp_path / "run.toml").write_text('recipe = "paper"\n[generate]\nsamples = 5\ntop_k = 7\n')
    made = load(tmp_path / "run.toml", {"generate": {"samples": 6}})
    assert (made.generate.samples, made.generate.top_k, made.generate.temperature) == (6, 7, 0.2)


@pytest.mark.parametrize("comments", [False, True])
@pytest.mark.parametrize("recipe", ["fast", "paper"])
def test_written_toml_is_read_back(tmp_path, comments, recipe):
    made = from_dict({"recipe": recipe, "data": {"questions": {"class": ["A {name}?", 'say "x"\n']}}})
    (tmp_path / "run.toml").write_text(to_toml(made, comments=comments), encoding="utf-8")
    assert load(tmp_path / "run.toml") == made == from_dict(to_dict(made))


@settings(max_examples=150, deadline=None)
@given(
    path=st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
    key=st.text(st.characters(exclude_categories=["Cs"]), max_size=6),
    share=st.floats(0, allow_nan=False),
    seed=st.integers(0, 2**63 - 1),
)
def test_any_value_is_read_back(path, key, share, seed):
    made = from_dict(
        {"seed": seed, "data": {"path": path, "columns": {key: path}}, "rationalize": {"max_share": share}}
    )
    assert from_dict(tomllib.loads(to_toml(made, comments=True))) == made


def test_every_setting_is_documented():
    sections = [f.default_factory for f in dataclasses.fields(CycleConfig) if isinstance(f.default_factory, type)]
    assert len(sections) == 10
    for section in sections:
        assert section.__doc__ and config.field_docs(section).keys() == {f.name for f in dataclasses.fields(section)}
    text = to_toml(CycleConfig(), comments=True)
    assert "# Candidates a question.\n#samples = 4" in text
    assert "# Intervals: least IoU that passes.\n#iou = 0.5" in text


def test_an_error_names_the_file_that_holds_it(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text("[frames]\nthreads = 2\n")
    with pytest.raises(ConfigError, match=r"unknown setting 'threads' in \[frames\].*\(in .*config.toml\)"):
        load(path)


def test_a_setting_that_is_off_does_not_make_adapters_from_before_it_others():
    fine = FinetuneConfig
    assert "half" not in weighty(fine()) and weighty(fine(half=True)) != weighty(fine())
