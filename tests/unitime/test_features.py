"""The cache gives back what it was given or nothing, keeps its limit among many processes, and breaks no caller."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from unitime import features as module
from unitime.errors import UniTimeError
from unitime.features import FeatureCache, default_folder

TENSORS = {
    "tokens": torch.arange(48.0).reshape(12, 4),
    "deep.0": torch.arange(6, dtype=torch.bfloat16),
    "grid": torch.tensor([3, 4]),
    "scale": torch.tensor(2.5),
    "none": torch.zeros(0, 4),
}


def same(one: dict[str, torch.Tensor] | None, other: dict[str, torch.Tensor]) -> bool:
    return one is not None and one.keys() == other.keys() and all(
        torch.equal(one[name], other[name]) and one[name].dtype == other[name].dtype for name in other
    )  # fmt: skip


def entries(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def held(folder: Path) -> int:
    return sum(path.stat().st_size for path in entries(folder))


def one_size(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> int:
    cache = FeatureCache(tmp_path / "one")
    cache.put("one", tensors)
    return held(cache.folder)


def test_what_was_put_comes_back_and_nothing_else(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path / "deep" / "folder")
    assert cache.get("a") is None
    cache.put("a", TENSORS)
    assert same(cache.get("a"), TENSORS)
    assert cache.get("b") is None
    cache.put("a", {"tokens": torch.ones(2)})
    assert same(FeatureCache(cache.folder).get("a"), {"tokens": torch.ones(2)})
    assert [path.name for path in entries(cache.folder)] == ["a.safetensors"]


def test_views_and_shared_memory_are_kept_as_they_look(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    views = {"all": base, "turned": base.T, "part": base[1:, ::2], "learned": torch.nn.Parameter(base)}
    cache = FeatureCache(tmp_path)
    cache.put("a", views)
    assert same(cache.get("a"), {name: view.detach() for name, view in views.items()})


def test_every_part_of_a_key_counts() -> None:
    assert FeatureCache.key("a", "b", "c") == FeatureCache.key("a", "b", "c")
    parts = [("a", "b", "c"), ("x", "b", "c"), ("a", "x", "c"), ("a", "b", "x"), ("ab", "", "c")]
    assert len({FeatureCache.key(*each) for each in parts}) == len(parts)


def test_keys_cannot_leave_the_folder(tmp_path: Path) -> None:
    for key in ("../a", "", "a/b", "a.b", "x" * 200):
        with pytest.raises(UniTimeError, match="key"):
            FeatureCache(tmp_path).get(key)
    with pytest.raises(UniTimeError, match="limit_bytes: -1"):
        FeatureCache(tmp_path, limit_bytes=-1)


def test_the_longest_unused_go_first(tmp_path: Path) -> None:
    big = {"x": torch.zeros(1000)}
    cache = FeatureCache(tmp_path / "cache", limit_bytes=3 * one_size(tmp_path, big))
    for age, key in enumerate("abc"):
        cache.put(key, big)
        os.utime(cache.folder / f"{key}.safetensors", ns=(age, age))
    assert cache.get("a") is not None  # used again, so b is now the oldest
    cache.put("d", big)
    assert [path.stem for path in entries(cache.folder)] == ["a", "c", "d"]
    assert held(cache.folder) <= cache.limit_bytes
    cache.put("d", big)  # replacing needs no more room
    assert [path.stem for path in entries(cache.folder)] == ["a", "c", "d"]


def test_what_is_larger_than_the_limit_is_not_kept(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, limit_bytes=1000)
    cache.put("small", {"x": torch.zeros(10)})
    cache.put("large", {"x": torch.zeros(10000)})
    assert cache.get("large") is None
    assert cache.get("small") is not None


@pytest.mark.parametrize("harm", ["cut", "empty", "flipped", "text", "header"])
def test_a_damaged_entry_is_deleted_and_can_be_made_anew(tmp_path: Path, harm: str, caplog: object) -> None:
    cache = FeatureCache(tmp_path)
    cache.put("a", TENSORS)
    path = tmp_path / "a.safetensors"
    raw = bytearray(path.read_bytes())
    if harm == "flipped":
        raw[-3] ^= 1
    elif harm == "header":
        raw[:8] = b"\xff" * 8
    path.write_bytes({"cut": raw[:-5], "empty": b"", "text": b"no features here"}.get(harm, bytes(raw)))
    assert cache.get("a") is None
    assert not path.exists()
    assert "is damaged" in caplog.text  # type: ignore[attr-defined]
    cache.put("a", TENSORS)
    assert same(cache.get("a"), TENSORS)


def test_a_disk_that_is_full_is_said_once_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(path: Path, content: bytes) -> int:
        with path.open("wb") as file:
            file.write(content[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    cache = FeatureCache(tmp_path)
    cache.put("a", TENSORS)
    cache.put("b", TENSORS)
    assert cache.get("a") is None
    assert list(tmp_path.iterdir()) == []
    assert caplog.text.count("No space left on device") == 1


def test_folders_that_cannot_be_written_break_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    for folder in (tmp_path / "file" / "cache", Path("/proc/unitime")):
        cache = FeatureCache(folder)
        cache.put("a", TENSORS)
        cache.put("b", TENSORS)
        assert cache.get("a") is None
        assert caplog.text.count(str(folder)) == 1


def test_what_dead_writers_left_is_removed_and_what_living_ones_write_is_not(tmp_path: Path) -> None:
    (tmp_path / ".gone.safetensors.x1.part").write_bytes(b"half")
    path, lock = module.claim(tmp_path / "other.safetensors")
    FeatureCache(tmp_path).put("a", TENSORS)
    assert not (tmp_path / ".gone.safetensors.x1.part").exists()
    assert path.exists()
    lock.close()


WORKER = """
import sys, random, torch
from unitime.features import FeatureCache
folder, seed, limit = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
cache, draw, hits = FeatureCache(folder, limit_bytes=limit), random.Random(seed), 0
print("ready", flush=True)
sys.stdin.readline()
for _ in range(100):
    name = draw.randrange(12)
    found = cache.get(f"k{name}")
    if found is None:
        cache.put(f"k{name}", {"x": torch.full((2000,), float(name))})
    else:
        hits += 1
        assert torch.equal(found["x"], torch.full((2000,), float(name))), name
