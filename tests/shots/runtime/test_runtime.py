"""Device and dtype choice, weights, run log, time budget, checkpoints."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from shots.errors import ShotsError
from shots.runtime import device as device_module
from shots.runtime.budget import TimeBudget
from shots.runtime.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from shots.runtime.device import pick_device, pick_dtype
from shots.runtime.runlog import RunLog
from shots.runtime.weights import load_into, load_tensors, resolve, save_tensors, sha256_file


def test_unknown_and_absent_devices_are_refused() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    with pytest.raises(ShotsError, match="device: 'toaster'"):
        pick_device("toaster")
    with pytest.raises(ShotsError, match="device: 'cuda:99' is not present"):
        pick_device("cuda:99")


@pytest.mark.parametrize(
    ("flags", "dtype"), [({"avx512_bf16": True}, torch.bfloat16), ({"avx512_f": True}, torch.float32)]
)
def test_the_cpu_flags_choose_the_dtype(
    monkeypatch: pytest.MonkeyPatch, flags: dict[str, bool], dtype: torch.dtype
) -> None:
    monkeypatch.setattr(device_module.torch.cpu, "get_capabilities", lambda: flags)
    chosen, reason = pick_dtype(torch.device("cpu"))
    assert chosen == dtype
    assert "CPU" in reason


def test_a_requested_dtype_is_taken_and_an_unknown_one_refused() -> None:
    assert pick_dtype(torch.device("cpu"), "fp32") == (torch.float32, "as requested")
    with pytest.raises(ShotsError, match="dtype: 'int4'"):
        pick_dtype(torch.device("cpu"), "int4")


def test_transformers_and_torchvision_import_beside_this_torch() -> None:
    code = (
        "from shots.runtime.vision import torchvision, transformers\n"
        "t = transformers(); t.BertModel; v = torchvision()\n"
        "from torchvision.transforms import v2; import torch\n"
        "print(v2.Resize((4, 6))(torch.zeros(3, 8, 8)).shape)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "[3, 4, 6]" in done.stdout


def test_the_guard_stands_aside_when_torchvision_is_absent() -> None:
    code = (
        "import importlib.util as u; real = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'torchvision' else real(name, *rest)\n"
        "from shots.runtime.vision import _guard; print(_guard())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "None"


def test_tensors_come_back_from_one_file_and_from_shards(tmp_path: Path) -> None:
    state = {f"layer.{i}": torch.randn(50, 10) for i in range(5)} | {"half": torch.ones(3, dtype=torch.bfloat16)}
    assert save_tensors(state, tmp_path / "one") == ["model.safetensors"]
    names = save_tensors(state, tmp_path / "many", max_shard_bytes=4500)
    assert len(names) == 3
    for folder in ("one", "many"):
        loaded = load_tensors(tmp_path / folder)
        assert loaded.keys() == state.keys()
        assert all(torch.equal(loaded[name], state[name]) for name in state)


def test_a_new_save_removes_the_shards_of_the_old_one(tmp_path: Path) -> None:
    save_tensors({f"{i}": torch.zeros(100) for i in range(4)}, tmp_path, max_shard_bytes=500)
    save_tensors({"only": torch.ones(2)}, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    assert load_tensors(tmp_path).keys() == {"only"}


def test_views_and_tied_weights_can_be_saved(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    save_tensors({"a": base, "b": base, "c": base.T}, tmp_path)
    assert torch.equal(load_tensors(tmp_path)["c"], base.T)


def test_corrupted_missing_and_foreign_files_are_named(tmp_path: Path) -> None:
    save_tensors({"a": torch.zeros(100)}, tmp_path)
    file = tmp_path / "model.safetensors"
    good = {"model.safetensors": sha256_file(file)}
    load_tensors(tmp_path, expected_sha256=good)
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    with pytest.raises(ShotsError, match=r"model\.safetensors is corrupted \(SHA-256"):
        load_tensors(tmp_path, expected_sha256=good)
    file.write_bytes(raw[:40])
    with pytest.raises(ShotsError, match="not a whole safetensors file"):
        load_tensors(tmp_path)
    file.unlink()
    with pytest.raises(ShotsError, match=r"model\.safetensors is missing"):
        load_tensors(tmp_path)


def test_weights_that_do_not_fit_are_named_and_nothing_is_loaded(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    shapes = {"0.weight": (3, 2), "0.bias": (4,), "1.weight": (1, 3), "2.bias": (1,)}
    wrong = {name: torch.ones(shape) for name, shape in shapes.items()}
    with pytest.raises(ShotsError, match="do not fit the toy") as caught:
        load_into(module, wrong, "the toy")
    for part in ("missing: 1.bias", "unexpected: 2.bias", r"0.bias is (4,), the model wants (3,)"):
        assert part in str(caught.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_a_name_is_shipped_a_folder_or_a_hub_id(tmp_path: Path) -> None:
    shipped = {"nano": tmp_path}
    assert resolve("nano", shipped) == tmp_path
    assert resolve(tmp_path, {}) == tmp_path
    with pytest.raises(ShotsError, match="'nano2' is no shipped model \\(nano\\)"):
        resolve("nano2", shipped)
    with pytest.raises(ShotsError, match="shipped weights of 'gone' are missing"):
        resolve("gone", {"gone": tmp_path / "no"})
    with pytest.raises(ShotsError, match="'nobody/nothing' is not in the cache and the hub cannot be reached"):
        resolve("nobody/nothing", shipped)


def test_the_run_log_is_one_json_object_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = RunLog(tmp_path / "new" / "log.jsonl")
    log.write(step=1, loss=torch.tensor(0.25), rate=float("nan"), path=tmp_path)
    RunLog(tmp_path / "new" / "log.jsonl", quiet=True).write(step=2)
    rows = [json.loads(line, parse_constant=pytest.fail) for line in log.path.read_text().splitlines()]  # type: ignore[union-attr]
    assert [row["step"] for row in rows] == [1, 2]
    assert rows[0]["loss"] == 0.25
    assert rows[0]["rate"] == "nan"
    assert rows[0]["time"] > 1e9
    assert capsys.readouterr().err.startswith("step 1  loss 0.25")


def test_a_budget_runs_out_and_no_budget_never_does(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    budget, free = TimeBudget(10, _start=100.0), TimeBudget(_start=100.0)
    now[0] = 105.0
    assert budget.elapsed == 5.0
    assert budget.fraction == 0.5
    assert not budget.expired
    now[0] = 111.0
    assert budget.fraction == 1.0
    assert budget.expired
    assert free.fraction == 0.0
    assert not free.expired


def test_checkpoints_keep_the_newest_and_come_back_equal(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path / "none") is None
    for step in (1, 2, 30):
        save_checkpoint(tmp_path, step, {"step": step, "w": torch.full((2,), float(step)), "nested": {"a": [1, None]}})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002.pt", "step-00000030.pt"]
    latest = latest_checkpoint(tmp_path)
    assert latest is not None
    state = load_checkpoint(latest)
    assert state["step"] == 30
    assert torch.equal(state["w"], torch.full((2,), 30.0))
    assert state["nested"] == {"a": [1, None]}


def test_a_save_that_dies_leaves_the_last_checkpoint_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, 1, {"step": 1})

    def full(state: object, file: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(torch, "save", full)
        save_checkpoint(tmp_path, 2, {"step": 2})
    assert load_checkpoint(latest_checkpoint(tmp_path) or "")["step"] == 1
    save_checkpoint(tmp_path, 3, {"step": 3})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001.pt", "step-00000003.pt"]


def test_a_broken_checkpoint_is_named(tmp_path: Path) -> None:
    path = tmp_path / "step-00000001.pt"
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(ShotsError, match=r"step-00000001\.pt cannot be read"):
        load_checkpoint(path)
    with pytest.raises(ShotsError, match="does not exist"):
        load_checkpoint(tmp_path / "step-9.pt")
