"""One wrapper over any Qwen2-VL, Qwen2.5-VL or Qwen3-VL checkpoint: vision, a prefix read once, and growth on it.

    model = VisionLanguageModel.from_pretrained(folder)
    features = model.vision(frames, plan.grid)                       # uint8 (units, 2, H, W, 3)
    prefix = model.prefill(build_prefix(plan, ...), features)        # the KV cache of the video, made once
    forest = model.forest(prefix)
    hidden = forest.grow(ids, parents)                               # any number of questions and answers, as a tree

Notable choices:

- transformers' classes hold the weights; this module calls the vision tower and the language model directly, with
  positions of its own (`unitime.sequence`), and never their multimodal ``forward``, whose position rules changed
  between versions. A test holds that both give the same logits where the rules agree.
- The prefix is never written to. What is grown on it lives in a :class:`Forest` with keys and values of its own; every
  token sees the prefix and its ancestors. So many questions, and many possible answers to each, run in one forward, and
  each gets exactly what it would get alone.
- Masks are float and 4-D: right under "sdpa" and "eager" alike. On CPU, sdpa with bf16 is slow in the backward pass, so
  training may choose "eager".
- transformers runs its vision attention as a Python loop over frames. Here frames of one size are one batch, and the
  patch embedding is a matrix product instead of a 3-D convolution (:func:`quicken`; a test holds the equality).
- Vision runs in chunks and is compressed chunk by chunk, so its memory does not grow with the video. A unit attends to
  itself alone, so chunks equal the whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from types import MethodType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from shots.errors import ShotsError
from shots.runtime.device import free_bytes, pick_device, pick_dtype
from shots.runtime.hub import Remote
from shots.runtime.vision import transformers
from shots.runtime.weights import check_download, locate, resolve
from unitime import formats
from unitime.errors import UniTimeError
from unitime.frames import FrameRule
from unitime.prompts import Prompts
from unitime.quantization import check as check_quantization
from unitime.quantization import quantize
from unitime.sequence import FAMILIES, PrefixSequence, additive

log = logging.getLogger(__name__)

SETTINGS = "unitime.json"
_TOKENIZERS = ("tokenizer.json", "vocab.json", "tokenizer.model")
SHIPPED = {"unitime-nano": Path(__file__).parent / "nano"}

_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_NORMALISED = {"qwen2_vl": _CLIP, "qwen2_5_vl": _CLIP, "qwen3_vl": _HALF}  # mean and std where the folder says nothing

_ASIDE = ("dtype", "architectures", "transformers_version")  # of a configuration: no part of what is computed

VISION_PATCHES = 8192  # patches that the vision tower sees at once
GROWN_TOKENS = 2048  # tokens grown in one forward
SPREAD_BYTES = 16 << 20  # prefixes up to this size are copied for every tree that grows on them
SMALL_BYTES = 100 << 20  # weights of a model that is run in float32 on the CPU
LOGIT_ROWS = 256  # rows of next-token logits held at once (0.15 GB of float32 for a vocabulary of 152 k)


@dataclass(frozen=True, eq=False)
class Features:
    """What the vision tower made of n units.

    tokens: (n, h * w, D). deepstack: (n, layers, h * w, D) for Qwen3-VL, else None. grid: tokens (h, w) of a unit.
    """

    tokens: Tensor
    deepstack: Tensor | None
    grid: tuple[int, int]

    def __len__(self) -> int:
        return int(self.tokens.shape[0])

    @property
    def nbytes(self) -> int:
        """Memory of the tokens."""
        return self.tokens.nbytes + (0 if self.deepstack is None else self.deepstack.nbytes)

    def compress(self, grid: tuple[int, int], how: str = "bilinear") -> Features:
        """The same units on a smaller token grid (UniTime's token compression); ``how`` as in a rule's ``shrink``."""
        if grid == self.grid:
            return self
        deepstack = None if self.deepstack is None else _resample(self.deepstack, self.grid, grid, how)
        return Features(_resample(self.tokens, self.grid, grid, how), deepstack, grid)

    def select(self, units: Sequence[int]) -> Features:
        """Some of the units, in the order given."""
        index = torch.as_tensor(units, device=self.tokens.device)
        return Features(self.tokens[index], None if self.deepstack is None else self.deepstack[index], self.grid)

    @classmethod
    def cat(cls, parts: Sequence[Features]) -> Features:
        """Units one after the other; all on one grid."""
        first = parts[0]
        if any(part.grid != first.grid for part in parts):
            raise UniTimeError(f"features: the parts lie on different grids, {sorted({p.grid for p in parts})}")
        stacks = [part.deepstack for part in parts if part.deepstack is not None]
        return cls(torch.cat([part.tokens for part in parts]), torch.cat(stacks) if stacks else None, first.grid)

    def tensors(self) -> dict[str, Tensor]:
        """As tensors by name, to be kept in a file."""
        named = {"tokens": self.tokens, "grid": torch.tensor(self.grid)}
        return named if self.deepstack is None else named | {"deepstack": self.deepstack}

    @classmethod
    def from_tensors(cls, named: Mapping[str, Tensor]) -> Features:
        """The inverse of :meth:`tensors`."""
        height, width = named["grid"].tolist()
        return cls(named["tokens"], named.get("deepstack"), (height, width))


def _resample(tokens: Tensor, old: tuple[int, int], new: tuple[int, int], how: str) -> Tensor:
    """(..., h * w, D) from one grid to another, in float32."""
    lead, width = tokens.shape[:-2], tokens.shape[-1]
    maps = tokens.reshape(-1, *old, width).permute(0, 3, 1, 2).float()  # (N, D, h, w)
    if how == "area":
        maps = F.adaptive_avg_pool2d(maps, new)  # (N, D, h', w')
    else:
        maps = F.interpolate(maps, size=new, mode="bilinear", align_corners=False)  # (N, D, h', w')
    return maps.flatten(2).transpose(1, 2).reshape(*lead, new[0] * new[1], width).to(tokens.dtype)


@dataclass(frozen=True, eq=False)
class Prefix:
    """A video that has been read: per layer its keys and values (1, heads, L, d), and where what follows begins."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    next_position: int

    def __len__(self) -> int:
        return int(self.keys[0].shape[2])

    @property
    def nbytes(self) -> int:
        """Memory of the keys and values."""
        return sum(t.nbytes for t in (*self.keys, *self.values))


class _AllRead(Exception):
    """Ends the reading of a prefix in its last layer, once keys and values are there: nothing more of it is wanted."""


class _Grown:
    """The cache that attention writes to while a forest grows: reads the prefix, keeps the new states apart."""

    def __init__(self, prefix: Prefix) -> None:
        self.prefix = prefix
        empty = prefix.keys[0][:0, :, :0]
        self.keys = [empty] * len(prefix.keys)
        self.values = [empty] * len(prefix.keys)

    def widen(self, rows: int) -> None:
        """Makes room for more rows; what they lack is never looked at."""
        more = rows - self.keys[0].shape[0]
        if more:
            self.keys = [F.pad(t, (0, 0, 0, 0, 0, 0, 0, more)) for t in self.keys]
            self.values = [F.pad(t, (0, 0, 0, 0, 0, 0, 0, more)) for t in self.values]

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        self.keys[layer] = torch.cat([self.keys[layer], keys], dim=2)  # (R, heads, T, d)
        self.values[layer] = torch.cat([self.values[layer], values], dim=2)
        whole = (keys.shape[0], -1, -1, -1)
        return (
            torch.cat([self.prefix.keys[layer].expand(whole), self.keys[layer]], dim=2),
            torch.cat([self.prefix.values[layer].expand(whole), self.values[layer]], dim=2),
        )


class Forest:
    """Tokens grown on a prefix: each sees the prefix, its ancestors and itself. Made by ``model.forest(prefix)``.

    Where the prefix is small every tree is a row of a batch of its own, so that no time goes into masking trees from
    each other; copies of a large prefix would cost more than that, and all trees are one row.
    """

    def __init__(self, model: VisionLanguageModel, prefix: Prefix) -> None:
        self.model = model
        self.prefix = prefix
        self.spread = prefix.nbytes <= SPREAD_BYTES
        self._depths: list[int] = []
        self._rows: list[int] = []
        self._slots: list[int] = []  # within a row
        self._count = 0 if self.spread else 1  # rows
        self._ancestors: NDArray[np.bool_] = np.zeros((self._count, 0, 0), dtype=bool)  # (R, T, T)
        self._cache = _Grown(prefix)

    def __len__(self) -> int:
        return len(self._depths)

    def grow(self, ids: Sequence[int], parents: Sequence[int]) -> Tensor:
        """Adds nodes and returns their last hidden states (n, D); :meth:`VisionLanguageModel.log_probs` reads them.

        ``parents`` are indices into the whole forest, before each node's own; -1 hangs a node on the prefix. The first
        new node has the index ``len(forest)`` that it had before the call.
        """
        parts = [
            self._grow(ids[first : first + GROWN_TOKENS], parents[first : first + GROWN_TOKENS])
            for first in range(0, len(ids), GROWN_TOKENS)
        ]
        return torch.cat(parts)

    @torch.no_grad()
    def _grow(self, ids: Sequence[int], parents: Sequence[int]) -> Tensor:
        old, slots = len(self), self._ancestors.shape[1]
        used: dict[int, int] = {}
        for parent in parents:
            if parent >= 0:
                place = self._rows[parent]
            elif self.spread:
                place, self._count = self._count, self._count + 1
            else:
                place = 0
            self._rows.append(place)
            self._depths.append(self._depths[parent] + 1 if parent >= 0 else 0)
            self._slots.append(slots + used.get(place, 0))
            used[place] = used.get(place, 0) + 1
        new = max(used.values())
        row, slot, depth = (np.asarray(part[old:]) for part in (self._rows, self._slots, self._depths))

        ancestors = np.zeros((self._count, slots + new, slots + new), dtype=bool)
        ancestors[: len(self._ancestors), :slots, :slots] = self._ancestors
        ancestors[row, slot, slot] = True
        above = np.asarray(parents, dtype=np.int64)
        over = np.asarray(self._slots)[above]
        for level in np.unique(depth[above >= 0]):
            nodes = np.flatnonzero((depth == level) & (above >= 0))
            ancestors[row[nodes], slot[nodes]] |= ancestors[row[nodes], over[nodes]]
        self._ancestors = ancestors

        seen = np.ones((self._count, 1, new, len(self.prefix) + slots + new), dtype=bool)  # (R, 1, n, K)
        seen[:, 0, :, len(self.prefix) :] = ancestors[:, slots:]
        tokens = torch.zeros(self._count, new, dtype=torch.int64)
        positions = torch.zeros(self._count, new, dtype=torch.int64)
        tokens[row, slot - slots] = torch.as_tensor(ids)
        positions[row, slot - slots] = torch.from_numpy(depth)
        self._cache.widen(self._count)
        hidden = self.model.run(
            self.model.embed(tokens), (positions + self.prefix.next_position).expand(3, -1, -1), torch.from_numpy(seen),
            self._cache,
        )  # fmt: skip
        return hidden[row, slot - slots]  # (n, D)


class VisionLanguageModel:
    """A checkpoint with its tokenizer, prompts and frame rule. Make one with :meth:`from_pretrained`.

    Attributes:
        net: transformers' model, in evaluation mode.
        tokenizer: transformers' tokenizer.
        family: "qwen2_vl", "qwen2_5_vl" or "qwen3_vl".
        prompts, rule: what it is spoken to with, and which frames it is shown.
        threshold: probability of "not found" above which it is believed.
        device, dtype, dtype_reason: where and in which numbers it runs, and why.
        format: name of the format in `unitime.formats` that prompts and rule started from; None where they were given.
        quantization: "int8" or "int4" where the language model was shrunk, else None.
    """

    def __init__(
        self,
        net: Any,
        tokenizer: Any,
        *,
        prompts: Prompts | None = None,
        rule: FrameRule | None = None,
        threshold: float | None = None,
        normalise: tuple[Sequence[float], Sequence[float]] | None = None,
        folder: Path | None = None,
        dtype_reason: str = "as given",
        format: str | None = None,
        quantization: str | None = None,
    ) -> None:
        self.net = net
        self._weight: Tensor = next(net.parameters())  # asked for its device many times a pass
        self.tokenizer = tokenizer
        self.family = _family(self.net.config.model_type)
        vision = self.net.config.vision_config
        self.patch, self.merge = int(vision.patch_size), int(vision.spatial_merge_size)
        self.temporal_patch = int(vision.temporal_patch_size)
        self.prompts = prompts or Prompts()
        self.rule = rule or FrameRule(patch=self.patch, merge=self.merge, temporal_patch=self.temporal_patch)
        if (self.rule.patch, self.rule.merge, self.rule.temporal_patch) != (
            self.patch,
            self.merge,
            self.temporal_patch,
        ):
            raise UniTimeError(
                f"rule: its patch, merge and temporal_patch are {self.rule.patch}, {self.rule.merge}, "
                f"{self.rule.temporal_patch}; this model has {self.patch}, {self.merge}, {self.temporal_patch}"
            )
        self.threshold = threshold
        mean, std = normalise or _NORMALISED[self.family]
        self.mean, self.std = tuple(map(float, mean)), tuple(map(float, std))
        self.folder = folder
        self.dtype_reason = dtype_reason
        self.format, self.quantization = format, quantization
        self.tokens_per_second = float(getattr(vision, "tokens_per_second", 2.0))
        quicken(self.net.model.visual)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        adapter: str | Path | None = None,
        revision: str | None = None,
        dtype: str | None = None,
        device: str | None = None,
        attention: str = "sdpa",
        prompts: str | None = None,
        quantization: str | None = None,
        max_fps: float | None = None,
    ) -> VisionLanguageModel:
        """Loads a shipped name, a folder or a hub id.

        Args:
            name_or_path: the base model, in transformers' layout; ``unitime.json`` in it may hold prompts, frame rule
                and threshold, or in "format" the name of prompts that `unitime.formats` knows.
            adapter: folder or hub id of LoRA weights to be merged in; its own ``unitime.json`` has the last word.
            revision: of the hub id.
            dtype, device: as for `shots.runtime.device`; None chooses.
            attention: "sdpa" or "eager"; both take the masks used here.
            prompts: name of a format in `unitime.formats`, for its prompts and frame rule in place of all others; None
                takes those of the folder, else those that the checkpoint is known or recognised to want.
            quantization: "int8" or "int4" keeps the language model in fewer bits (`unitime.quantization`).
            max_fps: frames a second that are looked at, at most; None is the rule's own. The published one has none
                and spends its budget on any clip: 16,146 tokens on 10 s at 360 x 640, where 2 a second are 2,990.
        """
        check_quantization(quantization)
        if max_fps is not None:
            FrameRule(max_fps=max_fps)  # says what is wrong with it before weights are read
        if prompts is not None:
            formats.named(prompts)
        if attention not in ("sdpa", "eager"):
            raise UniTimeError(f"attention: {attention!r} cannot take the masks that are needed; use 'sdpa' or 'eager'")
        try:
            where = pick_device(device)
            found = locate(name_or_path, SHIPPED, revision)
            folder = found if isinstance(found, Path) else _fetch(found, where, dtype, quantization, prompts)
            kind, reason = _dtype(folder, where, dtype)
        except ShotsError as error:
            raise UniTimeError(str(error)) from error
        try:
            extra = None if adapter is None else resolve(adapter, {}, None)
        except ShotsError as error:
            raise UniTimeError(f"adapter: {str(error).removeprefix('model: ')}") from error
        settings = _settings(folder) | ({} if extra is None else _settings(extra))
        if prompts is not None:
            settings = {"format": prompts}
        _check_config(folder)
        try:
            said = json.loads((folder / "config.json").read_text())
            family = _family(said.get("model_type"))
            chosen = _format(settings, str(name_or_path), said, extra is not None)
            formats.check_family(chosen, family)
            _check_folder(folder, where, kind, quantization)
            library = transformers()
            if extra is not None:  # held against a model without weights first: loading takes minutes
                from unitime.adapters import fitting

                with torch.device("meta"):
                    hollow = library.AutoModelForImageTextToText.from_config(library.AutoConfig.from_pretrained(folder))
                fitting(hollow, extra)
            net, told = library.AutoModelForImageTextToText.from_pretrained(
                folder, dtype=kind, attn_implementation=attention, output_loading_info=True, use_safetensors=True
            )
            tokenizer = library.AutoTokenizer.from_pretrained(folder)
        except (OSError, ValueError, KeyError) as error:
            raise UniTimeError(f"model: {folder} cannot be loaded ({_first_line(error)}); fetch it again") from error
        if absent := sorted(told["missing_keys"]):  # transformers fills them at random, with no more than a warning
            raise UniTimeError(
                f"model: {folder} lacks {len(absent)} weights of its configuration ({absent[0]}, ...); fetch it again"
            )
        if extra is not None:
            from unitime.adapters import merge_adapter

            merge_adapter(net, extra)
        if quantization is not None:
            count = quantize(net, quantization, where)
            log.info("the weights of %d layers are kept as %s", count, quantization)
        known = formats.named(chosen)
        log.info("%s is spoken to as %s", name_or_path, chosen)
        return cls(
            net.eval().to(where),
            tokenizer,
            prompts=Prompts.from_dict(known.prompts.to_dict() | settings.get("prompts", {})),
            rule=_rule(
                known.rule | settings.get("rule", {}) | ({} if max_fps is None else {"max_fps": max_fps}),
                net.config.vision_config,
            ),
            threshold=settings.get("not_found_threshold"),
            normalise=_normalisation(folder),
            folder=folder,
            dtype_reason=reason,
            format=chosen,
            quantization=quantization,
        )

    def save_pretrained(self, folder: str | Path) -> Path:
        """Writes a folder that :meth:`from_pretrained` reads: weights, tokenizer, normalisation and settings.

        Raises UniTimeError for a quantised model: load it without ``quantization`` to save it.
        """
        if self.quantization is not None:
            raise UniTimeError(f"save: the model is kept as {self.quantization}; load it without quantization")
        folder = Path(folder)
        self.net.save_pretrained(folder, max_shard_size="15MB")
        self.tokenizer.save_pretrained(folder)
        settings: dict[str, Any] = {"prompts": self.prompts.to_dict(), "rule": asdict(self.rule)}
        settings |= {} if self.threshold is None else {"not_found_threshold": self.threshold}
        _write_json(folder / SETTINGS, settings)
        _write_json(
            folder / "preprocessor_config.json", {"image_mean": list(self.mean), "image_std": list(self.std)}
        )  # fmt: skip
        return folder

    @property
    def device(self) -> torch.device:
        return self._weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.net.dtype

    @cached_property
    def fingerprint(self) -> str:
        """Hex digest of the vision tower's weights and of how frames are prepared: the key of kept features."""
        said = self.net.config.vision_config.to_dict()
        said = {key: said[key] for key in sorted(said) if key not in _ASIDE and not key.startswith("_")}
        digest = hashlib.sha256(f"{said} {self.mean} {self.std} {self.dtype}".encode())
        for name, tensor in self.net.model.visual.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
        return digest.hexdigest()

    # Vision.

    def patches(self, frames: NDArray[np.uint8] | Tensor) -> tuple[Tensor, Tensor]:
        """Normalised patches (n * gh * gw, 3 * t * p * p) float32 of frames uint8 (n, t, H, W, 3), and the grid (1, 3).

        The layout is that of transformers' video processors: units, then blocks of merge x merge patches.
        """
        pixels = torch.as_tensor(frames).to(self.device)
        units, time, height, width, _ = pixels.shape
        side, m, p = self.patch * self.merge, self.merge, self.patch
        if time != self.temporal_patch or height % side or width % side or not units:
            raise UniTimeError(
                f"frames: {tuple(pixels.shape)}; (units, {self.temporal_patch}, H, W, 3) is needed, "
                f"with H and W multiples of {side}"
            )
        mean = torch.tensor(self.mean, device=self.device) * 255  # (3,)
        std = torch.tensor(self.std, device=self.device) * 255
        rows, columns = height // side, width // side
        pixels = (pixels.float() - mean) / std  # (n, t, H, W, 3)
        pixels = pixels.reshape(units, time, rows, m, p, columns, m, p, 3)
        pixels = pixels.permute(0, 2, 5, 3, 6, 8, 1, 4, 7)  # (n, rows, columns, m, m, 3, t, p, p)
        flat = pixels.reshape(units * rows * columns * m * m, 3 * time * p * p)
        return flat, torch.tensor([[units, rows * m, columns * m]], device=self.device)

    def see(self, frames: NDArray[np.uint8] | Tensor) -> Features:
        """The features of units uint8 (n, t, H, W, 3), all at once and with gradients, as training wants it."""
        flat, grid = self.patches(frames)
        seen = self.net.model.visual(flat.to(self.dtype), grid_thw=grid)
        units, height, width = grid[0].tolist()
        size = height // self.merge, width // self.merge
        tokens = seen.pooler_output.reshape(units, size[0] * size[1], -1)  # (n, h * w, D)
        layers = getattr(seen, "deepstack_features", None)
        stack = torch.stack([layer.reshape(tokens.shape) for layer in layers], dim=1) if layers else None
        return Features(tokens, stack, size)

    @torch.no_grad()
    def vision(self, frames: NDArray[np.uint8] | Tensor, grid: tuple[int, int] | None = None) -> Features:
        """The features of units uint8 (n, t, H, W, 3), chunk by chunk, compressed to ``grid`` if given."""
        per_unit = (frames.shape[2] // self.patch) * (frames.shape[3] // self.patch)
        chunk = max(VISION_PATCHES // max(per_unit, 1), 1)
        parts = []
        for first in range(0, len(frames), chunk):
            part = self.see(frames[first : first + chunk])
            parts.append(part if grid is None else part.compress(grid, self.rule.shrink))
        if not parts:
            raise UniTimeError("frames: there are none")
        return Features.cat(parts)

    # Language.

    def embed(self, ids: Tensor) -> Tensor:
        """Word embeddings (..., D) of ids (...)."""
        return self.net.get_input_embeddings()(ids.to(self.device))

    def run(
        self,
        embeddings: Tensor,
        positions: Tensor,
        mask: Tensor | None = None,
        cache: Any = None,
        visual: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """The language model itself: last hidden states (B, M, D).

        Args:
            embeddings: (B, M, D), video tokens in place.
            positions: (3, B, M).
            mask: bool (B, 1, M, K), True where a row looks at a column; None is causal.
            cache: what attention reads and writes, or None.
            visual: for deepstack: bool (B, M) of the video tokens, and (layers, P, D) what is added at them.
        """
        extra = {} if visual is None else {"visual_pos_masks": visual[0], "deepstack_visual_embeds": list(visual[1])}
        return self.net.model.language_model(
            inputs_embeds=embeddings,
            position_ids=positions.to(self.device),
            attention_mask=None if mask is None else additive(mask.to(self.device), embeddings.dtype),
            past_key_values=cache,
            use_cache=cache is not None,
            **extra,
        ).last_hidden_state

    def hidden(
        self, ids: Tensor, positions: Tensor, mask: Tensor, pads: Tensor, features: Sequence[Features]
    ) -> Tensor:
        """Last hidden states (B, M, D) of collated samples, with gradients: the forward of training.

        ``ids``, ``positions``, ``mask`` and ``pads`` are what `unitime.sequence.collate` gives; ``features`` are those
        of each sample, in the same order.
        """
        embeddings = self.embed(ids)  # (B, M, D)
        rows, columns = pads.to(self.device).unbind(1)
        tokens = torch.cat([part.tokens.flatten(0, 1) for part in features]).to(embeddings.dtype)  # (P, D)
        embeddings = embeddings.index_put((rows, columns), tokens)
        stacks = [part.deepstack.transpose(0, 1).flatten(1, 2) for part in features if part.deepstack is not None]
        visual = None
        if stacks:
            where = torch.zeros(ids.shape, dtype=torch.bool, device=self.device)
            where[rows, columns] = True
            visual = where, torch.cat(stacks, dim=1)  # (layers, P, D)
        return self.run(embeddings, positions, mask, visual=visual)

    @torch.no_grad()
    def prefill(self, sequence: PrefixSequence, features: Features) -> Prefix:
        """Reads a video once. ``features`` are those of the units that the sequence shows, on its grid."""
        tokens = features.tokens.flatten(0, 1).to(self.device)  # (P, D)
        if len(tokens) != len(sequence.pads):
            raise UniTimeError(f"features: {len(tokens)} tokens for the {len(sequence.pads)} that the sequence shows")
        embeddings = self.embed(sequence.ids[None])  # (1, L, D)
        pads = sequence.pads.to(self.device)
        embeddings[0, pads] = tokens.to(embeddings.dtype)
        visual = None
        if features.deepstack is not None:
            where = torch.zeros(1, len(sequence), dtype=torch.bool, device=self.device)
            where[0, pads] = True
            visual = where, features.deepstack.transpose(0, 1).flatten(1, 2)  # (layers, P, D)
        cache = transformers().DynamicCache()
        store, last = cache.update, self.net.config.get_text_config().num_hidden_layers - 1

        def update(keys: Tensor, values: Tensor, layer: int, *more: Any, **named: Any) -> tuple[Tensor, Tensor]:
            kept: tuple[Tensor, Tensor] = store(keys, values, layer, *more, **named)
            if layer == last:
                raise _AllRead
            return kept

        cache.update = update
        with contextlib.suppress(_AllRead):
            self.run(embeddings, sequence.positions[:, None], None, cache, visual)
        keys, values = zip(*((layer.keys, layer.values) for layer in cache.layers), strict=True)
        return Prefix(keys, values, sequence.next_position)

    def forest(self, prefix: Prefix) -> Forest:
        """An empty forest on a prefix."""
        return Forest(self, prefix)

    @torch.no_grad()
    def log_probs(self, hidden: Tensor, rows: Sequence[int], tokens: Sequence[int]) -> NDArray[np.float64]:
        """log P(token | everything up to the row's own token) for pairs of a row of ``hidden`` (n, D) and a token."""
        row = np.asarray(rows, dtype=np.int64)
        token = np.asarray(tokens, dtype=np.int64)
        found = np.empty(len(row))
        wanted = np.unique(row)
        for first in range(0, len(wanted), LOGIT_ROWS):
            part = wanted[first : first + LOGIT_ROWS]
            pairs = np.flatnonzero((row >= part[0]) & (row <= part[-1]))
            scores = self.net.lm_head(hidden[torch.from_numpy(part).to(hidden.device)]).float()  # (rows, V)
            line = torch.from_numpy(np.searchsorted(part, row[pairs])).to(scores.device)
            column = torch.from_numpy(token[pairs]).to(scores.device)
            chosen = scores[line, column] - scores.logsumexp(dim=-1)[line]
            found[pairs] = chosen.double().cpu().numpy()
        return found

    @torch.no_grad()
    def best(self, hidden: Tensor) -> list[int]:
        """The likeliest next token after each row of ``hidden`` (n, D)."""
        return [int(i) for part in hidden.split(LOGIT_ROWS) for i in self.net.lm_head(part).argmax(dim=-1)]


# A quicker vision tower.


def quicken(visual: nn.Module) -> None:
    """Replaces the vision tower's attention and patch embedding by equal ones without Python loops, in place."""
    tower: Any = visual
    tower.patch_embed.forward = MethodType(_embed_patches, tower.patch_embed)
    for block in tower.blocks:
        block.attn.forward = MethodType(_attend, block.attn)


def _embed_patches(self: Any, hidden_states: Tensor) -> Tensor:
    """A convolution whose stride is its kernel, as the matrix product it is: (N, 3 * t * p * p) to (N, D)."""
    weight = self.proj.weight.flatten(1)
    return F.linear(hidden_states.to(weight.dtype), weight, self.proj.bias)


def _attend(
    self: Any, hidden_states: Tensor, cu_seqlens: Tensor, position_embeddings: tuple[Tensor, Tensor], **_: Any
) -> Tensor:
    """Attention (N, D) within runs of tokens that end at ``cu_seqlens``; runs of one length are one batch."""
    count = hidden_states.shape[0]
    q, k, v = self.qkv(hidden_states).reshape(count, 3, self.num_heads, -1).unbind(1)  # (N, heads, d)
    cos, sin = (part.float()[:, None] for part in position_embeddings)  # (N, 1, d)
    q, k = ((x.float() * cos + _rotate(x.float()) * sin).to(x.dtype) for x in (q, k))
    lengths = (cu_seqlens[1:] - cu_seqlens[:-1]).tolist()
    if len(set(lengths)) == 1:
        out = _batched(q, k, v, lengths[0], self.scaling)  # (N, heads, d)
    else:
        out = torch.empty_like(q)
        starts = cu_seqlens[:-1].tolist()
        for length in sorted(set(lengths)):
            begins = torch.tensor([s for s, n in zip(starts, lengths, strict=True) if n == length], device=q.device)
            index = (begins[:, None] + torch.arange(length, device=q.device)).flatten()  # (runs * length,)
            out = out.index_copy(0, index, _batched(q[index], k[index], v[index], length, self.scaling))
    return self.proj(out.reshape(count, -1))


def _batched(q: Tensor, k: Tensor, v: Tensor, length: int, scale: float) -> Tensor:
    """Attention of (runs * length, heads, d) within each run."""
    q, k, v = (x.unflatten(0, (-1, length)).transpose(1, 2) for x in (q, k, v))  # (runs, heads, length, d)
    return F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2).flatten(0, 1)


def _rotate(x: Tensor) -> Tensor:
    low, high = x.chunk(2, dim=-1)
    return torch.cat([-high, low], dim=-1)


# Files.


def _family(kind: Any) -> str:
    if kind not in FAMILIES:
        raise UniTimeError(f"model: its type is {kind!r}; one of {', '.join(FAMILIES)} is needed")
    return str(kind)


def _check_config(folder: Path) -> None:
    """Raises UniTimeError where a folder holds no model."""
    if (folder / "config.json").is_file():
        return
    if (folder / "adapter_config.json").is_file():
        raise UniTimeError(
            f"model: {folder} holds a LoRA adapter and no model; give it as the adapter, and its base as the model"
        )
    raise UniTimeError(f"model: {folder} holds no config.json; give the folder of a Qwen-VL checkpoint")


def _fetch(
    found: Remote, device: torch.device, dtype: str | None, quantization: str | None, prompts: str | None
) -> Path:
    """The folder of a model on the hub. Its family is looked at before the headers of its weights, its size before they
    are fetched. Raises UniTimeError, or ShotsError where the hub or the disk is the reason."""
    _check_config(found.folder)
    family = _family(_read_json(found.folder / "config.json").get("model_type"))
    if prompts is not None:
        formats.check_family(prompts, family)
    outline = found.outline()
    try:
        _check_folder(outline, device, _dtype(outline, device, dtype)[0], quantization)
    except UniTimeError as error:
        raise UniTimeError(str(error).replace(str(outline), found.name)) from error
    return found.fetch()


def _check_folder(folder: Path, device: torch.device, dtype: torch.dtype, quantization: str | None) -> None:
    """Finds in milliseconds what would be found after minutes: a file that is missing, cut short, half a download or a
    pickle, and a model that is larger than the memory it is to go into. Raises UniTimeError with the way out."""
    try:
        numbers = check_download(folder)
    except ShotsError as error:
        raise UniTimeError(f"model: {error}") from error
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        raise UniTimeError(f"model: {folder} has no tokenizer ({_TOKENIZERS[0]}); fetch the model again")
    need = numbers * {None: dtype.itemsize, "int8": 1.0, "int4": 0.52}[quantization]
    if device.type in ("cpu", "cuda") and need > (there := free_bytes(device)):
        fewer = {None: ", quantization int8 or int4", "int8": ", quantization int4"}.get(quantization, "")
        raise UniTimeError(
            f"memory: the weights take {need / 1e9:.1f} GB of {device}, {there / 1e9:.1f} GB are free; take a smaller "
            f"model{fewer}, or another device"
        )


def _dtype(folder: Path, device: torch.device, requested: str | None) -> tuple[torch.dtype, str]:
    """As `shots.runtime.device` picks it, but float32 for a small model on the CPU."""
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors") if path.is_file())
    if requested is None and device.type == "cpu" and size <= SMALL_BYTES:
        return torch.float32, "at this size fp32 costs no time on the CPU"
    return pick_dtype(device, requested)


def _settings(folder: Path) -> dict[str, Any]:
    """What ``unitime.json`` of a folder says; nothing where there is none."""
    return _read_json(folder / SETTINGS) if (folder / SETTINGS).is_file() else {}


def _format(settings: Mapping[str, Any], name_or_path: str, config: Mapping[str, Any], adapted: bool) -> str:
    """The format that a model's settings start from: the one they name; UniTime's where they hold prompts of their own;
    else the one that the checkpoint is recognised to want."""
    if "format" in settings:
        formats.named(settings["format"])
        return str(settings["format"])
    if "prompts" in settings:
        return "unitime"
    return formats.recognise(name_or_path, config, adapted)


def _rule(record: Mapping[str, Any] | None, vision: Any) -> FrameRule:
    """The frame rule of a record; what it leaves out is the published rule with the model's own patches."""
    own = {"patch": vision.patch_size, "merge": vision.spatial_merge_size, "temporal_patch": vision.temporal_patch_size}
    try:
        return FrameRule(**(own | dict(record or {})))
    except TypeError as error:
        raise UniTimeError(f"rule: {_first_line(error)}") from error


def _normalisation(folder: Path) -> tuple[list[float], list[float]] | None:
    """Mean and std of the pixels as the folder's processor has them, or None."""
    for name, part in (
        ("video_preprocessor_config.json", None),
        ("processor_config.json", "video_processor"),
        ("preprocessor_config.json", None),
    ):
        if (folder / name).is_file():
            record = _read_json(folder / name)
            record = record if part is None else record.get(part, {})
            if "image_mean" in record and "image_std" in record:
                return list(record["image_mean"]), list(record["image_std"])
    return None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UniTimeError(f"model: {path} cannot be read ({_first_line(error)})") from error
    if not isinstance(record, dict):
        raise UniTimeError(f"model: {path} holds no object")
    return record


def _write_json(path: Path, record: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