print(hits)
"""


def test_several_processes_share_a_folder_and_its_limit(tmp_path: Path) -> None:
    limit = 6 * one_size(tmp_path, {"x": torch.zeros(2000)})
    folder = tmp_path / "shared"
    pipe = subprocess.PIPE
    workers = [
        subprocess.Popen([sys.executable, "-c", WORKER, str(folder), str(seed), str(limit)],
                         stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        for seed in range(3)
    ]  # fmt: skip
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
    for worker in workers:  # all at once
        assert worker.stdin is not None
        worker.stdin.write("\n")
        worker.stdin.flush()
    for worker in workers:
        out, said = worker.communicate(timeout=120)
        assert worker.returncode == 0, said
        assert said == ""
        assert int(out) > 0
    assert 0 < held(folder) <= limit
    assert list(folder.glob(".*.part")) == []


def test_threads_share_a_cache(tmp_path: Path) -> None:
    cache, wrong = FeatureCache(tmp_path, limit_bytes=50_000), []

    def work(number: int) -> None:
        for turn in range(20):
            name = (number + turn) % 8
            found = cache.get(f"k{name}")
            if found is None:
                cache.put(f"k{name}", {"x": torch.full((2000,), float(name))})
            elif not (found["x"] == name).all():
                wrong.append(name)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert held(tmp_path) <= 50_000


def test_the_folder_is_the_users_unless_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("UNITIME_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "unitime"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert FeatureCache().folder == tmp_path / ".cache" / "unitime"
    monkeypatch.setenv("UNITIME_CACHE", str(tmp_path / "mine"))
    assert FeatureCache().folder == tmp_path / "mine"
