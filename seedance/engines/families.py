"""The families of open checkpoints: what each one's folder says of its sizes, its tasks and its defaults.

Notable choices:

- Everything here is read from the folder's JSON files. Planning a film, estimating it and refusing it load no weights
  and import no torch.
- A family says which pipeline class of diffusers serves which task and what that class is called with; how it draws is
  the pipeline's own business. `Wan` (2.1 and 2.2), `LTX` (LTX-Video), `Hunyuan` (HunyuanVideo 1.5) and `CogVideoX`.
- Defaults are those of the checkpoints' own cards and reference scripts. ``seedance.json`` beside ``model_index.json``
  may say others: ``{"defaults": {"steps": 8, "guidance_scale": 1.0}}``.
- Operations are counted by the formulas of a transformer's blocks: with cross-attention to the text, or with text and
  picture in one sequence. Tests compare them with torch's own counter.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from seedance.errors import SeedanceError
from seedance.shapes import Ratio

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from seedance.engines.folder import Checkpoint

# The reference's own negative prompt (Wan 2.1, wan/configs/shared_config.py).
WAN_NEGATIVE = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，JPEG压缩残留，"
    "丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，静止不动的画面，"
    "杂乱的背景，三条腿，背景人很多，倒着走"
)
LTX_NEGATIVE = "worst quality, inconsistent motion, blurry, jittery, distorted"

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Start:
    """What a checkpoint is rendered with where neither the caller nor its ``seedance.json`` says otherwise.

    ``frames`` is also the most that the checkpoint was trained on; longer shots are noted.
    """

    height: int
    width: int
    fps: float
    frames: int
    steps: int
    guidance_scale: float
    negative_prompt: str = ""
    call: Mapping[str, Any] = field(default_factory=dict)  # further arguments of the pipeline


class Family(ABC):
    """One family. `classes` are the pipelines whose folders belong to it, `parts` the class each part must have."""

    name: ClassVar[str]
    classes: ClassVar[tuple[str, ...]]
    parts: ClassVar[Mapping[str, str]]
    joint: ClassVar[bool] = False  # text and picture in one sequence
    doubled: ClassVar[bool] = False  # both branches of guidance in one call of the transformer, that with words last
    text_tokens: ClassVar[int] = 512
    embeds: ClassVar[tuple[str, ...]] = ("prompt_embeds", "negative_prompt_embeds")  # what encode_prompt returns
    fp32_vae: ClassVar[bool] = False

    @abstractmethod
    def ratio(self, checkpoint: Checkpoint) -> Ratio:
        """How the checkpoint's pixels become latents and tokens."""

    @abstractmethod
    def tasks(self, checkpoint: Checkpoint) -> frozenset[str]:
        """What it can be given beside words: "text" (nothing), "image" (a first frame), "last" (a last one too); "last"
        alone is a model that needs both."""

    @abstractmethod
    def start(self, checkpoint: Checkpoint) -> Start:
        """Sizes, steps and guidance to begin with."""

    @abstractmethod
    def pipeline(self, checkpoint: Checkpoint, task: str) -> str:
        """The class of diffusers that does `task` ("text", "image" or "last") with this checkpoint's parts, or that
        turns its prompts into states ("words")."""

    def fit_size(self, checkpoint: Checkpoint, height: int, width: int) -> tuple[int, int]:
        """The nearest size the checkpoint renders."""
        ratio = self.ratio(checkpoint)
        return ratio.fit_side(height), ratio.fit_side(width)

    def words(self, pipe: Any, prompt: str, negative: str, scale: float) -> dict[str, Any]:
        """The text's states, by the names under which the pipeline takes them in the place of words.

        Asked for at the length that the pipeline itself uses: `encode_prompt` alone has other defaults (Wan: 226 for
        512), and states of another length are another film.
        """
        import inspect

        length = inspect.signature(type(pipe).__call__).parameters["max_sequence_length"].default
        found = pipe.encode_prompt(
            prompt=prompt, negative_prompt=negative, do_classifier_free_guidance=scale > 1, max_sequence_length=length
        )  # fmt: skip
        return dict(zip(self.embeds, found, strict=True))

    def arguments(
        self, pipe: Any, pictures: Mapping[str, Any], *, height: int, width: int, frames: int, fps: float, scale: float
    ) -> dict[str, Any]:
        """The call's other arguments. `pictures` holds PIL images of the film's size under "image" and "last"."""
        said: dict[str, Any] = {"height": height, "width": width, "num_frames": frames, "guidance_scale": scale}
        if "image" in pictures:
            said["image"] = pictures["image"]
        if "last" in pictures:
            said["last_image"] = pictures["last"]
        return said

    def unpacked(self, pipe: Any, latents: Tensor, shape: tuple[int, int, int]) -> Tensor:
        """The sampler's latents as (B, C, t, h, w), for previews; `shape` is (t, h, w)."""
        return latents

    def widths(self, config: Config) -> tuple[int, int, int]:
        """Blocks, width and hidden width of the transformer."""
        dim = config["num_attention_heads"] * config["attention_head_dim"]
        return config["num_layers"], dim, config.get("ffn_dim") or 4 * dim

    def flops(self, config: Config, tokens: int, text: int | None = None) -> int:
        """Operations of one pass over `tokens` picture tokens and `text` text tokens, of one film and one branch."""
        layers, d, f = self.widths(config)
        t = self.text_tokens if text is None else text
        if self.joint:
            n = tokens + t
            return layers * (8 * n * d * d + 4 * n * d * f + 4 * n * n * d)
        s = tokens
        return layers * (12 * s * d * d + 4 * s * d * f + 4 * t * d * d + 4 * s * s * d + 4 * s * t * d)


