"""Readers: what each format becomes, splits, label sets, ids, and one clear line for every bad row."""

import dataclasses
import json
import os
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vstar_fast.config import DataConfig
from vstar_fast.errors import ConfigError, DataError
from vstar_fast.readers import REASONS, read
from vstar_fast.readers.folder import class_words
from vstar_fast.records import Label

NO_CARVE = {"dev_fraction": 0.0, "test_fraction": 0.0}


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"\0video" + os.fsencode(name))


def label(value="run", **more) -> dict:
    return {"kind": "class", "name": "action", "value": value, **more}


def row(id="a", path="a.mp4", *labels: dict, **more) -> dict:
    return {"id": id, "path": path, "labels": list(labels) or [label()], **more}


def manifest(root: Path, *rows, sets: dict | None = None, name="manifest.jsonl") -> Path:
    header = {"vstar_manifest": 1, "name": "x", "label_sets": sets or {}}
    lines = [json.dumps(x) if isinstance(x, dict) else x for x in (header, *rows)]
    data = b"\n".join(x if isinstance(x, bytes) else x.encode() for x in lines)
    (root / name).write_bytes(data + b"\n")
    return root / name


def read_all(path, **config):
    return read(DataConfig(path=str(path), **{**NO_CARVE, **config}))


def test_manifest_row_becomes_a_video_with_typed_labels(tmp_path):
    touch(tmp_path, "clips/a.mp4")
    labels = [
        label("Spin_Kick", set="actions", aliases=["spinning kick"]),
        {"kind": "interval", "name": "when", "value": [0.5, 1.5], "event": "jump"},
        {"kind": "number", "name": "score", "value": 7, "unit": "points", "abs_tolerance": 0.5},
        {"kind": "sequence", "name": "steps", "value": ["run", "spin kick"], "set": "actions"},
    ]
    file = manifest(
        tmp_path,
        row("v1", "clips/a.mp4", *labels, split="validate", start_s=1, end_s=3.5, duration_s=9, meta={"fps": 25}),
        sets={"actions": ["spin kick", "run"], "unused": ["x"]},
    )
    videos, rejected, sets = read_all(file)
    assert rejected == []
    (video,) = videos
    assert (video.id, video.split, video.start_s, video.end_s, video.duration_s) == ("v1", "dev", 1.0, 3.5, 9.0)
    assert video.path == str((tmp_path / "clips/a.mp4").resolve()) and video.meta == {"fps": 25}
    assert video.labels == (
        Label("class", "action", "spin kick", set="actions", aliases=("spinning kick",)),
        Label("interval", "when", (0.5, 1.5), event="jump"),
        Label("number", "score", 7, unit="points", abs_tolerance=0.5),
        Label("sequence", "steps", ("run", "spin kick"), set="actions"),
    )
    assert sets == {"actions": ("spin kick", "run"), "unused": ("x",)}


def test_label_sets_are_built_where_none_is_declared(tmp_path):
    touch(tmp_path, "a.mp4", "b.mp4", "c.mp4")
    steps = {"kind": "sequence", "name": "action", "value": ["walk", "Run"]}
    file = manifest(
        tmp_path, row("1", "a.mp4", label("run")), row("2", "b.mp4", steps), row("3", "c.mp4", label("big_jump"))
    )
    videos, _, sets = read_all(file)
    assert sets == {"action": ("big_jump", "run", "walk")}
    assert videos[1].labels[0].value == ("walk", "run")
    assert {x.set for v in videos for x in v.labels} == {"action"}


