"""The cache of arrays: what is put comes back, budgets hold, damage is noticed, several processes share it."""

import multiprocessing
import os
import threading
import time
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

from vstar_fast.cache import MAGIC, SUFFIX, Cache, Entry, pack, unpack


def entry(n: int, size: int = 1000) -> Entry:
    return Entry({"a": np.full(size, n % 256, np.uint8), "b": np.arange(3) + n}, {"n": n, "times": [0.0, 0.5]})


def same(a: Entry | None, b: Entry) -> bool:
    return a is not None and a.meta == b.meta and all(np.array_equal(a.arrays[k], b.arrays[k]) for k in b.arrays)


def test_what_is_put_comes_back_after_a_restart(tmp_path):
    Cache(tmp_path, 1e6).put("k1", entry(1))
    cache = Cache(tmp_path, 1e6, 1e6)
    assert "k1" in cache and same(cache.get("k1"), entry(1)) and cache.get("k2") is None
    assert same(cache.get("k1"), entry(1))
    assert dict(cache.counts) == {"disk": 1, "miss": 1, "host": 1}


def test_empty_arrays_and_all_types(tmp_path):
    made = Entry({d: np.zeros((0, 3), d) for d in ("u1", "i8", "f4", "f2", "?")} | {"x": np.ones((2, 3), "f4")}, {})
    assert same(unpack(bytearray(pack(made))), made)


@pytest.mark.parametrize("at", [0, len(MAGIC) + 2, 40, -1])
def test_a_damaged_entry_is_dropped_and_can_be_made_again(tmp_path, at):
    cache = Cache(tmp_path, 1e6)
    cache.put("key", entry(1))
    (path,) = tmp_path.rglob(f"*{SUFFIX}")
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    assert cache.get("key") is None and not path.exists() and cache.counts["damaged"] == 1
    cache.put("key", entry(2))
    assert same(cache.get("key"), entry(2))


def test_a_cut_off_entry_is_dropped(tmp_path):
    cache = Cache(tmp_path, 1e6)
    cache.put("key", entry(1))
    (path,) = tmp_path.rglob(f"*{SUFFIX}")
    for size in (0, 5, len(MAGIC) + 3, path.stat().st_size - 1):
        path.write_bytes(pack(entry(1))[:size])
        assert cache.get("key") is None and not path.exists()


def test_the_least_recently_used_goes_first(tmp_path):
    cache = Cache(tmp_path, 12_000)
    for n in range(9):
        cache.put(f"{n:02d}", entry(n))
        os.utime(cache._path(f"{n:02d}"), (n, n))
    assert cache.get("00") is not None
    for n in range(9, 14):
        cache.put(f"{n:02d}", entry(n))
    kept = {path.stem for path in tmp_path.rglob(f"*{SUFFIX}")}
    assert "00" in kept and "13" in kept and "01" not in kept
    assert cache.info()["bytes"] <= 12_000 and cache.counts["evicted"] == 14 - len(kept)


def test_memory_has_a_budget_of_its_own(tmp_path):
    cache = Cache(tmp_path, 0, 2100)
    for n in range(3):
        cache.put(f"{n}", entry(n))
    assert [f"{n}" in cache for n in range(3)] == [False, True, True]
    cache.put("big", entry(1, 5000))
    assert "big" not in cache and not list(tmp_path.iterdir())


def test_clear_and_info(tmp_path):
    cache = Cache(tmp_path, 1e6, 1e6)
    for n in range(3):
        cache.put(f"key{n}", entry(n))
    assert cache.info()["entries"] == 3
    assert cache.clear() == 3 * len(pack(entry(0))) and cache.info()["entries"] == 0 and cache.get("key1") is None


def test_a_cache_that_cannot_be_written_says_so_once_and_works_on(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    cache = Cache(tmp_path / "file" / "cache", 1e6, 1e6)
    for n in range(3):
        cache.put(f"{n}", entry(n))
    assert same(cache.get("2"), entry(2)) and cache.counts["unwritten"] == 3
    assert caplog.text.count("cannot write the cache") == 1


def test_a_cache_that_may_only_be_read_is_read(tmp_path, monkeypatch):
    """Files of somebody else's: no time of use can be set, nothing be removed, no lock be opened."""
    Cache(tmp_path, 1e6).put("aa", entry(1))
    Cache(tmp_path, 1e6).put("bb", entry(2))
    (tmp_path / "bb" / "bb.vfc").write_bytes(b"damaged")
    refuse = Mock(side_effect=PermissionError(1, "not permitted"))
    monkeypatch.setattr(os, "utime", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    cache = Cache(tmp_path, 1e6)
    assert same(cache.get("aa"), entry(1)) and cache.get("bb") is None and cache.counts["damaged"] == 1
    (tmp_path / ".lock").mkdir()
    small = Cache(tmp_path, 2000)
    small.put("cc", entry(3))
    assert same(small.get("cc"), entry(3)) and small.counts["unwritten"] == 1


def test_what_killed_writers_left_does_not_stay(tmp_path):
    cache = Cache(tmp_path, 5000)
    cache.put("aa", entry(1))
    old, new = tmp_path / "aa" / ".x.1.1.tmp", tmp_path / "aa" / ".y.1.1.tmp"
    for path in (old, new):
        path.write_bytes(bytes(100))
    os.utime(old, (1, 1))
    for n in range(9):
        cache.put(f"aa{n}", entry(n))
    assert cache.counts["evicted"] and not old.exists() and new.exists()
    cache.clear()
    assert not list(tmp_path.rglob("*.tmp"))


def _hammer(folder, seed, seconds):
    cache = Cache(folder, 30_000)
    rng = np.random.default_rng(seed)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        n = int(rng.integers(60))
        found = cache.get(f"{n:02d}")
        if found is None:
            cache.put(f"{n:02d}", entry(n))
        elif not same(found, entry(n)):
            os._exit(3)
    os._exit(3 if cache.counts["damaged"] or cache.counts["unwritten"] else 0)


def test_several_processes_share_one_folder(tmp_path):
    fork = multiprocessing.get_context("fork")
    running = [fork.Process(target=_hammer, args=(tmp_path, seed, 1.0)) for seed in range(3)]
    for process in running:
        process.start()
    for process in running:
        process.join(30)
    assert [process.exitcode for process in running] == [0, 0, 0]
    assert Cache(tmp_path, 30_000).info()["bytes"] <= 30_000 * (1 + 3 / 16) + 3 * len(pack(entry(0)))
    assert not list(tmp_path.rglob("*.tmp"))


def test_threads_share_one_cache(tmp_path):
    cache = Cache(tmp_path, 1e6, 5000)
    wrong = []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(100):
            n = int(rng.integers(20))
            found = cache.get(f"{n}")
            if found is None:
                cache.put(f"{n}", entry(n))
            elif not same(found, entry(n)):
                wrong.append(n)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and cache.counts["damaged"] == 0
