"""Latents and token states of a folder of clips, made once for an open checkpoint: task ``open-latents``.

    seedance train wan-1b3-lora-latents model=Wan-AI/Wan2.1-T2V-1.3B-Diffusers folder=my-clips

Notable choices:

- Buckets: every file goes to the bucket whose ratio of sides is nearest among those it is long enough for, the longest
  of them first. So a portrait is not cut to a landscape, and a batch has one shape.
- A clip is one small file of latents, a caption one file of token states, both named by what they are made from (file,
  window, size, caption): a stopped run goes on, a changed clip is made anew, equal captions are encoded once.
- ``cache.json`` holds the fingerprint: hashes of the VAE, the text encoder and the tokenizer, and how their results are
  kept. A cache that does not fit the checkpoint is refused by name, here and by the trainer.
- Latents are the means of the VAE's posterior, normalised per channel, as Wan was trained; token states are kept
  without the padding, which is zeros (and is shown to the model: it was trained with it).
- The VAE and the text encoder are in memory one after the other, never together, and the transformer not at all.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from seedance.engines.fingerprint import fingerprint, fingerprints
from seedance.engines.folder import Checkpoint, diffusers, load_part, open_checkpoint, open_remote
from seedance.errors import SeedanceError
from shots.clip import Clip
from shots.errors import ShotsError
from shots.folder import PICTURES, captioned_files, clips_in_file
from shots.runtime.budget import TimeBudget
from shots.runtime.device import pick_device, pick_dtype
from shots.runtime.runlog import RunLog
from shots.runtime.weights import locate
from shots.script import Script

CACHE = "cache.json"
INDEX = "clips.jsonl"
TEXT_LENGTH = 512  # tokens a caption is padded to, the pipelines' own
_MOST_TEXTS = 256  # captions whose states are held in memory (1 GB of UMT5-XXL's)
_VERSION = 1  # of what is kept; another one is another cache


@dataclass(frozen=True)
class OpenBucket:
    """Clips of one shape: pixels, frames (1 + 4n; 1 takes pictures) and frames a second."""

    height: int
    width: int
    frames: int
    fps: float = 16.0

    @property
    def seconds(self) -> float:
        return self.frames / self.fps


@dataclass(frozen=True)
class OpenLatentsRecipe:
    """What ``task: open-latents`` reads.

    Attributes:
        out: the cache.
        model: folder or hub id of a Wan checkpoint in diffusers' layout. revision: of the hub id.
        folder: clips and pictures with captions, see :mod:`shots.folder`.
        buckets: name -> height, width, frames, fps.
        prompts: more words to be encoded, those of the samples that the trainer draws.
        negative_prompt: of those samples; None is the family's own.
        vae_dtype: numbers the VAE computes in; part of the fingerprint.
        device: None is the best one present. threads: of torch; None is its own choice.
        time_budget: seconds after which the run ends cleanly; the next one goes on.
    """

    task: str
    out: Path
    model: str
    folder: str
    buckets: dict[str, Any]
    prompts: list[str] = field(default_factory=list)
    negative_prompt: str | None = None
    revision: str | None = None
    vae_dtype: str = "fp32"
    device: str | None = None
    threads: int | None = None
    time_budget: float | None = None


def find_checkpoint(model: str, revision: str | None = None) -> Checkpoint:
    """The checked checkpoint of a folder or hub id. Raises SeedanceError unless it is one of Wan's that makes film from
    words with one transformer (2.1 T2V, 2.2 TI2V), which is found out before a hub id's weights are fetched."""
    try:
        found = locate(model, {}, revision)
    except ShotsError as error:
        raise SeedanceError(str(error)) from error
    checkpoint = open_checkpoint(found) if isinstance(found, Path) else open_remote(found)
    if checkpoint.family.name != "Wan":
        raise SeedanceError(f"model: {model} is of the family {checkpoint.family.name}; only Wan's are trained here")
    if "transformer_2" in checkpoint.parts:
        raise SeedanceError(f"model: {model} has two experts; only checkpoints with one transformer are trained here")
    wanted, given = checkpoint.config("vae").get("z_dim"), checkpoint.config("transformer").get("in_channels")
    if wanted != given:
        raise SeedanceError(
            f"model: the transformer in {model} takes {given} channels, its VAE has {wanted}: it also wants a "
            "picture; take a T2V or TI2V checkpoint"
        )
    if isinstance(found, Path):
        return checkpoint
    try:
        return open_checkpoint(found.fetch())
    except ShotsError as error:
        raise SeedanceError(str(error)) from error


