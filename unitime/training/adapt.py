"""Training of any Qwen-VL checkpoint for grounding on benchmarks' files: task ``adapt``.

LoRA adapters of a large model (UniTime's own training), or with ``lora: null`` the whole language model of a small one.

Notable choices:

- The same loader, sequences, positions and features as at inference; only masks and labels are added
  (`unitime.training.lessons`). The vision tower is frozen, and its features are kept on disk: in later epochs a step
  costs the language model alone.
- The base is no part of the objective that the loop trains and saves: with LoRA, checkpoints and what processes share
  are the adapters alone, and the base may be bf16 while they are float32.
- Every query counts the same in the loss, however it is packed: the mean over queries of the mean over an answer's
  tokens. Logits are made for the answers' tokens only.
- Dropout is drawn from the loop's generator, which knows the batch's number, so a resumed run drops what the
  uninterrupted one would, on any device.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from shots.errors import ShotsError
from shots.runtime.device import pick_device
from shots.runtime.loop import LoopConfig, run_loop
from shots.runtime.optim import parameter_groups
from shots.runtime.runlog import RunLog
from unitime.errors import UniTimeError
from unitime.features import FeatureCache
from unitime.model import SETTINGS, VisionLanguageModel
from unitime.prompts import Prompts
from unitime.training.lessons import Batch, Batches, LessonConfig, Source, survey
from unitime.training.lora import LoRA, LoRAConfig

_SHAPE = ("patch", "merge", "temporal_patch")  # of a frame rule: the model's own


@dataclass(frozen=True)
class AdaptRecipe:
    """What ``task: adapt`` reads.

    out: run folder; the result is ``out/adapter``, or ``out/model`` where ``lora`` is null. model, revision: shipped
    name, folder or hub id. data: annotations with their videos. batch: sequences in a step of one process
    (``loop.accumulate`` steps of the optimizer's). epochs: passes over all sequences after which the run ends, if
    ``loop.steps`` and ``loop.time_budget`` do not end it before. prompts, rule: changes to the model's own, saved with
    the result. checkpointing: layers are computed again in the backward pass, which saves most of the memory.
    features, features_gb: where vision features are kept (``out/features``) and how many of them. ``loop.ema``: of what
    is trained, 0 for none.
    """

    task: str
    out: Path
    model: str
    data: list[Source]
    loop: LoopConfig
    lora: LoRAConfig | None = field(default_factory=LoRAConfig)
    lessons: LessonConfig = field(default_factory=LessonConfig)
    batch: int = 1
    epochs: float | None = None
    prompts: dict[str, Any] = field(default_factory=dict)
    rule: dict[str, Any] = field(default_factory=dict)
    checkpointing: bool = False
    features: Path | None = None
    features_gb: float = 20.0
    revision: str | None = None

    def __post_init__(self) -> None:
        if not self.data:
            raise UniTimeError("data: is empty; give at least one {annotations: FILE, videos: FOLDER}")
        if self.batch < 1:
            raise UniTimeError(f"batch: {self.batch}; at least 1 is needed")
        if self.epochs is not None and not self.epochs > 0:
            raise UniTimeError(f"epochs: {self.epochs:g}; more than 0 are needed")
        if taken := [name for name in _SHAPE if name in self.rule]:
            raise UniTimeError(f"rule.{taken[0]}: is the model's own and cannot be changed")


class GroundingObjective(nn.Module):
    """Next-token loss on the answers. ``trained`` is all that it registers; the rest of the model stays outside."""

    def __init__(self, model: VisionLanguageModel, trained: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.trained = trained

    def forward(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))  # of dropout
        hidden = self.model.hidden(batch.ids, batch.positions, batch.mask, batch.pads, batch.features)  # (B, M, D)
        learned = batch.weights[:, 1:] > 0  # (B, M - 1)
        logits = self.model.net.lm_head(hidden[:, :-1][learned]).float()  # (N, V)
        target = batch.ids[:, 1:][learned]  # (N,)
        loss = (F.cross_entropy(logits, target, reduction="none") * batch.weights[:, 1:][learned]).sum()
        return loss, {"right": (logits.argmax(-1) == target).float().mean()}


def load(recipe: AdaptRecipe) -> VisionLanguageModel:
    """The model to train, everything frozen, with the recipe's prompts and rule."""
    device = _own_device(recipe.loop.device)
    model = VisionLanguageModel.from_pretrained(
        recipe.model,
        revision=recipe.revision,
        dtype="fp32" if recipe.lora is None else recipe.loop.dtype,
        device=device,
        attention="eager" if pick_device(device).type == "cpu" else "sdpa",  # see unitime.model
    )
    model.prompts = Prompts.from_dict(model.prompts.to_dict() | recipe.prompts)
    try:
        model.rule = dataclasses.replace(model.rule, **recipe.rule)
    except TypeError as error:
        raise UniTimeError(f"rule: {error}") from error
    model.net.requires_grad_(False)
    return model


def _own_device(name: str | None) -> str | None:
    """The device of this process: with several, the GPU of its local rank, as accelerate hands them out."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and name in (None, "cuda") and torch.cuda.is_available():
        return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    return name


def train_adapt(recipe: AdaptRecipe) -> Path:
    """Trains by a recipe; resumes what is in ``out``. Returns the folder of the adapter or of the whole model."""
    if recipe.loop.threads is not None:
        torch.set_num_threads(recipe.loop.threads)
    rank, processes = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    log = RunLog(recipe.out / "log.jsonl" if rank == 0 else None)
    model = load(recipe)
    quiet = RunLog(None, quiet=True)
    lessons = survey(
        recipe.data, model, recipe.lessons, recipe.loop.seed, log.write if rank == 0 else quiet.write
    )  # fmt: skip
    epoch = len(lessons) / (recipe.batch * recipe.loop.accumulate * processes)  # in steps
    if rank == 0:
        log.write(event="epoch", steps=math.ceil(epoch))
    loop = recipe.loop
    if recipe.epochs is not None:
        steps = math.ceil(recipe.epochs * epoch)
        loop = dataclasses.replace(loop, steps=min(steps, loop.steps or steps))

    language = model.net.model.language_model
    trained: nn.Module
    if recipe.lora is None:
        trained = nn.ModuleDict({"language": language, "head": model.net.lm_head}).requires_grad_(True)
    else:
        trained = LoRA(model.net, recipe.lora, loop.seed)
    if recipe.checkpointing:
        for layer in language.layers:
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    objective = GroundingObjective(model, trained)
    cache = FeatureCache(recipe.features or recipe.out / "features", int(recipe.features_gb * 2**30))
    batches = Batches(lessons, model, cache, recipe.batch, loop.seed, log.write)
    progress, average = run_loop(
        loop, objective, trained if loop.ema > 0 else nn.Module(), batches, recipe.out,
        groups=parameter_groups(objective, loop.weight_decay), count=_counted(model, recipe.lora is not None),
        log=log if rank == 0 else quiet,
    )  # fmt: skip
    if loop.ema > 0:
        average.copy_to(trained)
    for layer in language.layers if recipe.checkpointing else ():
        del layer.forward
    objective.eval()
    folder = recipe.out / ("model" if recipe.lora is None else "adapter")
    if rank == 0:
        if not progress.step:
            raise ShotsError("loop: the run was stopped before its first step; there is nothing to save")
        _save(model, trained, recipe, folder)
        log.write(event="saved", folder=str(folder))
    return folder


def _counted(model: VisionLanguageModel, frozen: bool) -> Any:
    """Batch -> (queries, floating-point operations of a training step on it). A frozen weight has no gradient."""
    config = model.net.config.text_config
    weights = sum(p.numel() for p in model.net.model.language_model.layers.parameters())
    attention = 4 * config.hidden_size * config.num_hidden_layers

    def count(batch: Batch) -> tuple[int, float]:
        rows, length = batch.ids.shape
        return len(batch), rows * length * ((4.0 if frozen else 6.0) * weights + 3.0 * attention * length)

    return count


def _save(model: VisionLanguageModel, trained: nn.Module, recipe: AdaptRecipe, folder: Path) -> None:
    if isinstance(trained, LoRA):
        trained.save(folder, recipe.model)
        settings: dict[str, Any] = {"prompts": model.prompts.to_dict(), "rule": asdict(model.rule)}
        settings |= {} if model.threshold is None else {"not_found_threshold": model.threshold}
        (folder / SETTINGS).write_text(json.dumps(settings, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    else:
        model.net.to(_stored_dtype(model))
        model.save_pretrained(folder)


def _stored_dtype(model: VisionLanguageModel) -> torch.dtype:
    """The numbers that the checkpoint was stored in, which its successor is stored in too."""
    record = json.loads((model.folder / "config.json").read_text(encoding="utf-8")) if model.folder else {}
    kind = getattr(torch, str(record.get("dtype") or record.get("torch_dtype")), None)
    return kind if isinstance(kind, torch.dtype) else torch.float32
