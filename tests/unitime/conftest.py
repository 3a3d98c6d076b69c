"""Tiny checkpoints of random weights, one of each family, saved to folders and read by the real loaders."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>"]
SPECIALS += ["<|image_pad|>", "<|video_pad|>"]


def byte_tokenizer() -> Any:
    """A tokenizer whose tokens are bytes and the special tokens of Qwen-VL: 264 ids, no files needed."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    from shots.runtime.vision import transformers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIALS])
    return transformers().PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )


def tiny_net(family: str) -> Any:
    """A network of the family with about 200 thousand random weights."""
    import torch

    from shots.runtime.vision import transformers

    library = transformers()
    ids = {name: 256 + i for i, name in enumerate(SPECIALS)}
    text = {
        "vocab_size": 264,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 32768,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
        "tie_word_embeddings": False,
    }
    vision = {"depth": 4, "num_heads": 2, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2}
    if family == "qwen2_vl":
        vision |= {"embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2}
        kind = library.Qwen2VLConfig
        build = library.Qwen2VLForConditionalGeneration
    elif family == "qwen2_5_vl":
        vision |= {"hidden_size": 32, "out_hidden_size": 64, "intermediate_size": 48, "window_size": 56}
        vision |= {"fullatt_block_indexes": [1, 3], "tokens_per_second": 2}
        kind = library.Qwen2_5_VLConfig
        build = library.Qwen2_5_VLForConditionalGeneration
    else:
        vision |= {"hidden_size": 32, "out_hidden_size": 64, "intermediate_size": 48, "num_position_embeddings": 64}
        vision |= {"patch_size": 16, "deepstack_visual_indexes": [0, 1, 2]}
        text["rope_parameters"] = text["rope_parameters"] | {"mrope_interleaved": True}
        kind = library.Qwen3VLConfig
        build = library.Qwen3VLForConditionalGeneration
    config = kind(
        text_config=text,
        vision_config=vision,
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    net = build(config).eval()
    with torch.no_grad():  # far enough from zero that no distribution is flat
        for name, weight in net.named_parameters():
            if weight.ndim > 1:
                weight.normal_(std=0.15 if "embed" not in name else 0.5)
    return net


@pytest.fixture(scope="session")
def fresh_net() -> Callable[[str], Any]:
    """Makes the network of a family anew, as transformers has it and with the weights of the folders."""
    return tiny_net


@pytest.fixture(scope="session")
def tiny_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folder of a tiny checkpoint for each family, all spoken to as UniTime is."""
    folders = {}
    for family in FAMILIES:
        folder = tmp_path_factory.mktemp(family)
        tiny_net(family).save_pretrained(folder)
        byte_tokenizer().save_pretrained(folder)
        (folder / "unitime.json").write_text('{"format": "unitime"}')
        folders[family] = folder
    return folders


@pytest.fixture(scope="session")
def tiny_models(tiny_folders: dict[str, Path]) -> dict[str, Any]:
    """A loaded tiny model for each family, float32 on the CPU."""
    from unitime.model import VisionLanguageModel

    return {
        family: VisionLanguageModel.from_pretrained(folder, dtype="fp32", device="cpu")
        for family, folder in tiny_folders.items()
    }


@pytest.fixture(params=FAMILIES)
def tiny(request: pytest.FixtureRequest, tiny_models: dict[str, Any]) -> Any:
    """Each tiny model in turn."""
    return tiny_models[request.param]


class OracleForest:
    """A forest whose hidden states are (prefix, path of tokens)."""

    def __init__(self, prefix: Any) -> None:
        self.prefix = prefix
        self.paths: list[tuple[int, ...]] = []

    def __len__(self) -> int:
        return len(self.paths)

    def grow(self, ids: Any, parents: Any) -> np.ndarray:
        for token, parent in zip(ids, parents, strict=True):
            self.paths.append((*(self.paths[parent] if parent >= 0 else ()), token))
        rows = np.empty(len(ids), dtype=object)
        rows[:] = [(self.prefix, path) for path in self.paths[len(self.paths) - len(ids) :]]
        return rows


class OraclePrefix:
    """What an oracle was shown: the stamps, and with which instruction."""

    nbytes = 1000

    def __init__(self, text: str, prompts: Any) -> None:
        before, after = prompts.marker.split("{t}")
        stamp = re.escape(before) + r"(\d+\.\d)" + re.escape(after)
        self.stamps = [float(t) for t in re.findall(stamp, text)]
        self.mode = "coarse" if prompts.coarse and prompts.coarse in text else "fine"

    def __len__(self) -> int:
        return 100


class Oracle:
    """A model that knows when everything happens, and names it with the stamps it is shown, as if trained to.

    events: (start, end) seconds of each query; replies: what is said to a question. Every token is said with the
    probability ``trust``. ``passes`` notes what it was shown.
    """

    def __init__(
        self, rule: Any, prompts: Any, events: dict[str, list[tuple[float, float]]], trust: float = 0.98
    ) -> None:
        self.rule, self.prompts, self.events, self.trust = rule, prompts, events, trust
        self.replies: dict[str, str] = {}
        self.tokenizer = byte_tokenizer()
        self.family, self.patch, self.merge, self.tokens_per_second = "qwen2_vl", rule.patch, rule.merge, 2.0
        self.threshold = None
        self.fingerprint = "oracle"
        self.passes: list[OraclePrefix] = []
        self.looked = 0
        self._header = self.tokenizer(prompts.header.replace("{role}", "assistant"))["input_ids"]
        self._known: dict[Any, list[int]] = {}

    def vision(self, frames: Any, grid: tuple[int, int]) -> Any:
        import torch

        from unitime.model import Features

        self.looked += len(frames)
        return Features(torch.zeros(len(frames), grid[0] * grid[1], 4), None, grid)

    def prefill(self, sequence: Any, features: Any) -> OraclePrefix:
        assert len(sequence.pads) == features.tokens.shape[0] * features.tokens.shape[1]
        self.passes.append(OraclePrefix(self.tokenizer.decode(sequence.ids), self.prompts))
        return self.passes[-1]

    def forest(self, prefix: OraclePrefix) -> OracleForest:
        return OracleForest(prefix)

    def reply(self, prefix: OraclePrefix, turn: str) -> str:
        for query, windows in self.events.items():
            if self.prompts.ask_when(query) in turn:
                return self.grounded(prefix, windows)
        return next((reply for question, reply in self.replies.items() if question in turn), "I do not know.")

    def grounded(self, prefix: OraclePrefix, windows: list[tuple[float, float]]) -> str:
        stamps = prefix.stamps
        seen = [(a, b) for a, b in windows if a <= stamps[-1] + 1 and b >= stamps[0] - 1]
        if not seen and self.prompts.not_found is None:
            return "Nothing."
        if prefix.mode == "coarse":
            ends = [*stamps[1:], stamps[-1] + self.rule.segment]
            pairs = zip(stamps, ends, strict=True)
            return self.prompts.segments([s for s, e in pairs if any(a < e and b > s for a, b in seen)])
        return self.prompts.answer(
            [
                (
                    max([s for s in stamps if s <= a], default=stamps[0]),
                    min([s for s in stamps if s >= b], default=stamps[-1]),
                )
                for a, b in seen
            ]
        )

    def probabilities(self, row: tuple[OraclePrefix, tuple[int, ...]]) -> np.ndarray:
        prefix, path = row
        n = len(self._header)
        at = next(i for i in range(len(path)) if list(path[i : i + n]) == self._header) + n
        key = (id(prefix), path[:at])
        if key not in self._known:
            text = self.reply(prefix, self.tokenizer.decode(path[:at])) + self.prompts.footer
            self._known[key] = self.tokenizer(text)["input_ids"]
        said, wanted = path[at:], self._known[key]
        noise = np.random.default_rng(zlib.crc32(np.asarray(path).tobytes())).random(264)
        noise /= noise.sum()
        if list(said) == wanted[: len(said)] and len(said) < len(wanted):
            noise *= 1 - self.trust
            noise[wanted[len(said)]] += self.trust
        return noise

    def log_probs(self, hidden: Any, rows: Any, tokens: Any) -> np.ndarray:
        kept: dict[int, np.ndarray] = {}
        for row in rows:
            if row not in kept:
                kept[row] = np.log(self.probabilities(hidden[row]))
        return np.array([kept[row][token] for row, token in zip(rows, tokens, strict=True)])

    def best(self, hidden: Any) -> list[int]:
        return [int(self.probabilities(row).argmax()) for row in hidden]


@pytest.fixture(scope="session")
def oracle() -> Callable[..., Oracle]:
    """Makes an :class:`Oracle`."""
    return Oracle


@pytest.fixture(scope="session")
def film() -> Callable[..., Any]:
    """Makes a small film of noise of some seconds, two frames a second."""

    def make(seconds: float, seed: int = 0) -> Any:
        from shots.video import Video

        count = round(seconds * 2)
        frames = np.random.default_rng(seed).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)
        return Video(frames, fps=2.0, times=np.arange(count) / 2)

    return make