def read_buckets(said: Mapping[str, Any], checkpoint: Checkpoint) -> dict[str, OpenBucket]:
    """The buckets of a recipe, checked against the checkpoint's geometry. Raises SeedanceError naming the bucket."""
    if not said:
        raise SeedanceError("buckets: give at least one, such as {wide: {height: 480, width: 832, frames: 81}}")
    time, space = _ratios(checkpoint)
    side = space * int(checkpoint.config("transformer").get("patch_size", (1, 2, 2))[1])
    buckets = {}
    for name, keys in said.items():
        try:
            bucket = OpenBucket(**keys)
        except TypeError as error:
            raise SeedanceError(f"buckets.{name}: {error}; its keys are height, width, frames, fps") from error
        if bucket.height % side or bucket.width % side or min(bucket.height, bucket.width) < side:
            raise SeedanceError(
                f"buckets.{name}: {bucket.height} x {bucket.width}; this checkpoint wants multiples of {side}"
            )
        if bucket.frames < 1 or (bucket.frames - 1) % time or not bucket.fps > 0:
            raise SeedanceError(
                f"buckets.{name}: {bucket.frames} frames at {bucket.fps:g}; 1 + {time}n above 0 are needed"
            )
        buckets[name] = bucket
    return buckets


def choose_bucket(height: int, width: int, seconds: float | None, buckets: Mapping[str, OpenBucket]) -> str | None:
    """The bucket for a video of that size and length, or for a picture (``seconds`` None); None where none fits."""
    if seconds is None:
        able = {name: b for name, b in buckets.items() if b.frames == 1}
    else:
        able = {name: b for name, b in buckets.items() if 1 < b.frames <= round(seconds * b.fps)}
    if not able:
        return None
    ratio = math.log(width / height)
    return min(able, key=lambda n: (abs(math.log(able[n].width / able[n].height) - ratio), -able[n].seconds))


def caption_of(clip: Clip) -> str:
    """A clip's words as one prompt: its shots' captions in order, then that of the whole."""
    return _joined([shot.caption for shot in clip.shots] + [clip.caption])


def _joined(captions: Sequence[str]) -> str:
    """Different captions as sentences; a single one as it stands."""
    parts = list(dict.fromkeys(part.strip() for part in captions if part.strip()))
    return parts[0] if len(parts) == 1 else " ".join(p if p[-1] in ".!?" else f"{p}." for p in parts)


# ---------------------------------------------------------------------- the fingerprint


def made_by(checkpoint: Checkpoint, vae_dtype: str) -> dict[str, Any]:
    """What the latents and token states of a cache depend on beside the clips."""
    hashes = fingerprints(checkpoint)
    tokenizer = {
        file.name: fingerprint(file) for file in sorted((checkpoint.folder / "tokenizer").iterdir()) if file.is_file()
    }
    return {
        "vae": {name: h for name, h in hashes.items() if name.startswith("vae/")},
        "text encoder": {name: h for name, h in hashes.items() if name.startswith("text_encoder/")},
        "tokenizer": tokenizer,
        "preprocessing": {"version": _VERSION, "vae_dtype": vae_dtype, "text_length": TEXT_LENGTH},
    }


def check_cache(folder: Path, checkpoint: Checkpoint) -> None:
    """Refuses a cache made with another VAE, text encoder or preprocessing than the checkpoint's, and none at all."""
    path = folder / CACHE
    if not path.is_file():
        raise SeedanceError(f"cache: {folder} holds no latents yet; run its latents recipe first")
    found = json.loads(path.read_text(encoding="utf-8"))
    dtype = found.get("preprocessing", {}).get("vae_dtype", "fp32")
    _compare(folder, found, made_by(checkpoint, dtype))