BAD_ROWS = {
    "bad_json": [
        ("{not json", "manifest.jsonl line 2: not JSON: "),
        ("[1, 2]", "a row must be a JSON object, got list"),
        ("[" * 100_000, "not JSON"),
    ],
    "wrong_field": [
        (row(lable=1), "unknown field 'lable'; did you mean 'labels'?"),
        (row("a", "a.mp4", label(allias=[])), "labels[0] unknown field 'allias'; did you mean 'aliases'?"),
    ],
    "wrong_type": [
        (row(7), "id must be a non-empty string, got 7"),
        (row(labels="run"), "labels must be a list of labels, got 'run'"),
        (row(start_s="1"), "start_s must be a number of seconds >= 0, got '1'"),
        (row(start_s=-1), "start_s must be a number of seconds >= 0, got -1"),
        (row(start_s=10**400), "start_s must be a number of seconds >= 0, got 1000"),
        (row("a", "a.mp4", label(abs_tolerance=10**400)), "abs_tolerance must be a number >= 0, got 1000"),
        (row(duration_s=float("nan")), "duration_s must be a number of seconds >= 0, got nan"),
        (row("a", "a.mp4", label(aliases="abc")), "labels[0] aliases must be a list of strings, got 'abc'"),
        (row(labels=["run"]), "labels[0] must be an object, got 'run'"),
        (row(meta=[]), "meta must be an object, got []"),
    ],
    "missing_field": [
        ({"path": "a.mp4", "labels": [label()]}, "id is missing; it must be a non-empty string"),
        (row("a", "a.mp4", {"kind": "class", "value": "run"}), "labels[0] name is missing"),
    ],
    "wrong_split": [(row(split="holdout"), "split 'holdout' is none of dev, test")],
    "no_label": [(row(labels=[]), "labels is empty; a video needs at least one label")],
    "unknown_kind": [
        (row("a", "a.mp4", {"kind": "clas", "name": "x", "value": "y"}), "has unknown label kind 'clas'; known: answer")
    ],
    "bad_label": [
        (row("a", "a.mp4", label("?!...")), "'?!...' has no letter or digit"),
        (row("a", "a.mp4", label(aliases=["--"])), "alias of 'run' '--' has no letter or digit"),
        (row("a", "a.mp4", {"kind": "number", "name": "n", "value": "3"}), "must be a finite number, got '3'"),
        (row("a", "a.mp4", {"kind": "number", "name": "n", "value": 10**400}), "must be a finite number, got 1000"),
        (row("a", "a.mp4", {"kind": "interval", "name": "n", "value": [0, 10**400]}), "must be a finite number"),
        (row("a", "a.mp4", label(question="<video>\n<image>")), "has no words; write the question beside the"),
        (row("a", "a.mp4", {"kind": "interval", "name": "n", "value": [2, 1]}), "needs 0 <= start_s < end_s"),
        (
            row("a", "a.mp4", {"kind": "interval", "name": "n", "value": [2, 3]}, start_s=5, end_s=6),
            "interval [2, 3] of 'n' lies outside the clip of 1 s",
        ),
    ],
    "empty_label_set": [(row("a", "a.mp4", label(set="none")), "label set 'none' of 'run' is empty; list its labels")],
    "not_in_label_set": [(row("a", "a.mp4", label("hop", set="few")), "label 'hop' is not in label set 'few'")],
    "bad_window": [
        (row(start_s=2, end_s=2), "window needs start_s < end_s, got 2..2"),
        (row(start_s=9, duration_s=4), "window starts at 9 s, but the video is 4 s long"),
    ],
    "too_long": [(row(duration_s=36_000), "36000 s is longer than data.max_duration_s = 3600; cut a window")],
    "outside_root": [
        (row("a", "../secret.mp4"), "path '../secret.mp4' leaves the data folder"),
        (row("a", "link.mp4"), "path 'link.mp4' leaves the data folder"),
        (row("a", "/etc/passwd"), "path '/etc/passwd' leaves the data folder"),
    ],
    "missing_file": [
        (row("a", "nope.mp4"), "no file "),
        (row("a", "folder"), "no file "),
        (row("a", "x" * 5000), "no file "),
    ],
    "empty_file": [(row("a", "empty.mp4"), "empty.mp4 has 0 bytes")],
    "not_utf8": [
        (
            b'{"id": "a", "path": "a.mp4", "labels": [{"kind": "class", "name": "n", "value": "caf\xe9"}]}',
            "save the file",
        ),
        (row("a", "a.mp4", label("\udc80x")), "is not UTF-8; save the file as UTF-8"),
        (row("caf\udce9"), "is not UTF-8; save the file as UTF-8"),
        (row("a", "latin.mp4"), "caf\\udce9.mp4 is not UTF-8; rename the file or its folder"),
    ],
    "split_conflict": [
        (
            row("other", "good.mp4", label(question="What?"), split="test"),
            "split 'test', but the video of manifest.jsonl line 3 is already in 'train'; name one for all its rows",
        )
    ],
    "duplicate_id": [(row("good", "b.mp4"), "id 'good' is already taken by manifest.jsonl line 3; ids must be unique")],
    "duplicate_video": [(row("other", "good.mp4"), "the same file and window as manifest.jsonl line 3")],
}


@pytest.mark.parametrize(
    ("reason", "bad", "message"), [(reason, *case) for reason, cases in BAD_ROWS.items() for case in cases]
)
def test_bad_row_is_one_clear_rejected_and_the_rest_is_read(tmp_path, reason, bad, message):
    root = tmp_path / "data"
    touch(root, "a.mp4", "b.mp4", "good.mp4")
    touch(tmp_path, "secret.mp4")
    (root / "folder").mkdir()
    (root / "empty.mp4").touch()
    (root / "link.mp4").symlink_to(tmp_path / "secret.mp4")
    touch(root, "caf\udce9.mp4")
    (root / "latin.mp4").symlink_to(root / "caf\udce9.mp4")
    later = reason.startswith(("duplicate", "split_conflict"))
    good = row("good", "good.mp4", label(question="Which?"), split="train")
    file = manifest(root, "" if later else bad, good, bad if later else "", sets={"few": ["run"], "none": []})
    videos, rejected, _ = read_all(file)
    assert [v.id for v in videos] == ["good"]
    (only,) = rejected
    assert (only.stage, only.reason) == ("read", reason)
    assert json.dumps(dataclasses.asdict(only), ensure_ascii=False).encode()
    assert f"manifest.jsonl line {4 if later else 2}: " in only.detail and message in only.detail
    assert "\n" not in only.detail and len(only.detail) < 400 + len(str(tmp_path)) or "xxx" in only.detail


