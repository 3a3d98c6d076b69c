"""The latent cache: clips drawn or read once, encoded once, their words encoded once, then read many times.

Notable choices:

- Two passes that may run at different times. *Frames* (worker processes, needs no model) writes uint8 shards; *latents*
  (needs the VAE and the text encoder) turns each into latents, labels and token states. Drawing can so begin before the
  VAE is trained, and the trainer may start while shards are still arriving.
- A bucket is one size: every clip in it has the same frames per shot, so a shard is a stack of tensors and a training
  batch is a few gathers.
- Each shot is encoded on its own, as the pipeline decodes it.
- Captions come in several wordings; equal captions are encoded once per shard, token states stored flat with an index.
- The fingerprint (encoder half of the VAE, text encoder, stage version) is stored with the cache. A cache that does not
  fit the run is refused by name: silently training on the latents of another VAE costs a night.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import multiprocessing
import os
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from seedance.conditioning import PADDING, Conditioning, shot_times
from seedance.errors import SeedanceError
from seedance.shapes import RATIO_S, RATIO_T, VideoShape
from seedance.text import TextEncoder
from seedance.vae import VideoVAE
from shots.clip import Clip, ClipShot
from shots.runtime.budget import TimeBudget
from shots.runtime.device import pick_device, pick_dtype
from shots.runtime.runlog import RunLog


@dataclass(frozen=True)
class Bucket:
    """Clips of one size.

    Attributes:
        name: of its folder in the cache.
        height, width: pixels, multiples of 16.
        frames: of each shot, 1 + 4n.
        fps: frames per second.
        shots: of each clip.
        clips: how many.
        seed: of the first clip; clip i of the stage has seed ``seed + i``.
        folder: a folder of clips with captions, or a pack of them (see :mod:`shots.folder`); None draws on the stage.
        wordings: captions written per clip (stage only; a folder's captions stand as they are).
        actors: of each clip (stage only); None draws one to three.
    """

    name: str
    height: int
    width: int
    frames: int
    fps: float
    shots: int = 1
    clips: int = 1000
    seed: int = 0
    folder: str | None = None
    wordings: int = 2
    actors: int | None = None

    def __post_init__(self) -> None:
        try:
            VideoShape(self.frames, self.height, self.width).latent  # noqa: B018  (raises for sizes that do not fit)
        except SeedanceError as error:
            raise SeedanceError(f"bucket {self.name}: {error}") from error
        if self.shots < 1 or self.clips < 1 or self.wordings < 1 or self.fps <= 0:
            raise SeedanceError(f"bucket {self.name}: shots, clips, wordings and fps must be above 0")

    @property
    def shot_latents(self) -> list[int]:
        """Latent frames of each shot."""
        return [VideoShape(self.frames, RATIO_S, RATIO_S).latent.frames] * self.shots

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(t, h, w) of a clip's latents."""
        return (sum(self.shot_latents), self.height // RATIO_S, self.width // RATIO_S)

    @classmethod
    def from_dict(cls, name: str, said: dict[str, Any]) -> Bucket:
        """A bucket from a recipe's entry; unknown keys are named."""
        unknown = sorted(set(said) - set(cls.__dataclass_fields__))
        if unknown:
            raise SeedanceError(
                f"bucket {name}: unknown keys {', '.join(unknown)}; known: {', '.join(cls.__dataclass_fields__)}"
            )
        try:
            return cls(name=name, **said)
        except TypeError as error:
            raise SeedanceError(f"bucket {name}: {error}") from error


@dataclass(frozen=True)
class Words:
    """One wording of a clip: the caption of the whole (may be empty) and of each shot."""

    caption: str
    shots: tuple[str, ...]


# ---------------------------------------------------------------------- first pass: frames


@dataclass(frozen=True)
class _Job:
    """Shards of one bucket to draw or read: ``count`` of them from number ``first`` on."""

    bucket: Bucket
    place: Path
    first: int
    count: int
    shard_clips: int
    niceness: int


def build_frames(
    folder: str | Path, buckets: Sequence[Bucket], *, shard_clips: int = 64, workers: int = 1, niceness: int = 0,
    until: Callable[[], bool] = lambda: False, report: Callable[..., None] = lambda **_: None,
) -> int:  # fmt: skip
    """Draws (or reads) what is missing of every bucket, in worker processes. Returns the clips made.

    Args:
        folder: the cache.
        shard_clips: clips in a file.
        workers: processes; each uses one core.
        niceness: added to the workers' niceness, for building beside a training run.
        until: asked between shards; True stops cleanly.
        report: called with fields for the run log.
    """
    if workers < 1 or shard_clips < 1:
        raise SeedanceError(f"workers {workers}, shard_clips {shard_clips}: both must be at least 1")
    jobs = _interleave([_jobs(Path(folder), bucket, shard_clips, niceness) for bucket in buckets])
    if not jobs:
        return 0
    made, started = 0, time.monotonic()
    with multiprocessing.get_context("spawn").Pool(min(workers, len(jobs))) as pool:
        for count, name in pool.imap_unordered(_draw, jobs):
            made += count
            report(event="frames", bucket=name, clips=made, clips_per_s=made / (time.monotonic() - started))
            if until():
                pool.terminate()
                break
    return made


def _jobs(folder: Path, bucket: Bucket, shard_clips: int, niceness: int) -> list[_Job]:
    place = folder / bucket.name
    place.mkdir(parents=True, exist_ok=True)
    shards = -(-bucket.clips // shard_clips)
    if bucket.folder is not None:  # a folder is read front to back, by one worker
        whole = any(place.glob("*.safetensors"))
        return [] if whole else [_Job(bucket, place, 0, shards, shard_clips, niceness)]
    missing = [
        n for n in range(shards) if not _latents_path(place, n).is_file() and not _frames_path(place, n).is_file()
    ]
    return [_Job(bucket, place, n, 1, shard_clips, niceness) for n in missing]


def _interleave(lists: list[list[_Job]]) -> list[_Job]:
    """All buckets grow together, each in proportion to its shards."""
    order = sorted((index / len(jobs), n, index) for n, jobs in enumerate(lists) for index in range(len(jobs)))
    return [lists[n][index] for _, n, index in order]


def _frames_path(place: Path, number: int) -> Path:
    return place / f"frames-{number:05d}.safetensors"


def _latents_path(place: Path, number: int) -> Path:
    return place / f"latents-{number:05d}.safetensors"


def _draw(job: _Job) -> tuple[int, str]:
    """Worker: makes the frame shards of one job."""
    torch.set_num_threads(1)
    if job.niceness:
        os.nice(job.niceness)
    clips = itertools.islice(_clips(job), job.count * job.shard_clips)
    made = 0
    for number in range(job.first, job.first + job.count):
        shard = list(itertools.islice(clips, min(job.shard_clips, job.bucket.clips - number * job.shard_clips)))
        if shard:
            _write_frames(_frames_path(job.place, number), job.bucket, shard)
        made += len(shard)
    if not made:
        size = f"{job.bucket.shots} shots of {job.bucket.frames} frames at {job.bucket.fps:g} a second"
        raise SeedanceError(f"bucket {job.bucket.name}: {job.bucket.folder} holds no clip of {size}")
    return made, job.bucket.name


def _clips(job: _Job) -> Iterator[tuple[Clip, list[Words]]]:
    """The clips of a job from its first on, with their wordings."""
    bucket = job.bucket
    if bucket.folder is not None:
        from shots.folder import clips_in_folder, load_pack

        # Windows are longer than a clip of several shots, whose shots are cut down to the bucket's frames.
        length = bucket.frames * bucket.shots * (4 if bucket.shots > 1 else 1)
        if Path(bucket.folder).suffix == ".safetensors":
            found: Iterable[Clip] = load_pack(bucket.folder)
        else:
            found = clips_in_folder(bucket.folder, length, (bucket.height, bucket.width), bucket.fps)
        for whole in found:
            for made in fit_clip(whole, bucket):
                yield made, [Words(made.caption, tuple(shot.caption for shot in made.shots))]
        return
    from shots.stage import sample

    for seed in itertools.count(bucket.seed + job.first * job.shard_clips):
        drawn = sample(
            seed, height=bucket.height, width=bucket.width, frames=bucket.frames, fps=bucket.fps, shots=bucket.shots,
            actors=bucket.actors,
        )  # fmt: skip
        said = [drawn.clip(random.Random(f"words-{seed}-{wording}")) for wording in range(bucket.wordings)]
        # One shot is its own caption, as a plain prompt is at inference.
        yield (
            said[0],
            [Words(c.caption if bucket.shots > 1 else "", tuple(shot.caption for shot in c.shots)) for c in said],
        )


def fit_clip(clip: Clip, bucket: Bucket) -> Iterator[Clip]:
    """The clips of the bucket's size that ``clip`` of any length holds: each has ``bucket.shots`` neighbouring shots,
    cut down to ``bucket.frames`` frames. A shot that is too short ends a row of neighbours; a picture is one frame."""
    row: list[ClipShot] = []
    for shot in clip.shots:
        row = [*row, shot] if shot.end - shot.start >= bucket.frames else []
        if len(row) == bucket.shots and clip.frames is not None:
            frames = torch.cat([clip.frames[s.start : s.start + bucket.frames] for s in row])
            spans = [ClipShot(s.caption, k * bucket.frames, (k + 1) * bucket.frames) for k, s in enumerate(row)]
            # The caption of the whole counts where there are several shots; one shot is its own caption.
            shared = clip.caption if bucket.shots > 1 or not row[0].caption else ""
            yield Clip(frames, None, clip.fps, tuple(spans), shared, source=clip.source)
            row = []


def _write_frames(path: Path, bucket: Bucket, clips: Sequence[tuple[Clip, list[Words]]]) -> None:
    """Stacks clips of one size into a file, written whole or not at all."""
    for clip, _ in clips:
        lengths = [shot.end - shot.start for shot in clip.shots]
        size = (bucket.frames * bucket.shots, bucket.height, bucket.width)
        if clip.frames is None or tuple(clip.frames.shape[:3]) != size or set(lengths) != {bucket.frames}:
            found = "no frames" if clip.frames is None else f"{tuple(clip.frames.shape)} in shots of {lengths}"
            raise SeedanceError(
                f"bucket {bucket.name}: clip {clip.source!r} has {found}; "
                f"it needs {bucket.shots} shots of {bucket.frames} frames at {bucket.height} x {bucket.width}"
            )
    stacks = {
        "frames": torch.stack([clip.frames for clip, _ in clips if clip.frames is not None])
    }  # (N, T, H, W, 3) uint8
    for name in sorted(set.intersection(*(set(clip.labels) for clip, _ in clips))):
        labels = torch.stack([clip.labels[name] for clip, _ in clips])
        if (
            tuple(labels.shape[1:]) == bucket.latent_shape
        ):  # (N, t, h, w) int8; labels of another form are not for the DiT
            stacks[f"labels.{name}"] = labels.to(torch.int8)
    words = [[{"caption": w.caption, "shots": list(w.shots)} for w in wordings] for _, wordings in clips]
    _write(path, stacks, {"words": json.dumps(words), "bucket": json.dumps(asdict(bucket))})


def _write(path: Path, tensors: dict[str, Tensor], about: dict[str, str]) -> None:
    temporary = path.with_name(f".{path.name}.part")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, metadata=about)
    temporary.replace(path)


def write_buckets(folder: str | Path, buckets: Sequence[Bucket]) -> None:
    """Notes in the cache what its buckets are."""
    path = Path(folder) / "buckets.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({bucket.name: asdict(bucket) for bucket in buckets}, indent=1) + "\n")


def read_buckets(folder: str | Path) -> dict[str, Bucket]:
    """The buckets of a cache by name."""
    path = Path(folder) / "buckets.json"
    if not path.is_file():
        raise SeedanceError(f"cache: {folder} has no buckets.json; make the cache with the latents recipe first")
    return {name: Bucket(**said) for name, said in json.loads(path.read_text()).items()}


# ---------------------------------------------------------------------- second pass: latents and token states


def fingerprint(vae: VideoVAE, text_encoder: str | None) -> dict[str, str]:
    """What latents depend on beside their bucket. The decoder may still improve; the encoder may not change.

    ``vae`` as it was saved (float32), ``text_encoder`` its name.
    """
    from shots.stage import STAGE_VERSION

    digest = hashlib.sha256()
    for name, tensor in sorted(vae.state_dict().items()):
        if not name.startswith("decoder"):
            digest.update(name.encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return {
        "vae_encoder": digest.hexdigest(),
        "text_encoder": text_encoder or "shipped",
        "stage": str(STAGE_VERSION),
    }


def stamp(folder: str | Path, made_by: dict[str, str]) -> None:
    """Notes in a fresh cache what its latents are made by; refuses one made by other models."""
    path = Path(folder) / "cache.json"
    if path.is_file():
        check_fingerprint(folder, made_by)
    else:
        path.write_text(json.dumps(made_by, indent=1) + "\n")


def check_fingerprint(folder: str | Path, expected: dict[str, str]) -> None:
    """Refuses a cache whose latents are made by other models than ``expected``, and one without latents."""
    path = Path(folder) / "cache.json"
    if not path.is_file():
        raise SeedanceError(f"cache: {folder} holds no latents yet; run its latents recipe with a VAE first")
    found = json.loads(path.read_text())
    differ = [key for key in expected if found.get(key) != expected[key]]
    if differ:
        raise SeedanceError(
            f"cache: {folder} was made with another {', '.join(differ)}; "
            "delete its latents-*.safetensors and cache.json, or name another folder or VAE"
        )


@torch.no_grad()
def encode_frames(
    folder: str | Path, buckets: Sequence[Bucket], vae: VideoVAE, text_encoder: TextEncoder, *,
    batch: int = 16, keep_frames: bool = True,
    until: Callable[[], bool] = lambda: False, report: Callable[..., None] = lambda **_: None,
) -> int:  # fmt: skip
    """Encodes every frame shard that has no latents yet. Returns the clips encoded.

    Other arguments as in :func:`build_frames`.

    Args:
        batch: clips the VAE sees at once.
        keep_frames: False deletes each frame shard once its latents are written.
    """
    folder = Path(folder)
    made, started = 0, time.monotonic()
    for bucket in buckets:
        for path in sorted((folder / bucket.name).glob("frames-*.safetensors")):
            target = path.with_name(path.name.replace("frames", "latents"))
            if not target.is_file():
                if until():
                    return made
                made += _encode_shard(path, target, bucket, vae, text_encoder, batch)
                report(event="latents", bucket=bucket.name, clips=made, clips_per_s=made / (time.monotonic() - started))
            if not keep_frames:
                path.unlink()
    return made


def _encode_shard(
    path: Path, target: Path, bucket: Bucket, vae: VideoVAE, text_encoder: TextEncoder, batch: int
) -> int:
    with safetensors.safe_open(str(path), framework="pt") as file:
        words = json.loads(file.metadata()["words"])
    stacks = load_file(path)
    frames = stacks.pop("frames")  # (N, T, H, W, 3)
    device = next(vae.parameters()).device
    latents = []
    for some in frames.split(batch):
        x = some.to(device).permute(0, 4, 1, 2, 3).float() / 127.5 - 1  # (B, 3, T, H, W)
        shots = [vae.normalize(vae.encode(shot).float()) for shot in x.split(bucket.frames, dim=2)]
        latents.append(torch.cat(shots, dim=2).to(torch.bfloat16).cpu())  # (B, C, t, h, w)
    stacks["latents"] = torch.cat(latents)
    stacks |= encode_words(words, text_encoder)
    about = {"shots": json.dumps(bucket.shot_latents), "fps": str(bucket.fps), "words": json.dumps(words)}
    _write(target, stacks, about)
    return len(words)


def encode_words(words: list[list[dict[str, Any]]], text_encoder: TextEncoder) -> dict[str, Tensor]:
    """Token states of N clips in W wordings each, every distinct caption encoded once.

    Returns:
        text (M, D) float16: states of all tokens; text_index (N, W, L) int32: rows of ``text`` per clip and wording,
        -1 for padding; text_shot (N, W, L) int8: 0 global caption, k the k-th shot, -1 padding.
    """
    captions = sorted({c for clip in words for w in clip for c in (w["caption"], *w["shots"]) if c})
    states = [state.to(torch.float16).cpu() for state in text_encoder.encode_list(captions)]
    rows, start = {}, 0
    for caption, state in zip(captions, states, strict=True):
        rows[caption] = torch.arange(start, start + len(state), dtype=torch.int32)
        start += len(state)
    most = max(len(clip) for clip in words)
    index, shot = [], []
    for clip in words:
        for number in range(most):
            said = clip[number % len(clip)]
            groups = [(k, c) for k, c in enumerate((said["caption"], *said["shots"])) if c]
            index.append(torch.cat([rows[c] for _, c in groups]) if groups else torch.empty(0, dtype=torch.int32))
            shot.append(
                torch.cat([torch.full((len(rows[c]),), k, dtype=torch.int8) for k, c in groups])
                if groups
                else torch.empty(0, dtype=torch.int8)
            )
    pad = torch.nn.utils.rnn.pad_sequence
    n = len(words)
    return {
        "text": torch.cat(states),
        "text_index": pad(index, batch_first=True, padding_value=-1).reshape(n, most, -1),
        "text_shot": pad(shot, batch_first=True, padding_value=PADDING).reshape(n, most, -1),
    }


# ---------------------------------------------------------------------- reading


@dataclass
class Batch:
    """What a training step takes: normalised latents (B, C, t, h, w) float32, labels name -> (B, t, h, w) int8, and the
    conditioning with nothing given yet."""

    latents: Tensor
    labels: dict[str, Tensor]
    cond: Conditioning

    def to(self, device: torch.device | str) -> Batch:
        """On another device."""
        labels = {name: tensor.to(device) for name, tensor in self.labels.items()}
        return Batch(self.latents.to(device), labels, self.cond.to(device))


class Store:
    """All cached clips of one bucket.

    Attributes:
        latents: (N, C, t, h, w) bfloat16. labels: name -> (N, t, h, w) int8.
        text: per shard (M, D) float16. On the CPU these map the files, and memory can be given back.
        text_index: (N, W, L) int32 rows of the clip's shard of ``text``. text_shot: (N, W, L) int8. shard: (N,).
        shot, seconds: (t,), the same for every clip.
    """

    def __init__(self, name: str, shot_latents: Sequence[int], fps: float) -> None:
        self.name, self.fps = name, fps
        self.shots = len(shot_latents)
        self.shot, self.seconds = shot_times(list(shot_latents), fps, RATIO_T)
        self.paths: list[Path] = []
        self.latents = torch.empty(0)
        self.labels: dict[str, Tensor] = {}
        self.text: list[Tensor] = []
        self.text_index = self.text_shot = self.lengths = self.shard = torch.empty(0, dtype=torch.long)

    @classmethod
    def open(cls, folder: str | Path, bucket: Bucket, before: Store | None = None) -> Store | None:
        """What the cache holds of ``bucket`` by now, or None. ``before`` is what was open: only what is new is read."""
        place = Path(folder) / bucket.name
        paths = sorted(place.glob("latents-*.safetensors"))
        if not _latents_path(place, 0).is_file():  # the first shard holds the clips kept for evaluation
            return None
        known = before.paths if before is not None else []
        fresh = [path for path in paths if path not in known]
        if before is not None and not fresh:
            return before
        shards = []
        for path in fresh:
            shard = load_file(path)
            if tuple(shard["latents"].shape[2:]) != bucket.latent_shape:
                found = tuple(shard["latents"].shape[2:])
                raise SeedanceError(
                    f"cache: {path} holds latents {found}, bucket {bucket.name} is {bucket.latent_shape}"
                )
            shards.append(shard)
        store = cls(bucket.name, bucket.shot_latents, bucket.fps)
        store._join(before, shards)
        store.paths = [*known, *fresh]
        return store

    def _join(self, before: Store | None, shards: Sequence[dict[str, Tensor]]) -> None:
        """Clips of ``before``, then those of ``shards``: a clip keeps its number."""
        old = before if before is not None and len(before) else None
        device = old.latents.device if old is not None else torch.device("cpu")
        names = set.intersection(*({k.removeprefix("labels.") for k in s if k.startswith("labels.")} for s in shards))
        indices = [s["text_index"] for s in shards]
        shots = [s["text_shot"] for s in shards]
        start = len(old.text) if old is not None else 0
        numbers = [torch.full((len(s["latents"]),), start + k, dtype=torch.long) for k, s in enumerate(shards)]
        if old is not None:
            names &= set(old.labels)
            indices, shots, numbers = [old.text_index, *indices], [old.text_shot, *shots], [old.shard, *numbers]
        wordings, longest = (max(i.shape[axis] for i in indices) for axis in (1, 2))

        def fit(rows: Tensor, padding: int) -> Tensor:
            again = torch.arange(wordings, device=rows.device) % rows.shape[1]
            return torch.nn.functional.pad(rows[:, again], (0, longest - rows.shape[2]), value=padding).to(device)

        self.latents = torch.cat([*([old.latents] if old else []), *(s["latents"].to(device) for s in shards)])
        self.labels = {
            name: torch.cat([*([old.labels[name]] if old else []), *(s[f"labels.{name}"].to(device) for s in shards)])
            for name in sorted(names)
        }
        self.text = [*(old.text if old else []), *(s["text"].to(device) for s in shards)]
        self.text_index = torch.cat([fit(i, -1) for i in indices])
        self.text_shot = torch.cat([fit(i, PADDING) for i in shots])
        self.shard = torch.cat([n.to(device) for n in numbers])
        self.lengths = (self.text_index >= 0).sum(-1)  # (N, W)
        self.shot, self.seconds = self.shot.to(device), self.seconds.to(device)

    def __len__(self) -> int:
        return len(self.latents)

    def to(self, device: torch.device | str) -> Store:
        """Moves everything, so that a batch is gathered where it is used."""
        for name in ("latents", "text_index", "text_shot", "lengths", "shard", "shot", "seconds"):
            setattr(self, name, getattr(self, name).to(device))
        self.labels = {name: labels.to(device) for name, labels in self.labels.items()}
        self.text = [text.to(device) for text in self.text]
        if self.latents.device.type != "cpu" and len(self.text) > 1:  # one gather there instead of one per shard
            starts = torch.tensor([0, *itertools.accumulate(len(text) for text in self.text[:-1])], device=device)
            start = starts[self.shard][:, None, None].to(self.text_index.dtype)
            self.text_index = torch.where(self.text_index >= 0, self.text_index + start, self.text_index)
            self.text, self.shard = [torch.cat(self.text)], torch.zeros_like(self.shard)
        return self

    def batch(self, index: Tensor, wording: Tensor, frames: int | None = None) -> Batch:
        """Gathers clips ``index`` (B,) in wordings ``wording`` (B,).

        ``frames`` keeps the first latent frames only (1: pictures).
        """
        device = self.latents.device
        index, wording = index.to(device), (wording % self.text_index.shape[1]).to(device)
        t = self.latents.shape[2] if frames is None else frames
        latents = self.latents[index, :, :t].float()  # (B, C, t, h, w)
        longest = max(1, int(self.lengths[index, wording].max()))
        rows = self.text_index[index, wording, :longest].long()  # (B, L)
        said = rows >= 0
        b = len(index)
        text = torch.zeros(b, longest, self.text[0].shape[1], device=device)
        of = self.shard[index]
        for number in of.unique().tolist():
            mine = (of == number)[:, None] & said  # (B, L)
            text[mine] = self.text[number][rows[mine]].float()
        cond = Conditioning(
            clean=torch.zeros_like(latents),
            mask=torch.zeros(b, t, device=device),
            text=text,
            text_mask=said,
            text_shot=self.text_shot[index, wording, :longest].long(),
            shot=self.shot[:t].expand(b, t),
            seconds=self.seconds[:t].expand(b, t),
        )
        return Batch(latents, {name: labels[index, :t] for name, labels in self.labels.items()}, cond)


# ---------------------------------------------------------------------- the task


@dataclass(frozen=True)
class LatentsRecipe:
    """What ``task: latents`` reads.

    Attributes:
        out: the cache folder.
        buckets: name -> keys of :class:`Bucket`.
        vae: model folder with the trained VAE; None draws frames only, so that drawing can begin before there is a VAE.
        text_encoder: name or folder; None is the shipped one.
        workers: drawing processes. niceness: added to theirs. shard_clips: clips in a file. batch: encoded at once.
        draw: False encodes the frames there are and draws none.
        follow: keep encoding until every shard is there, while another process draws.
        keep_frames: whether frame shards stay once encoded.
        device: of the VAE; None is the best one present. threads: of torch; None is its own choice.
        time_budget: seconds after which the run ends cleanly; the next one goes on.
    """

    task: str
    out: Path
    buckets: dict[str, Any]
    vae: Path | None = None
    text_encoder: str | None = None
    workers: int = 2
    niceness: int = 0
    shard_clips: int = 64
    batch: int = 16
    draw: bool = True
    follow: bool = False
    keep_frames: bool = True
    device: str | None = None
    threads: int | None = None
    time_budget: float | None = None


def build_cache(recipe: LatentsRecipe) -> Path:
    """Draws, then encodes, what the cache does not hold yet. Returns its folder."""
    from seedance.pipeline import load_vae

    buckets = [Bucket.from_dict(name, said) for name, said in recipe.buckets.items()]
    write_buckets(recipe.out, buckets)
    log = RunLog(recipe.out / "log.jsonl")
    clock = TimeBudget(recipe.time_budget)
    if recipe.draw:
        build_frames(
            recipe.out, buckets, shard_clips=recipe.shard_clips, workers=recipe.workers, niceness=recipe.niceness,
            until=lambda: clock.expired, report=log.write,
        )  # fmt: skip
    if recipe.vae is None:
        return recipe.out
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    if recipe.niceness and not recipe.draw:
        os.nice(recipe.niceness)
    device = pick_device(recipe.device)
    kind, reason = pick_dtype(device)
    log.write(event="encode", device=str(device), dtype=str(kind), reason=reason)
    vae = load_vae(recipe.vae).eval()
    made_by = fingerprint(vae, recipe.text_encoder)
    statistics = {name: buffer.to(device) for name, buffer in vae.named_buffers()}
    vae.to(device, kind)
    for name, buffer in statistics.items():
        setattr(vae, name, buffer)
    stamp(recipe.out, made_by)
    text_encoder = TextEncoder.from_pretrained(recipe.text_encoder, device=device)
    while True:
        encode_frames(
            recipe.out, buckets, vae, text_encoder, batch=recipe.batch, keep_frames=recipe.keep_frames,
            until=lambda: clock.expired, report=log.write,
        )  # fmt: skip
        if not recipe.follow or clock.expired or not missing(recipe.out, buckets, recipe.shard_clips):
            return recipe.out
        time.sleep(2)


def read_words(folder: str | Path, bucket: str) -> Iterator[list[dict[str, Any]]]:
    """The wordings of every encoded clip of a bucket."""
    for path in sorted((Path(folder) / bucket).glob("latents-*.safetensors")):
        with safetensors.safe_open(str(path), framework="pt") as file:
            yield from json.loads(file.metadata()["words"])


def missing(folder: str | Path, buckets: Sequence[Bucket], shard_clips: int) -> int:
    """Shards without latents (of a folder of clips, an upper bound: it may hold fewer clips than its bucket)."""
    return sum(
        not _latents_path(Path(folder) / bucket.name, number).is_file()
        for bucket in buckets
        for number in range(-(-bucket.clips // shard_clips))
    )