def _compare(folder: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    differ = [key for key in wanted if found.get(key) != wanted[key]]
    if differ:
        raise SeedanceError(
            f"cache: {folder} was made with another {' and '.join(differ)}; delete it, or name another out or model"
        )


# ---------------------------------------------------------------------- making


def build_open_cache(recipe: OpenLatentsRecipe) -> Path:
    """Encodes what the cache does not hold yet of a folder. Returns the cache."""
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    checkpoint = find_checkpoint(recipe.model, recipe.revision)
    buckets = read_buckets(recipe.buckets, checkpoint)
    out = recipe.out
    (out / "clips").mkdir(parents=True, exist_ok=True)
    (out / "text").mkdir(exist_ok=True)
    wanted = made_by(checkpoint, recipe.vae_dtype)
    if (out / CACHE).is_file():
        _compare(out, json.loads((out / CACHE).read_text(encoding="utf-8")), wanted)
    else:
        _write_text(out / CACHE, json.dumps(wanted, indent=1) + "\n")
    log = RunLog(out / "log.jsonl")
    clock = TimeBudget(recipe.time_budget)
    device = pick_device(recipe.device)
    rows = _encode_clips(recipe, checkpoint, buckets, device, lambda: clock.expired, log.write)
    negative = recipe.negative_prompt
    if negative is None:
        negative = str(checkpoint.family.start(checkpoint).negative_prompt or "")
    captions = [*(row["caption"] for row in rows), *recipe.prompts, "", negative]
    _encode_text(out, checkpoint, captions, device, log.write)
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    _write_text(out / INDEX, "\n".join(lines) + "\n")
    about = {
        "buckets": {name: asdict(bucket) for name, bucket in buckets.items()},
        "prompts": recipe.prompts, "negative_prompt": negative, "clips": len(rows), "finished": not clock.expired,
    }  # fmt: skip
    _write_text(out / "about.json", json.dumps(about, indent=1, ensure_ascii=False) + "\n")
    log.write(event="cache", clips=len(rows), captions=len(set(captions)), finished=not clock.expired)
    return out


def _encode_clips(
    recipe: OpenLatentsRecipe, checkpoint: Checkpoint, buckets: Mapping[str, OpenBucket], device: torch.device,
    until: Callable[[], bool], tell: Callable[..., None],
) -> list[dict[str, Any]]:  # fmt: skip
    """Latents of every clip of the folder; those there are stay. Returns the index."""
    vae: Any = None
    rows: list[dict[str, Any]] = []
    made = 0
    for file, script, events in captioned_files(recipe.folder):
        height, width, seconds = _measured(file)
        name = choose_bucket(height, width, seconds, buckets)
        if name is None:
            length = "a picture" if seconds is None else f"{seconds:.2f} s"
            tell(event="left out", file=str(file), why=f"{length} fits no bucket")
            continue
        bucket = buckets[name]
        stat = file.stat()
        known = [str(file), stat.st_size, stat.st_mtime_ns, asdict(bucket)]
        if script is not None and len(script.shots) > 1:
            known.append(script.to_dict())  # which window shows which shot
        clips = clips_in_file(file, script, bucket.frames, (bucket.height, bucket.width), bucket.fps, events)
        windows = list(_kept(recipe.out, known))
        if not windows:
            if until():
                break
            if vae is None:
                vae = load_part(checkpoint, "vae", pick_dtype(device, recipe.vae_dtype)[0], device)
            for clip in clips:
                if clip.frames is None or len(clip.frames) < bucket.frames:
                    continue  # what is left of a video after its last whole window
                key = _key(*known, len(windows))
                _write(recipe.out / "clips" / f"{key}.safetensors", {"latents": encode(vae, clip.frames[None])[0]})
                windows.append({"key": key, "bucket": name, "caption": caption_of(clip), "source": clip.source})
                made += 1
            _write_text(_note(recipe.out, known), json.dumps(windows, ensure_ascii=False))
            tell(event="latents", file=str(file), bucket=name, clips=made)
        rows += [{**row, "bucket": name, "caption": _caption(row, script)} for row in windows]
    if not rows:
        raise SeedanceError(f"folder: no clip of {recipe.folder} fits a bucket ({', '.join(buckets)})")
    return rows


def _caption(row: Mapping[str, Any], script: Script | None) -> str:
    """The caption of a kept clip: a file of one shot may have got other words since its latents were made."""
    if script is not None and len(script.shots) == 1:
        return _joined([script.shots[0].caption, script.caption or ""])
    return str(row["caption"])


def _note(out: Path, known: Sequence[Any]) -> Path:
    return out / "clips" / f"{_key(*known)}.json"


def _kept(out: Path, known: Sequence[Any]) -> Iterator[dict[str, Any]]:
    """The clips of a file that are there already, all or none."""
    note = _note(out, known)
    if note.is_file():
        windows = json.loads(note.read_text(encoding="utf-8"))
        if all((out / "clips" / f"{row['key']}.safetensors").is_file() for row in windows):
            yield from windows


def _measured(file: Path) -> tuple[int, int, float | None]:
    """Height, width and seconds of a file; a picture has none."""
    if file.suffix.lower() in PICTURES:
        from shots.images import read_image

        height, width, _ = read_image(file).shape
        return height, width, None
    from shots.video import probe

    info = probe(file)
    return info.height, info.width, info.duration - info.start


@torch.no_grad()
def encode(vae: Any, frames: Tensor) -> Tensor:
    """Normalised latents (B, C, t, h, w) bfloat16 on the CPU of frames uint8 (B, T, H, W, 3)."""
    x = frames.permute(0, 4, 1, 2, 3).to(vae.device).float() / 127.5 - 1  # (B, 3, T, H, W)
    found = vae.encode(x.to(vae.dtype)).latent_dist.mode().float()  # (B, C, t, h, w)
    mean, std = _statistics(vae, found)
    return ((found - mean) / std).to(torch.bfloat16).cpu()


def _statistics(vae: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    shape = (1, -1, 1, 1, 1)
    mean = torch.tensor(vae.config.latents_mean, device=like.device).view(shape)
    return mean, torch.tensor(vae.config.latents_std, device=like.device).view(shape)


@torch.no_grad()
def _encode_text(
    out: Path, checkpoint: Checkpoint, captions: Sequence[str], device: torch.device, tell: Callable[..., None]
) -> None:
    """Token states of every caption that has none yet, by the pipeline's own cleaning and padding."""
    missing = [words for words in dict.fromkeys(captions) if not _text_path(out, words).is_file()]
    if not missing:
        return
    encoder = load_part(checkpoint, "text_encoder", pick_dtype(device)[0], device)
    pipe = diffusers().WanPipeline(
        tokenizer=load_part(checkpoint, "tokenizer"), text_encoder=encoder, vae=None, scheduler=None, transformer=None
    )
    for words in missing:
        states, _ = pipe.encode_prompt(words, None, False, max_sequence_length=TEXT_LENGTH, device=device)
        real = int(states[0].ne(0).any(dim=1).nonzero().max()) + 1 if bool(states.ne(0).any()) else 0  # tokens
        if not torch.isfinite(states).all() or not real:
            raise SeedanceError(f"text encoder: {words!r} became zeros or no numbers; fetch the model again")
        _write(_text_path(out, words), {"states": states[0, :real].to(torch.bfloat16).cpu()})
    tell(event="text", captions=len(missing))


def _text_path(out: Path, words: str) -> Path:
    return out / "text" / f"{_key(words)}.safetensors"


def _ratios(checkpoint: Checkpoint) -> tuple[int, int]:
    """Frames and pixels of a latent cell."""
    config = checkpoint.config("vae")
    return int(config.get("scale_factor_temporal") or 4), int(config.get("scale_factor_spatial") or 8)


def _key(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode()).hexdigest()[:24]


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    temporary = path.with_name(f".{path.name}.part")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)
    temporary.replace(path)


def _write_text(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


# ---------------------------------------------------------------------- reading


@dataclass
class OpenBatch:
    """What a step takes: latents (B, C, t, h, w) float32, token states (B, 512, D) with their padding, those of no
    words (512, D), and the bucket's name."""

    latents: Tensor
    text: Tensor
    empty: Tensor
    bucket: str

    def __len__(self) -> int:
        return len(self.latents)

    def to(self, device: torch.device | str) -> OpenBatch:
        """On another device."""
        return OpenBatch(self.latents.to(device), self.text.to(device), self.empty.to(device), self.bucket)


class OpenStore:
    """A cache as it is read: batches of one bucket, by number."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        try:
            lines = (self.folder / INDEX).read_text(encoding="utf-8").splitlines()
            self.about = json.loads((self.folder / "about.json").read_text(encoding="utf-8"))
        except OSError as error:
            why = f"cache: {folder} holds no clips yet ({error}); run its latents recipe first"
            raise SeedanceError(why) from error
        self.buckets: dict[str, list[dict[str, Any]]] = {}
        for row in map(json.loads, lines):
            self.buckets.setdefault(row["bucket"], []).append(row)
        self._states: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return sum(map(len, self.buckets.values()))

    def text(self, words: str) -> Tensor:
        """Token states (512, D) bfloat16 of words that the cache holds. Raises SeedanceError for others."""
        if words not in self._states:
            path = _text_path(self.folder, words)
            if not path.is_file():
                raise SeedanceError(f"cache: it has no token states of {words!r}; run its latents recipe with it")
            states = load_file(path)["states"]
            if len(self._states) >= _MOST_TEXTS:
                self._states.pop(next(iter(self._states)))
            self._states[words] = torch.nn.functional.pad(states, (0, 0, 0, TEXT_LENGTH - len(states)))
        return self._states[words]

    def latents(self, row: Mapping[str, Any]) -> Tensor:
        """Latents (C, t, h, w) bfloat16 of a clip."""
        path = self.folder / "clips" / f"{row['key']}.safetensors"
        if not path.is_file():
            raise SeedanceError(f"cache: {path} is missing; run the latents recipe again")
        return load_file(path)["latents"]

    def batch(self, number: int, size: int, seed: int) -> OpenBatch:
        """Batch `number`: clips of one bucket, drawn by how many there are; the same for the same number."""
        generator = torch.Generator().manual_seed((seed * 7_368_787 + 15_485_863 + number) % 2**63)
        names = list(self.buckets)
        weights = torch.tensor([float(len(self.buckets[name])) for name in names])
        name = names[int(torch.multinomial(weights, 1, generator=generator))]
        rows = [self.buckets[name][i] for i in torch.randint(len(self.buckets[name]), (size,), generator=generator)]
        return OpenBatch(
            torch.stack([self.latents(row) for row in rows]).float(),
            torch.stack([self.text(row["caption"]) for row in rows]),
            self.text(""),
            name,
        )
