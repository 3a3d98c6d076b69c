"""The nano model: a Qwen2-VL of two and a half million parameters with a tokenizer of its own, and how it is made.

Notable choices:

- The same class, the same file layout and the same code path as a 7B checkpoint; only the configuration is small.
- The tokenizer is byte-level BPE fitted to the stage's words, digits single, so any text can be asked and a stamp is as
  many tokens as it has characters.
- Prompts are short: the marker of a unit is its bare stamp. They stand in the model folder's ``unitime.json``.
- The tower's last layer is scaled so that its features are about as large as word embeddings: at this size the language
  model has no time to learn to tell them apart by their lengths.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from shots.runtime.budget import TimeBudget
from shots.runtime.checkpoint import latest_checkpoint, load_checkpoint
from shots.runtime.loop import run_loop
from shots.runtime.optim import parameter_groups
from shots.runtime.runlog import RunLog
from shots.runtime.vision import transformers
from shots.runtime.weights import load_into, load_tensors
from unitime.errors import UniTimeError
from unitime.frames import FrameRule
from unitime.prompts import Prompts
from unitime.training.scenes import CELLS, GAP, corpus, load_scenes
from unitime.training.text import Asker, Item, PackedBatch, PackedObjective, TextRecipe, collate, load_features
from unitime.training.vision import patches, run_tower

PROMPTS = Prompts(
    marker="{t}",
    fine="When?",
    coarse="In which parts?",
    answering=None,
    query="{query}",
    window="from {start} to {end}",
    segment="{t}",
    not_found="Not found.",
    question="{question}",
    choice="{question}\n{options}\n",
    caption="Describe.",
    system=None,
)
RULE = FrameRule(
    patch=8, merge=2, budget=512, min_tokens=16, max_tokens=16, fine_tokens=4, coarse_tokens=1, short_limit=32.0,
    long_limit=600.0, segment=8.0, max_fps=4.0, pair_gap=0.5, shrink="area",
    answer_seconds=8.0,
)  # fmt: skip
SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
VISION = {
    "depth": 5, "embed_dim": 96, "num_heads": 3, "mlp_ratio": 4, "patch_size": 8, "spatial_merge_size": 2,
    "temporal_patch_size": 2, "in_channels": 3, "hidden_act": "gelu",
}  # fmt: skip
TEXT = {
    "hidden_size": 192, "num_hidden_layers": 6, "intermediate_size": 256, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 4096, "tie_word_embeddings": True,
}  # fmt: skip
EMBEDDING_STD = 0.1
_POOL = 6  # batches drawn at once and sorted by length


@dataclass(frozen=True)
class NanoRecipe:
    """What ``task: nano`` reads: a folder `out` for the untrained model, the `tower` that `vision` made, the `scenes`
    whose words the tokenizer is fitted to and whose features are cached in `features`.

    vocabulary: tokens, special ones apart. text, vision: changes to the configuration. seed: of the weights. workers:
    processes that compute features, one core each.
    """

    task: str
    out: Path
    tower: Path
    scenes: Path
    features: Path
    vocabulary: int = 1280
    text: dict[str, Any] = field(default_factory=dict)
    vision: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    workers: int = 1


def fit_tokenizer(texts: Iterable[str], vocabulary: int) -> Any:
    """A byte-level BPE tokenizer with single digits and Qwen's special tokens, fitted to `texts`."""
    module = transformers()
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\d"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=list(SPECIAL), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(texts, trainer)
    return module.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>",
        additional_special_tokens=list(SPECIAL),
    )  # fmt: skip


