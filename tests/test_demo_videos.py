"""The demo sets: real files that say what their labels say, the same bytes for the same seed."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from vstar_fast.demo import clips, encode, facts, fetch, labels, motions, render, skeleton, videos
from vstar_fast.errors import DataError
from vstar_fast.paths import cache_dir

Row = dict[str, Any]
COUNTS = {"train": 8, "dev": 4, "test": 8}


def read(manifest: Path) -> tuple[Row, list[Row]]:
    header, *rows = (json.loads(line) for line in manifest.read_text().splitlines())
    return header, rows


def decode(path: Path) -> tuple[av.VideoFrame, np.ndarray, str, float]:
    """First frame, all pixels [T, H, W, 3] as stored, codec and average rate."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        pixels = np.stack([frame.to_ndarray(format="rgb24") for frame in frames])
        return frames[0], pixels, stream.codec.canonical_name, float(stream.average_rate)


def sampled(name: str, fps: int = 30) -> skeleton.Poses:
    motion = motions.load(name)
    return motion.sample(np.arange(0, motion.seconds * 0.98, 1 / fps, dtype=np.float32))


@pytest.fixture(scope="module")
def actions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return videos.build_set("actions", COUNTS, tmp_path_factory.mktemp("demo"), seed=3, workers=1)


@pytest.fixture(scope="module")
def routines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return videos.build_set("routines", {"train": 4, "test": 3}, tmp_path_factory.mktemp("demo"), seed=3, workers=1)


def planned(seed: int = 0) -> Iterator[tuple[clips.Clip, Row]]:
    """Routine clips of the full plan with their rows, without rendering."""
    for clip in clips.plan("routines", {"train": 40}, seed):
        yield clip, labels.row(clip, *clips.track(clip))


def test_same_seed_same_bytes_in_any_number_of_processes(tmp_path: Path) -> None:
    counts = {"train": 6, "test": 2}
    one = videos.build_set("actions", counts, tmp_path / "a", seed=5, workers=1)
    two = videos.build_set("actions", counts, tmp_path / "b", seed=5, workers=2)
    other = videos.build_set("actions", counts, tmp_path / "c", seed=6, workers=1)
    assert one.read_bytes() == two.read_bytes() != other.read_bytes()
    for row in read(one)[1]:
        assert (one.parent / row["path"]).read_bytes() == (two.parent / row["path"]).read_bytes()


@pytest.mark.parametrize("codec", sorted(encode.CODECS))
@pytest.mark.parametrize("size", [(112, 112), (136, 128), (127, 113)])
def test_encoding_the_same_frames_gives_the_same_bytes(codec: str, size: tuple[int, int], tmp_path: Path) -> None:
    if codec == "av1" and size == (127, 113):
        pytest.skip("AV1 clips have even sizes only; the refusal is tested below")
    clip = clips.plan("warm", {"train": 1}, 0)[0]
    body = skeleton.forward(clips.track(clip)[0])
    look = render.random_look(np.random.default_rng(0))
    frames = list(render.render(body, videos.camera(clip, body), look, size))[:24]
    made = set()
    for _ in range(5):
        path = tmp_path / "clip"
        encode.encode(frames, path, fps=24, size=size, codec=codec, rotation_deg=0)
        made.add(path.read_bytes())
    assert len(made) == 1


def test_odd_size_is_refused_where_the_codec_cannot_store_it() -> None:
    with pytest.raises(DataError, match="av1 needs an even width and height, got 127x113"):
        encode.pixel_format("av1", (127, 113))


def test_a_finished_set_is_not_touched_and_a_deleted_clip_comes_back(actions: Path) -> None:
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in actions.parent.rglob("*.*")}
    lost = actions.parent / read(actions)[1][2]["path"]
    lost.unlink()
    told: list[tuple[int, int]] = []
    root = actions.parent.parent
    again = videos.build_set(
        "actions", COUNTS, root, seed=3, workers=1, progress=lambda done, total: told.append((done, total))
    )
    assert again == actions
    assert told == [(done, 20) for done in range(1, 21)]
    assert lost.read_bytes() == before.pop(lost)[1]
    before.pop(actions)
    assert {path: path.stat().st_mtime_ns for path in before} == {path: was[0] for path, was in before.items()}
    videos.build_set("actions", COUNTS, root, seed=3, workers=1, progress=lambda *step: told.append(step))
    assert told[20:] == [(20, 20)]


