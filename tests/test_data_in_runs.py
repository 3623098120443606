"""What data does to a run: labels that a clip is too short for, copies over the splits, many classes."""

import pytest

import tiny
from vstar_fast import config as settings
from vstar_fast import models
from vstar_fast.models.video_lm import Features
from vstar_fast.profiling import Profiler
from vstar_fast.records import Label, LabeledVideo, Rejected
from vstar_fast.run.features import FeatureStore


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    return models.load(str(tiny.write_model(tmp_path_factory.mktemp("model"))))


def interval(start, end):
    return (Label("class", "colour", "red"), Label("interval", "when", (start, end), event="jump"))


def test_a_label_that_begins_when_the_clip_is_over_is_refused_also_where_features_are_kept(lm, tmp_path):
    for name in ("a.mp4", "copy.mp4"):
        tiny.write_clip(tmp_path / name, tiny.COLOURS["red"])  # 8 pictures, 8 a second
    a, copy = (str(tmp_path / name) for name in ("a.mp4", "copy.mp4"))
    config = settings.from_dict({"frames": {"count": 2}})
    videos = [
        LabeledVideo("inside", a, interval(0.5, 30.0)),
        LabeledVideo("in pictures", copy, interval(4, 8)),
        LabeledVideo("window", a, interval(0.5, 0.6), start_s=0.5),
        LabeledVideo("said to be long", a, interval(2, 3), end_s=9.0),
        LabeledVideo("no interval", a, (Label("class", "colour", "red"),), end_s=0.9),
    ]
    for _ in ("fresh", "kept by the run before"):
        store = FeatureStore(lm, config, tmp_path / "run", Profiler("off"))
        found = store.get(videos)
        store.close()
        assert [isinstance(found[v.id], Features) for v in videos] == [True, False, False, False, True]
        refused = [x for x in found.values() if isinstance(x, Rejected)]
        assert {x.reason for x in refused} == {"label_outside"}
        assert (
            "a label begins at 4 s, the clip lasts 1.00 s; mend the label: times are seconds, not" in refused[0].detail
        )