class Wan(Family):
    """Wan 2.1 and 2.2: a DiT with cross-attention to UMT5's states and a causal VAE."""

    name = "Wan"
    classes = ("WanPipeline", "WanImageToVideoPipeline")
    parts = {
        "transformer": "WanTransformer3DModel", "transformer_2": "WanTransformer3DModel", "vae": "AutoencoderKLWan",
        "text_encoder": "UMT5EncoderModel",
    }  # fmt: skip
    fp32_vae = True  # as the checkpoints' cards have it: a VAE in bf16 bands skies and skin

    def ratio(self, checkpoint: Checkpoint) -> Ratio:
        vae, patch = checkpoint.config("vae"), self._transformer(checkpoint)["patch_size"]
        return Ratio(vae.get("scale_factor_temporal", 4), vae.get("scale_factor_spatial", 8), patch[1], patch[0])

    def tasks(self, checkpoint: Checkpoint) -> frozenset[str]:
        config, z = self._transformer(checkpoint), checkpoint.config("vae").get("z_dim", 16)
        channels = config.get("in_channels", 16)
        if channels == z:
            return frozenset({"text", "image"} if checkpoint.index.get("expand_timesteps") else {"text"})
        if channels != 2 * z + 4:  # noise, picture, and the mask's four frames of one latent
            raise SeedanceError(
                f"model: {checkpoint.folder} has a transformer of {channels} channels for latents of {z}, which is "
                "neither Wan from text nor from pictures; control and edit models are not supported"
            )
        if config.get("image_dim") is None:  # Wan 2.2
            return frozenset({"image", "last"})
        # 2.1 has a picture encoder: made for one picture, or for two and then for no fewer.
        return frozenset({"image"} if config.get("pos_embed_seq_len") is None else {"last"})

    def start(self, checkpoint: Checkpoint) -> Start:
        config = self._transformer(checkpoint)
        wide = config.get("num_attention_heads", 40) * config.get("attention_head_dim", 128)
        if checkpoint.index.get("expand_timesteps"):  # TI2V-5B
            return Start(704, 1280, 24.0, 121, 50, 5.0, WAN_NEGATIVE)
        if checkpoint.index.get("boundary_ratio") is not None:  # A14B: guidance of the two experts
            if "text" in self.tasks(checkpoint):
                return Start(720, 1280, 16.0, 81, 40, 4.0, WAN_NEGATIVE, {"guidance_scale_2": 3.0})
            return Start(720, 1280, 16.0, 81, 40, 3.5, WAN_NEGATIVE)
        small = wide <= 1536 or checkpoint.config("scheduler").get("flow_shift") == 3.0  # 3 is the shift of 480p
        return Start(480 if small else 720, 832 if small else 1280, 16.0, 81, 50, 5.0, WAN_NEGATIVE)

    def pipeline(self, checkpoint: Checkpoint, task: str) -> str:
        # Its encode_prompt is the same in both; the other one's fails without the package ftfy (diffusers 0.42).
        return "WanPipeline" if task in ("text", "words") else "WanImageToVideoPipeline"

    @staticmethod
    def _transformer(checkpoint: Checkpoint) -> Config:
        return checkpoint.config("transformer" if "transformer" in checkpoint.parts else "transformer_2")