def test_every_reason_that_readers_give_is_documented():
    assert BAD_ROWS.keys() | {"bad_csv", "not_video", "unreadable_folder"} == REASONS.keys()


def test_punctuation_in_a_declared_set_is_counted_and_left_out(tmp_path):
    touch(tmp_path, "a.mp4")
    _, rejected, sets = read_all(manifest(tmp_path, row(), sets={"action": ["run", "..."]}))
    assert [(r.id, r.reason) for r in rejected] == [("label_sets.action[1]", "bad_label")]
    assert sets == {"action": ("run",)}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ('{"id": "a"}', "line 1 is not a manifest header; it must be like"),
        ('{"vstar_manifest": 2}', "is manifest version 2; this program reads version 1"),
        ('{"vstar_manifest": 1, "labelsets": {}}', "unknown header field 'labelsets'; known: vstar_manifest"),
        ('{"vstar_manifest": 1, "label_sets": {"a": "run"}}', "label_sets must map names to lists of labels"),
        ("", "line 1 is not a manifest header"),
    ],
)
def test_unusable_header_stops_with_the_remedy(tmp_path, header, message):
    (tmp_path / "m.jsonl").write_text(header + "\n")
    with pytest.raises(DataError) as error:
        read_all(tmp_path / "m.jsonl", reader="manifest")
    assert message in str(error.value)


def test_nothing_left_names_the_commonest_reasons_and_the_reader(tmp_path):
    rows = [row(f"v{i}", f"v{i}.mp4") for i in range(3)]
    file = manifest(tmp_path, *rows, row("w", "w.mp4", split="nosplit"))
    with pytest.raises(DataError) as error:
        read_all(file)
    text = str(error.value)
    assert "no usable video is left of 4 rows" in text
    assert "3 x missing_file, e.g. manifest.jsonl line 2: no file" in text and "1 x wrong_split" in text
    assert "read as 'manifest', because its first line is a manifest header" in text


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"path": ""}, "data.path is empty; set it to"),
        ({"path": "nowhere"}, "data path nowhere does not exist; check data.path and data.extra"),
        ({"path": "notes.md"}, "cannot tell how to read notes.md: it is neither a folder nor .csv"),
        ({"path": ".", "root": "nowhere"}, "data.root nowhere is not a folder"),
        ({"path": "notes.txt", "reader": "folder"}, "notes.txt is not a folder; the folder reader needs"),
        ({"path": "notes.txt", "reader": "json"}, "notes.txt is not JSON"),
        ({"path": "empty"}, "no videos found (empty read as 'folder', because it is a folder without"),
        ({"path": "t.csv"}, "t.csv has no column for the video (looked for video, path"),
        ({"path": "t.csv", "columns": {"video": "clip"}}, "t.csv has no column 'clip' (data.columns); it has: x, y"),
        ({"path": "t.csv", "columns": {"vidio": "x"}}, "unknown key 'vidio'; did you mean 'video'?"),
        ({"path": "void.csv"}, "void.csv has no header line with column names"),
        ({"path": "n.json"}, "n.json must hold a list of rows or an object of rows by video"),
    ],
)
def test_unusable_paths_and_settings(tmp_path, monkeypatch, config, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "notes.md").write_text("hello")
    (tmp_path / "t.csv").write_text("x,y\n1,2\n")
    (tmp_path / "void.csv").write_text("")
    (tmp_path / "n.json").write_text("7")
    with pytest.raises((DataError, ConfigError)) as error:
        read(DataConfig(**config))
    assert message in str(error.value)


def test_folder_of_classes(tmp_path):
    touch(tmp_path, "ApplyEyeMakeup/a.avi", "push_up/x/b.MP4", "push_up/.hidden.mp4", "push_up/notes.txt", "lost.mp4")
    videos, rejected, sets = read_all(tmp_path)
    assert [(v.id, v.labels[0].value, v.labels[0].aliases, v.split) for v in videos] == [
        ("ApplyEyeMakeup/a", "apply eye makeup", ("ApplyEyeMakeup",), "train"),
        ("push_up/x/b", "push up", (), "train"),
    ]
    assert {v.labels[0].name for v in videos} == {"action"}
    assert sorted((r.id, r.reason) for r in rejected) == [("lost", "no_label"), ("push_up/notes", "not_video")]
    assert sets == {"action": ("apply eye makeup", "push up")}


def storable(rejected) -> bool:
    return bool("".join(x for r in rejected for x in (r.id, r.reason, r.detail)).encode())