def build_model(tokenizer: Any, text: dict[str, Any], vision: dict[str, Any]) -> Any:
    """An untrained Qwen2-VL of the given sizes."""
    module = transformers()
    ids = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in
           ("vision_start", "vision_end", "image_pad", "video_pad", "im_end", "endoftext")}  # fmt: skip
    words = {**TEXT, **text}
    half = words["hidden_size"] // words["num_attention_heads"] // 2
    time = half // 4
    sections = [time, (half - time) // 2, half - time - (half - time) // 2]
    config = module.Qwen2VLConfig(
        text_config={
            **words, "vocab_size": len(tokenizer), "bos_token_id": ids["endoftext"], "eos_token_id": ids["im_end"],
            "pad_token_id": ids["endoftext"],
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": sections},
        },
        vision_config={**VISION, **vision, "hidden_size": words["hidden_size"]},
        vision_start_token_id=ids["vision_start"], vision_end_token_id=ids["vision_end"],
        image_token_id=ids["image_pad"], video_token_id=ids["video_pad"], tie_word_embeddings=True,
    )  # fmt: skip
    model = module.Qwen2VLForConditionalGeneration(config)
    torch.nn.init.normal_(model.model.language_model.embed_tokens.weight, std=EMBEDDING_STD)
    model.tie_weights()
    return model


def make_nano(recipe: NanoRecipe) -> Path:
    """Fits the tokenizer, puts the trained tower into an untrained model, saves it and caches all scenes' features."""
    torch.manual_seed(recipe.seed)
    paths = sorted(recipe.scenes.glob("scenes-*.safetensors"))
    if not paths:
        raise UniTimeError(f"scenes: there is no shard in {recipe.scenes}; draw them with the scenes recipe first")
    texts: list[str] = []
    for path in paths:
        for line in path.with_suffix(".jsonl").read_text().splitlines():
            told = json.loads(line)
            texts += [text for ask in (*told["asks"], *told["absent"]) for text in ask["texts"]]
            texts += [caption for _, _, captions in told["shots"] for caption in captions]
            texts += [word for item in told["qa"] for word in (item["question"], *item["options"])]
    tokenizer = fit_tokenizer(corpus(sorted(texts)), recipe.vocabulary)
    model = build_model(tokenizer, recipe.text, recipe.vision)
    load_into(model.model.visual, load_tensors(recipe.tower), "nano's vision tower")
    scale = _scale_features(model.model.visual, load_scenes(paths[0])[0].frames)
    save_model(model, tokenizer, recipe.out, extra={"feature_scale": scale})
    log = RunLog(None)
    recipe.features.mkdir(parents=True, exist_ok=True)
    jobs = [(recipe.out, path, recipe.features / path.name.replace("scenes", "features")) for path in paths]
    with multiprocessing.get_context("spawn").Pool(min(recipe.workers, len(jobs))) as pool:
        for done, name in enumerate(pool.imap_unordered(_cache, jobs), start=1):
            log.write(event="features", shard=name, done=done)
    return recipe.out


def _cache(job: tuple[Path, Path, Path]) -> str:
    """Worker: the features of one shard by the tower as it was saved."""
    folder, shard, target = job
    torch.set_num_threads(1)
    model = transformers().Qwen2VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    cache_features(model.model.visual, shard, target)
    return shard.name


@torch.no_grad()
def _scale_features(tower: Any, frames: Tensor) -> float:
    """Scales the tower's last layer so that features are three times as large as embeddings; returns the factor."""
    features = run_tower(tower, patches(torch.stack([frames[:-GAP], frames[GAP:]], 1).float() / 255), len(frames) - GAP)
    factor = 3 * EMBEDDING_STD / float(features.std())
    tower.merger.mlp[2].weight *= factor
    tower.merger.mlp[2].bias *= factor
    return factor


@torch.no_grad()
def cache_features(tower: Any, shard: Path, target: Path, chunk: int = 256) -> None:
    """Features bf16 (pairs of frames, 4, D) of every scene of a shard, one shrunk 2 x 2 grid a pair, and its words."""
    features, lengths = [], []
    for scene in load_scenes(shard):
        pairs = torch.stack([scene.frames[:-GAP], scene.frames[GAP:]], 1)  # (F - GAP, 2, 64, 64, 3)
        lengths.append(len(pairs))
        for part in pairs.split(chunk):
            with torch.autocast("cpu", torch.bfloat16):
                tokens = run_tower(tower, patches(part.float() / 255), len(part))  # (n, 16, D)
            grid = tokens.unflatten(1, (2, CELLS // 2, 2, CELLS // 2)).mean((2, 4))  # (n, 2, 2, D)
            features.append(grid.flatten(1, 2).bfloat16())
    target.with_suffix(".jsonl").write_bytes(shard.with_suffix(".jsonl").read_bytes())
    save_file({"features": torch.cat(features), "lengths": torch.tensor(lengths)}, target)


def save_model(
    model: Any, tokenizer: Any, folder: Path, extra: dict[str, Any] | None = None, prompts: Prompts = PROMPTS
) -> None:
    """The folder that `unitime.UniTime.from_pretrained` reads: weights in bf16, configuration, tokenizer, prompts."""
    import copy

    folder.mkdir(parents=True, exist_ok=True)
    copy.deepcopy(model).bfloat16().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    record = {"prompts": prompts.to_dict(), "rule": asdict(RULE), **(extra or {})}
    (folder / "unitime.json").write_text(json.dumps(record, indent=1) + "\n")


def train_text(recipe: TextRecipe) -> Path:
    """Trains a model's language part on cached features; resumes what is in `out`. Returns ``out/model``."""
    module = transformers()
    told, features, first = load_features(recipe.features)
    tokenizer = module.AutoTokenizer.from_pretrained(recipe.model)
    model = module.Qwen2VLForConditionalGeneration.from_pretrained(
        recipe.model, dtype=torch.float32, attn_implementation="eager"
    )
    record = json.loads((recipe.model / "unitime.json").read_text())
    prompts = Prompts.from_dict(record["prompts"])
    asker = Asker(told, features, first, tokenizer, prompts, recipe)
    objective = PackedObjective(model, recipe)
    if recipe.start is not None:
        found = latest_checkpoint(recipe.start)
        if found is None:
            raise UniTimeError(f"start: there is no checkpoint in {recipe.start}; give the folder of a run of it")
        objective.load_state_dict(load_checkpoint(found)["objective"])
    free = range(recipe.held_out, len(told))
    pad = tokenizer.pad_token_id
    earlier = latest_checkpoint(recipe.out)
    spent = 0.0 if earlier is None else float(load_checkpoint(earlier)["progress"]["seconds"])
    clock, batches_a_step = TimeBudget(), recipe.loop.accumulate * int(os.environ.get("WORLD_SIZE", "1"))

    def behind(number: int) -> float:
        """Share of the run that is behind us at a batch, in every process."""
        steps, seconds = recipe.loop.steps, recipe.loop.time_budget
        by_steps = 0.0 if steps is None else number // batches_a_step / steps
        return min(1.0, max(by_steps, 0.0 if seconds is None else (spent + clock.elapsed) / seconds))

    pools: dict[int, list[list[Item]]] = {}

    def batches(number: int) -> PackedBatch:
        group, part = divmod(number, _POOL)
        if group not in pools:
            pools.clear()
            rng = random.Random(recipe.loop.seed * 1_000_003 + group)
            pools[group] = draw_pool(asker, rng, behind(group * _POOL), free)
        return collate(pools[group][part], pad)

    kept = [asker.item(random.Random(n), 1.0, range(recipe.held_out)) for n in range(24)]

    def look(progress: Any, average: Any) -> dict[str, float]:
        if progress.step % (10 * recipe.loop.log_every):
            return {}
        return evaluate(objective, [collate(kept[i : i + 6], pad) for i in range(0, len(kept), 6)])

    width, layers = model.config.text_config.hidden_size, model.config.text_config.num_hidden_layers
    weights = sum(p.numel() for p in objective.language.parameters())

    def count(batch: PackedBatch) -> tuple[int, float]:
        rows, length = batch.ids.shape
        return len(batch), 3.0 * rows * length * (2 * weights + 4 * width * layers * length)

    trained = torch.nn.ModuleDict({"language": objective.language, "head": objective.head})
    _, average = run_loop(
        recipe.loop, objective, trained, batches, recipe.out,
        groups=parameter_groups(objective, recipe.loop.weight_decay, objective.language), count=count, every_log=look,
    )  # fmt: skip
    average.copy_to(trained)
    if int(os.environ.get("RANK", "0")) == 0:
        extra = {key: value for key, value in record.items() if key not in ("prompts", "rule")}
        save_model(model, tokenizer, recipe.out / "model", extra, asker.prompts)
    return recipe.out / "model"


def draw_pool(asker: Asker, rng: random.Random, share: float, scenes: Sequence[int]) -> list[list[Item]]:
    """Items for `_POOL` batches in random order, those of one batch about equally long, so that little is padding."""
    items: list[Item] = []
    while len(items) < _POOL or sum(len(item.sample.ids) for item in items) < _POOL * asker.recipe.tokens:
        items.append(asker.item(rng, share, scenes))
    items.sort(key=lambda item: len(item.sample.ids))
    total, done = sum(len(item.sample.ids) for item in items), 0
    parts: list[list[Item]] = [[] for _ in range(_POOL)]
    for item in items:
        parts[min(_POOL - 1, done * _POOL // total)].append(item)
        done += len(item.sample.ids)
    for part in parts:
        if not part:  # one item was longer than a batch
            part.append(max(parts, key=len).pop())
    rng.shuffle(parts)
    return parts


@torch.no_grad()
def evaluate(objective: PackedObjective, batches: Iterable[PackedBatch]) -> dict[str, float]:
    """Mean figures over fixed batches of held-out scenes."""
    objective.eval()
    device = next(objective.parameters()).device
    found = [objective(batch.to(device), torch.Generator())[1] for batch in batches]
    objective.train()
    names = dict.fromkeys(name for figures in found for name in figures)  # a batch may have no caption, or no question
    return {f"held_{name}": float(torch.stack([f[name] for f in found if name in f]).mean()) for name in names}