def test_an_interrupted_encoding_leaves_no_file(tmp_path: Path) -> None:
    def broken() -> Iterator[np.ndarray]:
        yield np.zeros((64, 64, 3), np.uint8)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode.encode(broken(), tmp_path / "a.mp4", fps=24, size=(64, 64), codec="h264", rotation_deg=0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["actions", "routines"])
def test_files_are_what_the_manifest_says(kind: str, request: pytest.FixtureRequest) -> None:
    manifest = request.getfixturevalue(kind)
    header, rows = read(manifest)
    assert header == {"vstar_manifest": 1, "name": kind, "label_sets": {"actions": labels.label_set()}}
    for row in rows:
        meta = row["meta"]
        first, pixels, codec, rate = decode(manifest.parent / row["path"])
        assert (codec, rate, len(pixels)) == (meta["codec"], meta["fps"], meta["frames"])
        assert row["duration_s"] == pytest.approx(meta["frames"] / meta["fps"], abs=1e-3)
        assert first.rotation % 360 == meta["rotation_deg"]
        shown = (meta["height"], meta["width"])
        assert pixels.shape[1:3] == (shown[::-1] if meta["rotation_deg"] else shown)
        assert np.abs(np.diff(pixels.astype(int), axis=0)).max() > 30


def test_full_plan_covers_codecs_rates_odd_sizes_and_rotation() -> None:
    plan = clips.plan("actions", videos.COUNTS["actions"], 0)
    assert {clip.codec for clip in plan} == set(encode.CODECS)
    assert {clip.fps for clip in plan} == {24, 25, 30}
    assert {clip.rotation_deg for clip in plan} == {0, 90, 270}
    assert any(clip.size[0] % 2 and clip.codec == "h264" for clip in plan)
    assert all(1.5 <= clip.seconds <= 2.5 for clip in plan)
    per_class = {split: count // 15 for split, count in videos.COUNTS["actions"].items()}
    for split, count in per_class.items():
        shown = [clip.segments[0].motion for clip in plan if clip.split == split]
        assert {shown.count(motion) for motion in motions.LABELS} == {count}
    assert [c.segments[0].motion for c in plan[:15]] != list(motions.LABELS), "file numbers must not tell the class"


def test_splits_share_no_seed_no_camera_sector_and_no_phase() -> None:
    plan = clips.plan("actions", videos.COUNTS["actions"], 0) + clips.plan("warm", {"train": 60}, 0)
    seeds = [clip.seed for clip in plan] + [clip.seed for clip in clips.plan("routines", videos.COUNTS["routines"], 0)]
    assert len(seeds) == len(set(seeds))
    for clip in plan:
        sector, inside = divmod(clip.azimuth_deg, clips.SECTOR_DEG)
        assert clips.BANDS[int(sector) % 4] == clip.band
        assert clips.GAP_DEG / 2 - 0.01 <= inside <= clips.SECTOR_DEG - clips.GAP_DEG / 2 + 0.01
        segment = clip.segments[0]
        if segment.motion not in motions.ONE_WAY:
            assert clips.BANDS[int(4 * segment.start_s / motions.load(segment.motion).seconds)] == clip.band
    assert {clip.band for clip in plan if clip.kind == "actions"} == {"train", "dev", "test"}


@pytest.mark.parametrize("rotation", [90, 180, 270])
@pytest.mark.parametrize("codec", ["h264", "vp9"])
def test_a_player_that_honours_the_tag_sees_the_clip_upright(codec: str, rotation: int, tmp_path: Path) -> None:
    upright = np.zeros((96, 128, 3), np.uint8)
    upright[:24], upright[24:, :32] = (250, 30, 30), (30, 30, 250)
    path = tmp_path / f"turned{encode.suffix(codec)}"
    encode.encode([upright] * 5, path, fps=25, size=(128, 96), codec=codec, rotation_deg=rotation)
    first, pixels, *_ = decode(path)
    assert first.rotation % 360 == rotation
    shown = np.rot90(pixels[0], first.rotation // 90).astype(int)
    assert shown.shape == upright.shape
    assert np.abs(shown - upright).mean() < 12
    assert np.abs(np.rot90(shown, 2) - upright).mean() > 30


def test_bones_keep_their_length_and_walkers_move() -> None:
    for name in motions.LABELS:
        body = skeleton.forward(sampled(name))
        for a, b, metres in (("right_hip", "right_knee", 0.4215), ("left_elbow", "left_wrist", 0.2589)):
            assert np.linalg.norm(body.at(a) - body.at(b), axis=1) == pytest.approx(metres, abs=1e-3)
    walk = skeleton.forward(sampled("walk")).at("root")
    assert walk[-1, 0] - walk[0, 0] > 1.0
    assert abs(walk[-1, 2] - walk[0, 2]) < 0.2


@pytest.mark.parametrize("name", [name for name in motions.LABELS if name not in motions.ONE_WAY])
def test_cyclic_motions_go_on_without_a_jump(name: str) -> None:
    motion = motions.load(name)
    times = np.arange(0, 3.2 * motion.seconds, 1 / 60, dtype=np.float32)
    points = skeleton.forward(motion.sample(times)).points
    steps = np.abs(np.diff(points, axis=0)).max((1, 2))
    inside = times[1:] < motion.seconds - motions.BLEND_S
    assert steps.max() <= 1.3 * steps[inside].max()


def test_facts_follow_from_the_motion() -> None:
    seen = {name: set(facts.facts(sampled(name), 30)) for name in motions.LABELS}
    assert {n for n, f in seen.items() if "upside_down" in f} == {"backflip", "cartwheel", "roll", "getup_faceup"}
    assert {"jump", "backflip", "spinkick", "run"} <= {n for n, f in seen.items() if "airborne" in f}
    assert not {"walk", "punch", "crawl", "cartwheel"} & {n for n, f in seen.items() if "airborne" in f}
    assert {"moves_forward", "upright"} <= seen["walk"]
    assert "moves_fast" in seen["run"] and "moves_backward" in seen["backflip"] and "in_place" in seen["dance_b"]
    assert "stays_low" in seen["crawl"] and "arm_thrust" in seen["punch"] and "leg_high" in seen["kick"]
    assert "rises_face_down" in seen["getup_facedown"] and "rises_face_up" in seen["getup_faceup"]
    assert "spins" in seen["spin"]


def test_turning_left_is_a_positive_turn_to_the_performers_left() -> None:
    stand = sampled("walk")[:1]
    yaws = np.linspace(0, np.radians(150), 30)
    turned = skeleton.join([skeleton.move(stand, float(yaw), np.zeros(3, np.float32)) for yaw in yaws])
    assert "turns_left" in facts.facts(turned, 30)
    heading = skeleton.forward(turned).root_turn[14, :, 0]
    left = skeleton.forward(stand).at("left_hip") - skeleton.forward(stand).at("right_hip")
    assert float(heading @ left[0]) > 0


def test_captions_are_short_sentences() -> None:
    for name in motions.LABELS:
        text = facts.caption(facts.facts(sampled(name), 30))
        assert len(text.split()) <= facts.MAX_WORDS and text[0].isupper() and text.endswith(".")
        assert text.count(".") == 1
    assert facts.caption(("upside_down", "airborne", "moves_backward")) == (
        "The person goes upside down, both feet leave the floor, moving backward."
    )


def test_routine_labels_fit_the_clip() -> None:
    counts = set()
    for clip, row in planned():
        assert 2 <= len(clip.segments) <= 4 and 2.9 <= row["duration_s"] <= 7.1
        kinds = {kind: [x for x in row["labels"] if x["kind"] == kind] for kind in ("sequence", "interval", "number")}
        names = kinds["sequence"][0]["value"]
        assert [x["event"] for x in kinds["interval"]] == names and set(names) <= set(labels.label_set())
        bounds = [bound for x in kinds["interval"] for bound in x["value"]]
        assert bounds == sorted(bounds) and bounds[0] == 0 and bounds[-1] <= row["duration_s"] + 0.01
        assert all(end - start > 0.7 for start, end in zip(bounds[::2], bounds[1::2], strict=True))
        counts |= {x["value"] for x in kinds["number"] if x["name"] == "repetitions"}
        assert not {"get up from the front", "get up from the back"} & set(names[1:])
        assert row["labels"][-1]["value"] == ("yes" if "upside_down" in row["meta"]["facts"] else "no")
    assert counts == {1, 2, 3, 4}


def test_repetitions_are_seen_in_the_motion() -> None:
    checked = 0
    for clip, _ in planned(seed=1):
        poses, spans = clips.track(clip)
        for segment, (start, end) in zip(clip.segments, spans, strict=True):
            if segment.motion == "jump" and segment.repeats is not None:
                inside = slice(int(start * clip.fps), int(end * clip.fps))
                lowest = skeleton.forward(poses).points[inside, :, 1].min(1)
                flights = np.flatnonzero(np.diff((lowest > 0.12).astype(int)) == 1)
                assert len(flights) == segment.repeats
                checked += 1
    assert checked


def test_score_is_difficulty_times_execution() -> None:
    assert labels.score(["run", "backflip"], 10) == 48.0
    assert labels.score(["run", "backflip"], 4) == 19.2
    for clip, row in planned():
        score = next(x for x in row["labels"] if x["name"] == "score")
        assert score["value"] == pytest.approx(row["meta"]["difficulty"] * row["meta"]["execution"], abs=0.06)
        assert row["meta"]["sway_deg"] == 4 * (10 - clip.execution)


def test_a_low_mark_shows_as_sway_of_the_trunk() -> None:
    clip = next(clip for clip, _ in planned() if clip.segments[0].motion == "walk" or clip.execution == 5)
    swayed = skeleton.forward(clips._sway(sampled("walk"), np.arange(60, dtype=np.float32) / 30, clip.execution))
    steady = skeleton.forward(sampled("walk"))
    rows = len(steady.points)
    tilt = np.degrees(np.arccos(np.clip((swayed.chest_turn[:rows, :, 1] * steady.chest_turn[:, :, 1]).sum(1), -1, 1)))
    assert tilt.max() == pytest.approx((10 - clip.execution) * clips.SWAY_DEG_PER_POINT, abs=1.5)


@pytest.mark.parametrize("kind", ["actions", "routines"])
def test_nobody_leaves_the_picture(kind: str) -> None:
    for clip in clips.plan(kind, {"test": 20}, 0):
        body = skeleton.forward(clips.track(clip)[0])
        camera = videos.camera(clip, body)
        pixel, depth = camera.pixels(camera.view(body.points), (128, 128))
        assert depth.min() > 1
        assert pixel.min() > 3 and pixel.max() < 125


def test_nearer_limbs_hide_farther_ones() -> None:
    look = render.random_look(np.random.default_rng(1))
    target = np.zeros((1, 3), np.float32)
    camera = render.Camera(target, azimuth_deg=0, elevation_deg=0, distance_m=4, fov_deg=40)
    ends = np.array([[[[0.5, -0.5, 0], [0.5, 0.5, 0]], [[-0.5, 0, -0.5], [-0.5, 0, 0.5]]]], np.float32)
    colours = np.array([[1, 0, 0], [0, 0, 1]], np.float32)
    for order in ([0, 1], [1, 0]):
        image = np.zeros((1, 64, 64, 3), np.float32)
        figure = render.Capsules(ends[:, order], np.full((2, 2), 0.1, np.float32), colours[order])
        render._draw(image, figure, camera, look)
        assert image[0, 32, 32, 0] > 0.3 and image[0, 32, 32, 2] == 0
        assert image[0, 32, 25, 2] > 0.3


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VSTAR_FAST_CACHE", str(tmp_path / "own"))
    assert cache_dir() == tmp_path / "own"
    monkeypatch.delenv("VSTAR_FAST_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "vstar_fast"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == Path.home() / ".cache" / "vstar_fast"


def test_a_failed_download_names_the_package_and_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(fetch.FetchError, match=r"could not download vstar-none==1\.0(.|\n)*pip download"):
        fetch.fetch_wheel("vstar-none==1.0", "vstar_none-1.0-py3-none-any.whl", "0" * 64, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_wheel_is_checked_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pip(command: list[str], **_: object) -> Any:
        (Path(command[command.index("--dest") + 1]) / "a.whl").write_bytes(b"wheel")
        return type("Run", (), {"returncode": 0, "stderr": ""})

    monkeypatch.setattr(fetch.subprocess, "run", pip)
    with pytest.raises(fetch.FetchError, match="expected 0000"):
        fetch.fetch_wheel("a==1", "a.whl", "0" * 64, tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(fetch.FetchError, match=r"\['a.whl'\] for a==1, expected b.whl"):
        fetch.fetch_wheel("a==1", "b.whl", "0" * 64, tmp_path)
    (tmp_path / "source").write_bytes(b"wheel")
    digest = fetch.sha256_of(tmp_path / "source")
    assert fetch.fetch_wheel("a==1", "a.whl", digest, tmp_path / "kept").read_bytes() == b"wheel"


def test_unknown_motion_lists_the_known_ones() -> None:
    with pytest.raises(DataError, match="no motion 'swim'; choose one of walk, run"):
        motions.load("swim")