def test_text_that_is_not_utf8_is_stored_escaped(tmp_path):
    touch(tmp_path, "a.mp4", "run/b.mp4", "run/caf\udce9.mp4", "sk\udce5/c.mp4")
    (tmp_path / "t.csv").write_bytes(b"id,video,label\ncaf\xe9,a,run\nok,a,run\ncaf\xe9,gone\n")
    videos, rejected, _ = read_all(tmp_path / "t.csv")
    assert [v.id for v in videos] == ["ok"] and storable(rejected)
    assert [(r.id, r.reason) for r in rejected] == [("caf\\udce9", "not_utf8"), ("t.csv line 4", "bad_csv")]
    videos, rejected, _ = read_all(tmp_path, reader="folder")
    assert [v.id for v in videos] == ["run/b"] and storable(rejected)
    assert [(r.id, r.reason) for r in rejected if "udc" in r.id] == [
        ("run/caf\\udce9", "not_utf8"),
        ("sk\\udce5/c", "not_utf8"),
    ]
    assert all("rename it" in r.detail for r in rejected if r.reason == "not_utf8")


def test_a_label_set_that_is_not_utf8_is_counted_and_left_out(tmp_path):
    touch(tmp_path, "a.mp4")
    _, rejected, sets = read_all(manifest(tmp_path, row(), sets={"action": ["run", "caf\udce9"], "\udce9": ["x"]}))
    assert [(r.id, r.reason) for r in rejected] == [
        ("label_sets.action[1]", "not_utf8"),
        ("label_sets.\\udce9", "not_utf8"),
    ]
    assert sets == {"action": ("run",)} and storable(rejected)


def test_linked_class_folders_are_read_and_loops_end(tmp_path):
    root = tmp_path / "data"
    touch(root, "run/a.mp4", "real/jump/b.mp4")
    touch(tmp_path, "away/c.mp4")
    (root / "jump").symlink_to("real/jump")
    (root / "kick").symlink_to(tmp_path / "away")
    (root / "run/loop").symlink_to("..")
    (root / "run/self").symlink_to("self")
    videos, rejected, _ = read_all(root)
    assert [(v.id, v.labels[0].value) for v in videos] == [("jump/b", "jump"), ("run/a", "run")]
    assert [(r.id, r.reason) for r in rejected] == [
        ("kick/c", "outside_root"),
        ("real/jump/b", "duplicate_video"),
        ("run/self", "not_video"),
    ]


def test_a_folder_that_cannot_be_listed_is_counted(tmp_path, monkeypatch):
    touch(tmp_path / "data", "run/a.mp4", "locked/b.mp4")
    listed = os.listdir

    def listdir(path):
        if os.path.basename(path) == "locked":
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return listed(path)

    monkeypatch.setattr(os, "listdir", listdir)
    videos, rejected, _ = read_all(tmp_path / "data")
    assert [v.id for v in videos] == ["run/a"]
    (only,) = rejected
    assert (only.id, only.reason) == ("data/locked", "unreadable_folder")
    assert "data/locked: the folder cannot be listed: Permission denied; make it readable" in only.detail


def test_folder_with_split_folders(tmp_path):
    touch(tmp_path, "train/run/a.mp4", "val/run/a.mp4", "test/jump/c.mp4", "test2/d.mp4")
    videos, _, sets = read_all(tmp_path)
    assert {v.id: (v.split, v.labels[0].value) for v in videos} == {
        "train/run/a": ("train", "run"),
        "val/run/a": ("dev", "run"),
        "test/jump/c": ("test", "jump"),
        "test2/d": ("train", "test2"),
    }
    assert sets == {"action": ("jump", "run", "test2")}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ApplyEyeMakeup", "apply eye makeup"),
        ("BMXRide", "BMX ride"),
        ("YoYo", "yo yo"),
        ("tai-chi_2", "tai chi 2"),
        ("playing_TV", "playing TV"),
        ("Run", "Run"),
        ("ÉcoleÉlan", "ÉcoleÉlan"),
    ],
)
def test_class_words(name, words):
    assert class_words(name) == words


def test_kinetics_csv_finds_cut_clips_and_whole_videos(tmp_path):
    touch(tmp_path, "val/riding_a_bike/abc_000001_000011.mp4", "xyz.webm", "flat_000000_000010.mkv")
    (tmp_path / "k.csv").write_text(
        "label,youtube_id,time_start,time_end,split\n"
        'riding a bike,abc,1,11,validate\n"yoga, slow",xyz,3,13,train\nyoga,flat,0,10,test\nyoga,gone,0,10,train\n'
        ",xyz,20,30,test\n"
    )
    videos, rejected, sets = read_all(tmp_path / "k.csv")
    assert [(v.id, v.split, v.start_s, v.end_s, v.labels[0].value) for v in videos] == [
        ("val/riding_a_bike/abc_000001_000011", "dev", None, None, "riding a bike"),
        ("xyz@3-13", "train", 3.0, 13.0, "yoga, slow"),
        ("flat_000000_000010", "test", None, None, "yoga"),
    ]
    assert [(r.id, r.reason) for r in rejected] == [("gone@0-10", "missing_file"), ("k.csv line 6", "no_label")]
    assert sets == {"action": ("riding a bike", "yoga", "yoga, slow")}


