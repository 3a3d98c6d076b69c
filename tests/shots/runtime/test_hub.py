"""Hub ids: a gated one, one that is not there, no network, and a snapshot whose download stopped, through the real
client, against a server on this machine."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from shots.errors import ShotsError
from shots.runtime.weights import resolve

COMMIT = "0" * 40


class Hub(BaseHTTPRequestHandler):
    """Refuses every repository, as the hub does: the header says why."""

    def do_GET(self) -> None:
        code, why = (403, "GatedRepo") if "gated" in self.path else (404, "RepoNotFound")
        if "kept" in self.path:
            code, why = 404, "RevisionNotFound"
        self.send_response(code)
        self.send_header("X-Error-Code", why)
        self.send_header("X-Error-Message", why)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *said: Any) -> None:
        pass


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub's client."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture
def online(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The client asks a server on this machine."""
    import huggingface_hub

    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", address)
        yield
        server.shutdown()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("owner/gated", r"is gated; accept its terms on its page .*hf auth login.* or set HF_TOKEN"),
        ("owner/none", r"the hub has no 'owner/none', or it is private; check the name, or set HF_TOKEN"),
        ("owner/kept", r"has no revision 'v9' on the hub; leave it out"),
    ],
)
def test_what_the_hub_refuses_is_said_with_the_way_out(online: None, name: str, said: str) -> None:
    with pytest.raises(ShotsError, match=said) as found:
        resolve(name, {}, "v9")
    assert "\n" not in str(found.value)


def test_without_a_network_the_command_to_run_elsewhere_is_said(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", "http://127.0.0.1:9")  # where nobody listens
    with pytest.raises(ShotsError, match=r"not in the cache and the hub cannot be reached; run `hf download owner/x`"):
        resolve("owner/x", {})


def snapshot(cache: Path, name: str, files: dict[str, str | None]) -> Path:
    """A repository in the client's cache; a file of None is known and not there yet."""
    place = cache / f"models--{name.replace('/', '--')}"
    folder = place / "snapshots" / COMMIT
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(COMMIT)
    (place / "blobs").mkdir()
    for file, text in files.items():
        target = folder / file
        target.parent.mkdir(parents=True, exist_ok=True)
        blob = place / "blobs" / file.replace("/", "-")
        if text is None:
            blob.with_name(f"{blob.name}.incomplete").write_text("half")
            continue
        blob.write_text(text)
        target.symlink_to(blob)
    return folder


def test_a_snapshot_is_found_offline_and_what_a_stopped_download_lacks_is_named(cache: Path) -> None:
    from seedance import Seedance, SeedanceError
    from unitime import UniTime, UniTimeError

    parts = {"transformer": ["diffusers", "WanTransformer3DModel"], "vae": ["diffusers", "AutoencoderKLWan"],
             "text_encoder": ["transformers", "UMT5EncoderModel"]}  # fmt: skip
    index = json.dumps({"_class_name": "WanPipeline", **parts})
    weights = "transformer/diffusion_pytorch_model.safetensors"
    folder = snapshot(cache, "owner/wan", {"model_index.json": index, "transformer/config.json": "{}", weights: None})
    assert resolve("owner/wan", {}) == folder
    with pytest.raises(SeedanceError, match=r"transformer holds no weights .*; fetch the model again"):
        Seedance.from_pretrained("owner/wan", device="cpu")
    where = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    snapshot(cache, "owner/qwen", {
        "config.json": json.dumps({"model_type": "qwen2_vl"}), "tokenizer.json": "{}",
        "model.safetensors.index.json": json.dumps({"weight_map": where}), **dict.fromkeys(where.values()),
    })  # fmt: skip
    with pytest.raises(UniTimeError, match=r"model-00001-of-00002\.safetensors is missing; fetch the model again"):
        UniTime.from_pretrained("owner/qwen", device="cpu")