class LTX(Family):
    """LTX-Video (0.9 to 0.9.8): a DiT over strongly compressed latents, whose VAE may itself remove noise."""

    name = "LTX-Video"
    classes = ("LTXPipeline", "LTXImageToVideoPipeline", "LTXConditionPipeline")
    parts = {
        "transformer": "LTXVideoTransformer3DModel", "vae": "AutoencoderKLLTXVideo", "text_encoder": "T5EncoderModel",
    }  # fmt: skip
    text_tokens = 128
    doubled = True
    embeds = (
        "prompt_embeds", "prompt_attention_mask", "negative_prompt_embeds", "negative_prompt_attention_mask",
    )  # fmt: skip

    def ratio(self, checkpoint: Checkpoint) -> Ratio:
        vae, transformer = checkpoint.config("vae"), checkpoint.config("transformer")
        halved = 2 ** sum(map(bool, vae.get("spatio_temporal_scaling", (True, True, True, False))))
        return Ratio(
            vae.get("temporal_compression_ratio") or vae.get("patch_size_t", 1) * halved,
            vae.get("spatial_compression_ratio") or vae.get("patch_size", 4) * halved,
            transformer.get("patch_size", 1),
            transformer.get("patch_size_t", 1),
        )

    def tasks(self, checkpoint: Checkpoint) -> frozenset[str]:
        # Pictures at any frame came with 0.9.5, whose folders name the pipeline that takes them.
        ends = checkpoint.index["_class_name"] == "LTXConditionPipeline"
        return frozenset({"text", "image", "last"} if ends else {"text", "image"})

    def start(self, checkpoint: Checkpoint) -> Start:
        denoises = checkpoint.config("vae").get("timestep_conditioning", False)
        call = {"decode_timestep": 0.05, "decode_noise_scale": 0.025} if denoises else {}
        return Start(512, 704, 25.0, 121, 50, 3.0, LTX_NEGATIVE, call)

    def pipeline(self, checkpoint: Checkpoint, task: str) -> str:
        if checkpoint.index["_class_name"] == "LTXConditionPipeline":
            return "LTXConditionPipeline"
        return "LTXPipeline" if task in ("text", "words") else "LTXImageToVideoPipeline"

    def arguments(
        self, pipe: Any, pictures: Mapping[str, Any], *, height: int, width: int, frames: int, fps: float, scale: float
    ) -> dict[str, Any]:
        said: dict[str, Any] = {"height": height, "width": width, "num_frames": frames, "frame_rate": fps}
        said["guidance_scale"] = scale
        if type(pipe).__name__ != "LTXConditionPipeline":
            return said | ({"image": pictures["image"]} if "image" in pictures else {})
        where = {"image": 0, "last": frames - 1}
        given = [key for key in where if key in pictures]
        if given:
            said |= {"image": [pictures[key] for key in given], "frame_index": [where[key] for key in given]}
            said["video"] = [None] * len(given)
        return said

    def unpacked(self, pipe: Any, latents: Tensor, shape: tuple[int, int, int]) -> Tensor:
        if latents.ndim == 5:
            return latents
        t, h, w = shape
        spatial, temporal = pipe.transformer_spatial_patch_size, pipe.transformer_temporal_patch_size
        kept = math.prod((t // temporal, h // spatial, w // spatial))  # later tokens are pictures it is given
        found: Tensor = pipe._unpack_latents(latents[:, -kept:], t, h, w, spatial, temporal)
        return found

    def widths(self, config: Config) -> tuple[int, int, int]:
        dim = config["num_attention_heads"] * config["attention_head_dim"]
        return config["num_layers"], dim, 4 * dim


class Hunyuan(Family):
    """HunyuanVideo 1.5: text and picture in one sequence, states of Qwen2.5-VL and of byT5, guidance by a guider."""

    name = "HunyuanVideo 1.5"
    classes = ("HunyuanVideo15Pipeline", "HunyuanVideo15ImageToVideoPipeline")
    parts = {"transformer": "HunyuanVideo15Transformer3DModel", "vae": "AutoencoderKLHunyuanVideo15"}
    joint = True
    text_tokens = 1000 + 256 + 729  # words, glyphs, picture
    embeds = ("prompt_embeds", "prompt_embeds_mask", "prompt_embeds_2", "prompt_embeds_mask_2")

    def ratio(self, checkpoint: Checkpoint) -> Ratio:
        vae, transformer = checkpoint.config("vae"), checkpoint.config("transformer")
        return Ratio(
            vae.get("temporal_compression_ratio", 4),
            vae.get("spatial_compression_ratio", 16),
            transformer.get("patch_size", 1),
            transformer.get("patch_size_t", 1),
        )

    def tasks(self, checkpoint: Checkpoint) -> frozenset[str]:
        pictures = checkpoint.index["_class_name"] == "HunyuanVideo15ImageToVideoPipeline"
        return frozenset({"image"} if pictures else {"text"})

    def start(self, checkpoint: Checkpoint) -> Start:
        height, width = self._bucket(checkpoint, 9, 16)
        scale = checkpoint.config("guider").get("guidance_scale", 6.0)
        return Start(height, width, 24.0, 121, 50, scale)

    def pipeline(self, checkpoint: Checkpoint, task: str) -> str:
        return "HunyuanVideo15Pipeline" if task in ("text", "words") else "HunyuanVideo15ImageToVideoPipeline"

    def fit_size(self, checkpoint: Checkpoint, height: int, width: int) -> tuple[int, int]:
        if "image" in self.tasks(checkpoint):  # the pipeline takes the size from the picture, one of a set
            found = self._bucket(checkpoint, height, width)
            while (again := self._bucket(checkpoint, *found)) != found:  # it asks again about the fitted picture
                found = again
            return found
        return super().fit_size(checkpoint, height, width)

    def words(self, pipe: Any, prompt: str, negative: str, scale: float) -> dict[str, Any]:
        said = {"batch_size": 1, "dtype": pipe.transformer.dtype}
        found = dict(zip(self.embeds, pipe.encode_prompt(prompt=prompt, **said), strict=True))
        if not math.isclose(scale, 1.0):
            against = pipe.encode_prompt(prompt=negative, **said)
            found |= {f"negative_{key}": state for key, state in zip(self.embeds, against, strict=True)}
        return found

    def arguments(
        self, pipe: Any, pictures: Mapping[str, Any], *, height: int, width: int, frames: int, fps: float, scale: float
    ) -> dict[str, Any]:
        pipe.guider = pipe.guider.new(guidance_scale=scale)
        if "image" in pictures:
            return {"num_frames": frames, "image": pictures["image"]}
        return {"height": height, "width": width, "num_frames": frames}

    def widths(self, config: Config) -> tuple[int, int, int]:
        dim = config["num_attention_heads"] * config["attention_head_dim"]
        return config["num_layers"], dim, int(config.get("mlp_ratio", 4.0) * dim)

    def _bucket(self, checkpoint: Checkpoint, height: int, width: int) -> tuple[int, int]:
        """The size of about ``target_size`` squared pixels whose shape is nearest to the one asked for, on the side of
        the square, as the pipeline chooses it."""
        target = checkpoint.config("transformer").get("target_size", 640)
        patch = self.ratio(checkpoint).space
        cells = round((target / patch) ** 2)
        sizes, tall, wide = [], cells, 1
        while tall > 0:
            if max(tall, wide) <= 4 * min(tall, wide):
                sizes.append((tall * patch, wide * patch))
            if (wide + 1) * tall <= cells:
                wide += 1
            else:
                tall -= 1
        asked = height / width
        shapes = {size: round(size[0] / size[1], 5) for size in sizes}
        inner = [size for size in sizes if (shapes[size] <= asked if asked >= 1 else shapes[size] >= asked)]
        return min(inner, key=lambda size: abs(shapes[size] - asked))


class CogVideoX(Family):
    """CogVideoX (2B, 5B) and 1.5: text and picture in one sequence, T5's states."""

    name = "CogVideoX"
    classes = ("CogVideoXPipeline", "CogVideoXImageToVideoPipeline")
    parts = {
        "transformer": "CogVideoXTransformer3DModel", "vae": "AutoencoderKLCogVideoX", "text_encoder": "T5EncoderModel",
    }  # fmt: skip
    joint = doubled = True
    text_tokens = 226

    def ratio(self, checkpoint: Checkpoint) -> Ratio:
        vae, transformer = checkpoint.config("vae"), checkpoint.config("transformer")
        space = 2 ** (len(vae.get("block_out_channels", (0,) * 4)) - 1)
        return Ratio(
            int(vae.get("temporal_compression_ratio", 4)),
            space,
            transformer.get("patch_size", 2),
            transformer.get("patch_size_t") or 1,
            group=2,  # its VAE decodes two at a time, and an even number of them into frames that are no 1 + 4n
        )

    def tasks(self, checkpoint: Checkpoint) -> frozenset[str]:
        pictures = checkpoint.index["_class_name"] == "CogVideoXImageToVideoPipeline"
        return frozenset({"image"} if pictures else {"text"})

    def start(self, checkpoint: Checkpoint) -> Start:
        config, space = checkpoint.config("transformer"), self.ratio(checkpoint).space
        newer = config.get("patch_size_t") is not None  # 1.5: twice the rate
        return Start(
            config.get("sample_height", 60) * space,
            config.get("sample_width", 90) * space,
            16.0 if newer else 8.0,
            config.get("sample_frames", 81 if newer else 49),
            50,
            6.0,
        )

    def pipeline(self, checkpoint: Checkpoint, task: str) -> str:
        return "CogVideoXPipeline" if task in ("text", "words") else "CogVideoXImageToVideoPipeline"

    def unpacked(self, pipe: Any, latents: Tensor, shape: tuple[int, int, int]) -> Tensor:
        return latents.transpose(1, 2)  # (B, t, C, h, w)


FAMILIES: tuple[Family, ...] = (Wan(), LTX(), Hunyuan(), CogVideoX())


def family_of(class_name: str) -> Family:
    """The family a pipeline class belongs to; SeedanceError names those there are."""
    for family in FAMILIES:
        if class_name in family.classes:
            return family
    known = "; ".join(f"{family.name} ({', '.join(family.classes)})" for family in FAMILIES)
    raise SeedanceError(f"model: no engine for a {class_name}; there are Seedance and, through diffusers, {known}")


def picture(pixels: np.ndarray) -> Any:
    """uint8 (H, W, 3) as the PIL image that pipelines take."""
    from PIL import Image

    return Image.fromarray(pixels)