def test_csv_own_columns_kinds_and_semicolons(tmp_path):
    touch(tmp_path, "a.mp4", "b.mp4", "c.mp4")
    (tmp_path / "t.csv").write_bytes(
        "\ufeffclip;sport;kind;unit;key\na.mp4;run|jump;sequence;;1\nb;2.5;number;s;2\nc.mp4;0.5|1;interval;;3\n".encode()
    )
    columns = {"video": "clip", "label": "sport", "id": "key"}
    videos, rejected, _ = read_all(tmp_path / "t.csv", columns=columns)
    assert rejected == []
    assert [(v.id, v.labels[0].kind, v.labels[0].value) for v in videos] == [
        ("1", "sequence", ("run", "jump")),
        ("2", "number", 2.5),
        ("3", "interval", (0.5, 1.0)),
    ]
    assert videos[1].labels[0] == Label("number", "sport", 2.5, unit="s")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be"])
def test_csv_as_spreadsheets_save_unicode_text(tmp_path, encoding):
    touch(tmp_path, "a.mp4", "b.mp4")
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    (tmp_path / "t.csv").write_bytes(f"{mark}video\tlabel\na.mp4\tgr\u00fcn\nb.mp4\t\u7ea2\n".encode(encoding))
    videos, rejected, _ = read_all(tmp_path / "t.csv")
    assert rejected == [] and [v.labels[0].value for v in videos] == ["gr\u00fcn", "\u7ea2"]


def test_csv_bad_lines_are_counted_and_the_next_line_is_read(tmp_path):
    touch(tmp_path, *(f"{x}.mp4" for x in "abcde"))
    lines = [b"video,label,start", b"a,run,", b"b,run", b'c,"run,', b"d,jump,x", b"e,caf\xe9,", b"e,walk,"]
    (tmp_path / "t.csv").write_bytes(b"\r\n".join(lines) + b"\r\n")
    videos, rejected, _ = read_all(tmp_path / "t.csv")
    assert [v.id for v in videos] == ["a", "e"]
    assert [(r.reason, r.detail.split(": ")[0]) for r in rejected] == [
        ("bad_csv", "t.csv line 3"),
        ("bad_csv", "t.csv line 4"),
        ("wrong_type", "t.csv line 5"),
        ("not_utf8", "t.csv line 6"),
    ]
    assert "2 columns, but the header has 3" in rejected[0].detail
    assert "column 'start' must be a number, got 'x'" in rejected[2].detail


def test_jsonl_questions_about_one_video_are_joined(tmp_path):
    touch(tmp_path, "v.mp4", "w.mp4")
    rows = [
        {"video": "v.mp4", "question": "What is it?", "answer": "a cat", "id": "q1"},
        {"video": "v.mp4", "question": "How many?", "answer": "two", "id": "q2"},
        {"video": "v.mp4", "question": "How many?", "answer": "two", "id": "q3"},
        {"video": "w", "question": "Up or down?", "options": ["A. up", "B. down"], "answer": "B"},
        {"video": "w", "problem": "Left?", "options": ["yes", "no"], "solution": "<answer>No</answer>"},
        {"video": "w", "question": "Which?", "options": ["x", "y"], "answer": "z"},
        {"video": "w", "question": "Why?"},
    ]
    (tmp_path / "qa.jsonl").write_text("\n".join(map(json.dumps, rows)))
    videos, rejected, sets = read_all(tmp_path / "qa.jsonl")
    assert {v.id: [(x.kind, x.value, x.question) for x in v.labels] for v in videos} == {
        "v": [("answer", "a cat", "What is it?"), ("answer", "two", "How many?")],
        "w": [("choice", "down", "Up or down? Options: up, down."), ("choice", "no", "Left? Options: yes, no.")],
    }
    assert [r.reason for r in rejected] == ["duplicate_video", "not_in_label_set", "no_label"]


def test_placeholders_around_a_question_are_dropped(tmp_path):
    touch(tmp_path, "v.mp4", "w.mp4")
    rows = [
        {"video": "v.mp4", "question": "<video>\nWhat is it?", "answer": "a cat"},
        {"video": "v.mp4", "question": "What is the <video> tag?\n<image> <video>\n", "answer": "html"},
        {"video": "w.mp4", "question": "Up or down? <image>", "options": ["up", "down"], "answer": "up"},
        {"video": "w.mp4", "question": "<video>", "options": ["up", "down"], "answer": "up"},
        {"id": "m", "path": "v.mp4", "labels": [label(question="<image>\n<video> Which?")]},
    ]
    (tmp_path / "qa.jsonl").write_text("\n".join(map(json.dumps, rows)))
    videos, rejected, _ = read_all(tmp_path / "qa.jsonl")
    assert {v.id: [x.question for x in v.labels] for v in videos} == {
        "v": ["What is it?", "What is the <video> tag?", "Which?"],
        "w": ["Up or down? Options: up, down."],
    }
    assert [r.reason for r in rejected] == ["bad_label"]


