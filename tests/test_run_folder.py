"""Run folder: atomic files, content keys, locks, a full disk."""

import errno
import os
import threading

import pytest

from vstar_fast.distributed import Ranks
from vstar_fast.errors import RunError
from vstar_fast.files import (
    appears,
    content_key,
    file_key,
    read_json,
    read_jsonl,
    read_object,
    write_atomic,
    write_json,
    write_jsonl,
)
from vstar_fast.records import Rejected
from vstar_fast.run.folder import RunFolder
from vstar_fast.run.shared_parts import SharedParts


def test_content_key_changes_with_any_value_and_with_nothing_else():
    assert content_key({"a": 1, "b": 2}) == content_key({"b": 2, "a": 1})
    assert content_key({"a": 1}) != content_key({"a": 2})
    assert content_key([1], 2) != content_key([1, 2])


def test_file_key_sees_changes_at_start_middle_and_end(tmp_path):
    path = tmp_path / "x"
    data = bytearray(5 << 20)
    keys = set()
    for place in (None, 10, len(data) // 2, len(data) - 1):
        changed = bytearray(data)
        if place is not None:
            changed[place] = 1
        path.write_bytes(changed)
        keys.add(file_key(path))
    assert len(keys) == 4


def test_part_is_computed_once(tmp_path):
    folder = RunFolder(tmp_path / "run")
    calls = []

    def compute():
        calls.append(1)
        return [{"n": 1}, {"n": 2}], []

    assert folder.part(tmp_path / "run" / "p", "key", compute) == [{"n": 1}, {"n": 2}]
    assert folder.part(tmp_path / "run" / "p", "key", compute) == [{"n": 1}, {"n": 2}]
    assert len(calls) == 1


def test_what_a_part_rejected_is_counted_again_when_it_is_read(tmp_path):
    cut, shut = Rejected("frames", "v1", "truncated", "at 1.2 s"), Rejected("frames", "v2", "unreadable", "denied")
    for made, rejected in (([{"n": 1}], [cut]), ([{"n": 2}], [])):
        folder = RunFolder(tmp_path / "run")
        assert folder.part(tmp_path / "p", "key", lambda made=made: (made, [cut])) == [{"n": 1}]
        assert folder.part(tmp_path / "p", "shut", lambda made=made, r=rejected: (made, [*r, shut])) == made
        assert set(folder.rejected) == {cut, shut}
        folder.close()


def test_lines_end_at_line_feeds_only(tmp_path):
    rows = [{"text": "a\x85b\u2028c\u2029d"}, {"text": "e\r"}]
    write_jsonl(tmp_path / "a.jsonl", rows)
    assert read_jsonl(tmp_path / "a.jsonl") == rows


def test_numbers_that_are_not_finite_are_null(tmp_path):
    write_json(tmp_path / "a.json", {"value": float("nan"), "rows": [(1.0, float("inf"))]})
    assert (tmp_path / "a.json").read_text().count("null") == 2
    assert read_json(tmp_path / "a.json") == {"value": None, "rows": [[1.0, None]]}


def test_full_disk_leaves_no_file_and_says_so(tmp_path):
    def fill(temporary):
        temporary.write_text("half a part")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(RunError, match="disk is full.*run the same command again"):
        write_atomic(tmp_path / "part.jsonl", fill)
    assert list(tmp_path.iterdir()) == []


def test_second_process_is_refused(tmp_path):
    first = RunFolder(tmp_path)
    with pytest.raises(RunError, match="another process"):
        RunFolder(tmp_path)
    first.close()
    RunFolder(tmp_path).close()


def test_damaged_file_is_named(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"a": ')
    for read in (read_json, read_jsonl):
        with pytest.raises(RunError, match=r"a\.json is damaged.*delete it"):
            read(path)


@pytest.mark.parametrize("content", ["[]", "null", "1"])
def test_what_is_no_object_is_damaged(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(RunError, match=r"a\.json is damaged.*delete it"):
        read_object(tmp_path / "a.json")


def test_rejected_rows_are_kept_once(tmp_path):
    folder = RunFolder(tmp_path)
    row = Rejected("frames", "v1", "truncated", "at 1.2 s")
    folder.reject([row])
    folder.reject([row, Rejected("frames", "v2", "not_a_video")])
    folder.reject([Rejected("frames", "v1", "truncated", "at 1.4 s")])
    assert [r["id"] for r in read_jsonl(tmp_path / "rejected.jsonl")] == ["v1", "v2", "v1"]


def test_write_json_replaces_whole_files(tmp_path):
    write_json(tmp_path / "a.json", {"a": 1})
    write_json(tmp_path / "a.json", {"b": 2})
    assert read_json(tmp_path / "a.json") == {"b": 2}


@pytest.fixture
def of_two():
    """This process as the first of two, of which the other one had no loose parts."""
    ranks = Ranks()
    ranks.size, ranks.merged = 2, dict
    return ranks


def test_another_process_s_part_is_waited_for(tmp_path, of_two):
    """A network file system may show it late."""
    run = RunFolder(tmp_path / "run")
    parts = SharedParts(run, of_two, [(run.root / "parts", "late")])
    later = threading.Timer(0.3, write_jsonl, [run.root / "parts" / "late.jsonl", [{"n": 1}]])
    later.start()
    assert parts.rows() == [[{"n": 1}]]
    later.join()


def test_a_part_that_never_comes_is_named(tmp_path, of_two, monkeypatch):
    monkeypatch.setattr("vstar_fast.run.shared_parts.appears", lambda path: appears(path, 0.01))
    run = RunFolder(tmp_path / "run")
    with pytest.raises(RunError, match="another process's part gone is not in .*all need the same run folder"):
        SharedParts(run, of_two, [(run.root / "parts", "gone")]).rows()


def test_what_a_killed_process_had_not_finished_writing_is_removed(tmp_path):
    gone = os.fork()
    if not gone:
        os._exit(0)
    os.waitpid(gone, 0)
    (tmp_path / "cycle-00" / "parts").mkdir(parents=True)
    (tmp_path / "cache").mkdir()
    left = [tmp_path / f".a.json.{gone}.0.tmp", tmp_path / "cycle-00" / "parts" / f".k.jsonl.{gone}.1.tmp"]
    kept = [tmp_path / f".a.json.{os.getpid()}.0.tmp", tmp_path / "cache" / f".k.{gone}.0.tmp", tmp_path / ".mine.tmp"]
    for path in [*left, *kept]:
        path.write_text("half")
    RunFolder(tmp_path).close()
    assert not any(p.exists() for p in left) and all(p.exists() for p in kept)