@pytest.mark.parametrize("start", ["1", [1], 10**400, {"a": 1}], ids=["text", "list", "huge", "object"])
def test_a_start_that_is_no_number_is_one_rejected_row(tmp_path, start):
    touch(tmp_path, "a.mp4", "b.mp4")
    rows = [{"video": "a.mp4", "label": "run", "start": start}, {"video": "b.mp4", "label": "run"}]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    videos, rejected, _ = read_all(tmp_path / "t.jsonl")
    assert [v.id for v in videos] == ["b"]
    assert [r.reason for r in rejected] == ["wrong_type"]


def test_choice_options_become_its_label_set(tmp_path):
    touch(tmp_path, "v.mp4")
    rows = [{"video": "v.mp4", "question": "Up?", "choices": [{"choice": "up"}, {"choice": "down"}], "answer": "up"}]
    (tmp_path / "star.json").write_text(json.dumps(rows))
    videos, _, sets = read_all(tmp_path / "star.json")
    assert sets[videos[0].labels[0].set] == ("up", "down")


def test_json_of_moments_and_of_plain_labels(tmp_path):
    touch(tmp_path, "v1.mp4", "74225.webm")
    moments = {"v1": {"duration": 9.5, "timestamps": [[0, 2.5], [3, 9]], "sentences": ["he runs", "he jumps"]}}
    (tmp_path / "m.json").write_text(json.dumps(moments))
    (tmp_path / "s.json").write_text(json.dumps([{"id": "74225", "label": "spinning cube", "template": "x"}]))
    (video,), _, _ = read_all(tmp_path / "m.json")
    assert (video.id, video.duration_s) == ("v1", 9.5)
    assert [(x.value, x.event) for x in video.labels] == [((0, 2.5), "he runs"), ((3, 9), "he jumps")]
    (video,), _, _ = read_all(tmp_path / "s.json")
    assert (video.id, Path(video.path).name, video.labels[0].value) == ("74225", "74225.webm", "spinning cube")


def test_auto_takes_the_manifest_or_metadata_of_a_folder(tmp_path):
    touch(tmp_path, "m/a.mp4", "h/b.mp4")
    manifest(tmp_path / "m", row())
    (tmp_path / "h/metadata.csv").write_text("file_name,label\nb.mp4,run\n")
    assert read_all(tmp_path / "m")[0][0].id == "a"
    assert read_all(tmp_path / "m", reader="manifest")[0][0].id == "a"
    assert read_all(tmp_path / "h")[0][0].id == "b"


def test_same_file_with_different_windows_is_fine(tmp_path):
    touch(tmp_path, "a.mp4")
    file = manifest(tmp_path, row("1", start_s=0, end_s=2), row("2", start_s=2, end_s=4), row("3", start_s=2, end_s=4))
    videos, rejected, _ = read_all(file)
    assert [v.id for v in videos] == ["1", "2"]
    assert [(r.id, r.reason) for r in rejected] == [("3", "duplicate_video")]


def test_ids_are_unique_over_extra_sets(tmp_path):
    for name in ("one", "two"):
        touch(tmp_path, f"{name}/run/a.mp4", f"m{name}/a.mp4")
        manifest(tmp_path / f"m{name}", row("same"))
    paths = [str(tmp_path / x) for x in ("two", "mone", "mtwo")]
    videos, rejected, _ = read_all(tmp_path / "one", extra=tuple(paths))
    assert [v.id for v in videos] == ["run/a", "two/run/a", "same"]
    assert [(r.id, r.reason) for r in rejected] == [("same", "duplicate_id")]


def test_root_may_be_wider_than_the_manifest_folder(tmp_path):
    touch(tmp_path, "clips/a.mp4")
    (tmp_path / "lists").mkdir()
    file = manifest(tmp_path / "lists", row("a", "clips/a.mp4"), row("b", "../clips/a.mp4"))
    videos, rejected, _ = read_all(file, root=str(tmp_path))
    assert [v.id for v in videos] == ["a"]
    assert [r.reason for r in rejected] == ["outside_root"]


def many(root: Path, n: int, **more) -> Path:
    touch(root, *(f"{i}.mp4" for i in range(n)))
    return manifest(root, *(row(f"v{i}", f"{i}.mp4", **more) for i in range(n)))


def splits(file: Path, seed: int = 0, **config) -> dict[str, str]:
    return {v.id: v.split for v in read(DataConfig(path=str(file), **config), seed=seed)[0]}


def test_carved_splits_have_their_share_and_are_stable(tmp_path):
    got = splits(many(tmp_path, 400), dev_fraction=0.2, test_fraction=0.3)
    counts = Counter(got.values())
    assert abs(counts["dev"] - 80) < 25 and abs(counts["test"] - 120) < 28
    fewer = splits(many(tmp_path, 300), dev_fraction=0.2, test_fraction=0.3)
    assert fewer == {id: got[id] for id in fewer}
    assert splits(tmp_path / "manifest.jsonl", seed=1, dev_fraction=0.2, test_fraction=0.3) != fewer


@pytest.mark.parametrize("n", [3, 4, 6])
def test_few_videos_still_fill_every_split(tmp_path, n):
    for seed in range(8):
        assert set(splits(many(tmp_path, n), seed).values()) == {"train", "dev", "test"}


def test_too_few_videos_go_to_train_first(tmp_path):
    assert all(splits(many(tmp_path, 1), seed) == {"v0": "train"} for seed in range(8))
    assert all(sorted(splits(many(tmp_path, 2), seed).values()) == ["test", "train"] for seed in range(8))


def test_only_missing_splits_are_carved_and_only_from_train(tmp_path):
    touch(tmp_path, *(f"{i}.mp4" for i in range(90)))
    named = ["train", "val", "train"]
    rows = [row(f"v{i}", f"{i}.mp4", split=named[i % 3]) for i in range(90)]
    got = splits(manifest(tmp_path, *rows), test_fraction=0.3)
    assert {id for id, split in got.items() if split == "dev"} == {f"v{i}" for i in range(1, 90, 3)}
    assert 8 <= Counter(got.values())["test"] <= 30
    rows[0]["split"] = "test"
    got = splits(manifest(tmp_path, *rows), test_fraction=0.3)
    assert {id for id, split in got.items() if split == "test"} == {"v0"}


def test_windows_of_one_file_share_a_split(tmp_path):
    touch(tmp_path, *(f"{i}.mp4" for i in range(40)))
    rows = [row(f"v{i}-{k}", f"{i}.mp4", start_s=k, end_s=k + 1) for i in range(40) for k in range(3)]
    got = splits(manifest(tmp_path, *rows), dev_fraction=0.3, test_fraction=0.3)
    assert len(set(got.values())) == 3
    assert all(len({got[f"v{i}-{k}"] for k in range(3)}) == 1 for i in range(40))


def asked(path: str, number: int, **more) -> dict:
    return {"video": path, "question": f"What is {number}?", "answer": "x", **more}


def test_questions_of_one_video_keep_the_split_the_data_names(tmp_path):
    touch(tmp_path, *(f"{x}.mp4" for x in "abcd"))
    rows = [
        *(asked("a.mp4", 1, split="train"), asked("a.mp4", 2, split="test"), asked("a.mp4", 3)),
        *(asked("b.mp4", 1), asked("b.mp4", 2, split="test"), asked("b.mp4", 3, split="train")),
        *(asked("c.mp4", 1, split="val"), asked("c.mp4", 2, split="validation")),
        *(asked("d.mp4", 1), asked("d.mp4", 1, split="test")),
    ]
    (tmp_path / "qa.jsonl").write_text("\n".join(map(json.dumps, rows)))
    videos, rejected, _ = read(DataConfig(path=str(tmp_path / "qa.jsonl")))
    got = {v.id: (v.split, [int(x.question[8]) for x in v.labels]) for v in videos}
    assert got == {"a": ("train", [1, 3]), "b": ("test", [1, 2]), "c": ("dev", [1, 2]), "d": ("test", [1])}
    assert [(r.id, r.reason) for r in rejected] == [
        ("a", "split_conflict"),
        ("b", "split_conflict"),
        ("d", "duplicate_video"),
    ]
    assert "qa.jsonl line 2: split 'test', but the video of qa.jsonl line 1 is already in 'train'" in rejected[0].detail


@pytest.mark.parametrize("held", ["test", "dev"])
def test_a_window_without_split_goes_with_its_file(tmp_path, held):
    touch(tmp_path, *(f"{i}.mp4" for i in range(30)))
    rows = [row(f"{i}-0", f"{i}.mp4", start_s=0, end_s=0.3, split=held if i % 2 else "train") for i in range(30)]
    rows += [row(f"{i}-1", f"{i}.mp4", start_s=0.3, end_s=0.6) for i in range(30)]
    got = splits(manifest(tmp_path, *rows), dev_fraction=0.3, test_fraction=0.3)
    assert all(got[f"{i}-1"] == got[f"{i}-0"] for i in range(30))
    assert all(got[f"{i}-0"] == held for i in range(1, 30, 2)) and len(set(got.values())) == 3


def test_windows_of_one_file_that_the_data_parts_stay_parted(tmp_path):
    touch(tmp_path, *(f"{i}.mp4" for i in range(20)))
    windows = {"train": 0, "val": 1, "test": 2, "": 3}
    rows = [
        row(f"{i}-{name}", f"{i}.mp4", start_s=k, end_s=k + 1, **({"split": name} if name else {}))
        for i in range(20)
        for name, k in windows.items()
    ]
    got = splits(manifest(tmp_path, *rows))
    assert {id.split("-")[1]: split for id, split in got.items()} == {
        "train": "train",
        "val": "dev",
        "test": "test",
        "": "test",
    }
    rows = [x for x in rows if x.get("split") in ("train", "test")]
    got = splits(manifest(tmp_path, *rows), dev_fraction=0.5)
    assert {id.split("-")[1]: split for id, split in got.items()} == {"train": "train", "test": "test"}


def test_windows_of_one_file_that_two_sources_name_share_a_split(tmp_path):
    touch(tmp_path, *(f"in/{i}.mp4" for i in range(40)))
    outer = [row(f"o{i}", f"in/{i}.mp4", start_s=0, end_s=1) for i in range(40)]
    inner = [row(f"i{i}", f"{i}.mp4", start_s=1, end_s=2) for i in range(40)]
    manifest(tmp_path / "in", *inner)
    got = splits(manifest(tmp_path, *outer), extra=(str(tmp_path / "in"),), dev_fraction=0.3, test_fraction=0.3)
    assert all(got[f"o{i}"] == got[f"i{i}"] for i in range(40))


def test_files_of_one_name_in_two_sources_are_two_files(tmp_path):
    for name, more in (("one", {"split": "test"}), ("two", {})):
        touch(tmp_path, *(f"{name}/{i}.mp4" for i in range(20)))
        manifest(tmp_path / name, *(row(f"{name}{i}", f"{i}.mp4", **more) for i in range(20)))
    got = splits(tmp_path / "one", extra=(str(tmp_path / "two"),), dev_fraction=0.0)
    assert {got[f"one{i}"] for i in range(20)} == {"test"} and got["two0"] != "test"


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
FIELDS = ["id", "path", "split", "duration_s", "start_s", "end_s", "labels", "meta"]


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(change=st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=2), inner=st.booleans(), more=JSON)
def test_any_row_is_a_video_or_a_rejected_with_a_known_reason(tmp_path, change, inner, more):
    touch(tmp_path, "a.mp4", "good.mp4")
    strange = {**row(), **change}
    if inner:
        strange["labels"] = [{**label(), "value": more}, more]
    videos, rejected, _ = read_all(manifest(tmp_path, row("good", "good.mp4"), strange))
    assert len(videos) + len(rejected) == 2 and videos[0].id == "good"
    assert all(r.reason in REASONS and r.detail.startswith("manifest.jsonl line 3: ") for r in rejected)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=80))
@pytest.mark.parametrize("name", ["x.csv", "x.jsonl", "x.json"])
def test_any_bytes_end_in_records_or_one_clear_error(tmp_path, name, data):
    (tmp_path / name).write_bytes(b"video,label\n" * (name == "x.csv") + data)
    with pytest.raises(DataError) as error:
        read_all(tmp_path / name)
    assert name in str(error.value)


def test_reading_leaves_no_working_folder_dependence(tmp_path, monkeypatch):
    touch(tmp_path, "a.mp4")
    manifest(tmp_path, row())
    monkeypatch.chdir(tmp_path)
    (video,), _, _ = read_all("manifest.jsonl")
    assert os.path.isabs(video.path)


def test_copies_of_a_file_go_together_and_never_over_the_splits(tmp_path):
    touch(tmp_path, *(f"{i}.mp4" for i in range(40)))
    for i in range(40):
        (tmp_path / f"copy{i}.mp4").write_bytes((tmp_path / f"{i}.mp4").read_bytes())
    both = [row(f"{name}{i}", f"{name}{i}.mp4".removeprefix("v")) for i in range(40) for name in ("v", "copy")]
    got = splits(manifest(tmp_path, *both), dev_fraction=0.3, test_fraction=0.3)
    assert all(got[f"v{i}"] == got[f"copy{i}"] for i in range(40)) and len(set(got.values())) == 3
    named = [{**x, "split": ("train", "val", "test")[n % 3]} for n, x in enumerate(both[:4])]
    named += [row("w", "copy0.mp4", split="train", start_s=1, end_s=2), row("free", "copy1.mp4", start_s=1, end_s=2)]
    videos, rejected, _ = read_all(manifest(tmp_path, *named))
    assert {v.id: v.split for v in videos} == {"copy0": "dev", "v1": "test", "w": "train", "free": "test"}
    assert [(r.id, r.reason) for r in rejected] == [("v0", "split_conflict"), ("copy1", "split_conflict")]
    what = "line 2: split 'train', but 'copy0' in 'dev' is the same clip under another name; left out here"
    assert rejected[0].detail == f"manifest.jsonl {what}"
