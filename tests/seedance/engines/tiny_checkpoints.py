"""Tiny checkpoints of random weights in diffusers' layout, written to a folder and read by the real loaders.

Each function writes one whole checkpoint (a few hundred kB) and returns its folder: `wan` with the variants of Wan 2.1
and 2.2, `ltx`, `hunyuan`, `cogvideox`. `seedance.json` beside them keeps films small: 32 x 32, 5 frames, 2 steps.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from shots.runtime.vision import transformers as _transformers

WORDS = [
    "a", "red", "blue", "cube", "sphere", "jumps", "spins", "on", "the", "floor", ".", ",", "camera", "pans", "left",
    "slowly", "street", "at", "night", "bad",
]  # fmt: skip
SMALL = {"height": 32, "width": 32, "fps": 8.0, "seconds": 0.625, "steps": 2}


def t5_tokenizer(length: int = 512) -> Any:
    """A unigram tokenizer of a few words and all letters."""
    letters = [chr(code) for code in range(32, 127)]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [(f"▁{word}", -2.0) for word in WORDS] + [("▁", -3.0)] + [(letter, -6.0) for letter in letters]
    return _transformers().T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=length)


def umt5(dim: int = 32) -> Any:
    """A UMT5 encoder for `t5_tokenizer`."""
    said = {"d_kv": 8, "d_ff": 37, "num_layers": 2, "num_heads": 4, "vocab_size": 160}
    return _transformers().UMT5EncoderModel(_transformers().UMT5Config(d_model=dim, **said))


def t5(dim: int = 32, vocabulary: int = 160) -> Any:
    """A T5 encoder for `t5_tokenizer`."""
    said = {"d_kv": 8, "d_ff": 37, "num_layers": 2, "num_heads": 4, "vocab_size": vocabulary}
    return _transformers().T5EncoderModel(_transformers().T5Config(d_model=dim, **said))


def _lively(module: torch.nn.Module) -> torch.nn.Module:
    """`module` with its paths opened: what training starts at zero would hide what a condition does."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "norm" not in name and parameter.abs().max() < 1e-4:
                parameter.normal_(std=0.02)
    return module.eval()


def write(folder: Path, cls: str, parts: dict[str, Any], defaults: dict[str, Any] | None = None, **config: Any) -> Path:
    """Writes a checkpoint with diffusers' own `save_pretrained`."""
    _transformers()
    import diffusers

    pipe = getattr(diffusers, cls)(**parts, **config)
    pipe.save_pretrained(folder)
    (folder / "seedance.json").write_text(json.dumps({"defaults": {**SMALL, **(defaults or {})}}))
    return folder


def wan_vae(z_dim: int = 16, space: int = 8) -> Any:
    """A Wan VAE: 2.1's (8 pixels a cell) or 2.2's (16)."""
    from diffusers import AutoencoderKLWan

    statistics = {
        "latents_mean": [0.05 * k for k in range(z_dim)], "latents_std": [1.0 + 0.05 * k for k in range(z_dim)],
    }  # fmt: skip
    shape: dict[str, Any] = {"base_dim": 3, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}
    if space == 16:  # as in Wan 2.2: pixels are put into channels two by two, and blocks have shortcuts
        shape |= {"decoder_base_dim": 3, "is_residual": True, "patch_size": 2, "in_channels": 12, "out_channels": 12}
        shape |= {"scale_factor_spatial": 16, "scale_factor_temporal": 4}
    return AutoencoderKLWan(z_dim=z_dim, temperal_downsample=[False, True, True], **shape, **statistics).eval()


def wan_transformer(in_channels: int = 16, out_channels: int = 16, dim: int = 24, **more: Any) -> Any:
    """A Wan transformer of two blocks."""
    from diffusers import WanTransformer3DModel

    model = WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=dim // 2, in_channels=in_channels,
        out_channels=out_channels, text_dim=32, freq_dim=32, ffn_dim=2 * dim, num_layers=2, rope_max_seq_len=32, **more,
    )  # fmt: skip
    return _lively(model)


def wan(folder: Path, variant: str = "t2v", seed: int = 0) -> Path:
    """A Wan checkpoint: "t2v" (2.1), "i2v" and "flf2v" (2.1, with a picture encoder), "t2v-a14b" and "i2v-a14b" (2.2,
    two experts), "ti2v" (2.2, 5B)."""
    torch.manual_seed(seed)
    _transformers()
    from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

    parts: dict[str, Any] = {"tokenizer": t5_tokenizer(), "text_encoder": umt5().eval()}
    config: dict[str, Any] = {}
    parts["scheduler"] = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=3.0
    )
    channels = 36 if variant in ("i2v", "flf2v", "i2v-a14b") else 48 if variant == "ti2v" else 16
    parts["vae"] = wan_vae(48, 16) if variant == "ti2v" else wan_vae()
    more: dict[str, Any] = {}
    if variant in ("i2v", "flf2v"):
        tf = _transformers()
        vision = tf.CLIPVisionConfig(
            hidden_size=16, projection_dim=16, num_hidden_layers=2, num_attention_heads=2, image_size=32,
            intermediate_size=24, patch_size=16,
        )  # fmt: skip
        parts["image_encoder"] = tf.CLIPVisionModel(vision).eval()
        parts["image_processor"] = tf.CLIPImageProcessor(crop_size=32, size=32)
        more = {"image_dim": 16, "added_kv_proj_dim": 24, "pos_embed_seq_len": 2 * 5 if variant == "flf2v" else None}
    elif variant.startswith(("i2v", "flf2v")):
        parts |= {"image_encoder": None, "image_processor": None}
    parts["transformer"] = wan_transformer(channels, 48 if variant == "ti2v" else 16, **more)
    parts["transformer_2"] = wan_transformer(channels, 16) if variant.endswith("a14b") else None
    if variant.endswith("a14b"):
        config["boundary_ratio"] = 0.875
        parts["scheduler"] = FlowMatchEulerDiscreteScheduler(shift=12.0)
    if variant == "ti2v":
        config["expand_timesteps"] = True
    cls = "WanImageToVideoPipeline" if variant in ("i2v", "flf2v", "i2v-a14b") else "WanPipeline"
    return write(folder, cls, parts, **config)


def ltx(folder: Path, cls: str = "LTXPipeline", seed: int = 0) -> Path:
    """An LTX-Video checkpoint; of "LTXConditionPipeline" with a VAE that removes noise itself, as from 0.9.5 on."""
    torch.manual_seed(seed)
    _transformers()
    from diffusers import AutoencoderKLLTXVideo, FlowMatchEulerDiscreteScheduler, LTXVideoTransformer3DModel

    newer = cls == "LTXConditionPipeline"
    transformer = LTXVideoTransformer3DModel(
        in_channels=8, out_channels=8, patch_size=1, patch_size_t=1, num_attention_heads=4, attention_head_dim=8,
        cross_attention_dim=32, num_layers=2, caption_channels=32,
    )  # fmt: skip
    vae = AutoencoderKLLTXVideo(
        in_channels=3, out_channels=3, latent_channels=8, block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8), layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1), spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False), decoder_inject_noise=(False,) * 5,
        upsample_residual=(False,) * 4, upsample_factor=(1,) * 4, timestep_conditioning=newer, patch_size=1,
        patch_size_t=1, encoder_causal=True, decoder_causal=False,
    )  # fmt: skip
    vae.register_buffer("latents_mean", torch.linspace(-0.1, 0.1, 8))
    vae.register_buffer("latents_std", torch.linspace(0.9, 1.1, 8))
    parts = {
        "tokenizer": t5_tokenizer(128), "text_encoder": t5().eval(), "vae": _lively(vae),
        "transformer": _lively(transformer), "scheduler": FlowMatchEulerDiscreteScheduler(),
    }  # fmt: skip
    return write(folder, cls, parts)


def cogvideox(folder: Path, variant: str = "t2v", seed: int = 0) -> Path:
    """A CogVideoX checkpoint: "t2v", "i2v", or "1.5" (two latent frames a token)."""
    torch.manual_seed(seed)
    _transformers()
    from diffusers import AutoencoderKLCogVideoX, CogVideoXDDIMScheduler, CogVideoXTransformer3DModel

    i2v = variant == "i2v"
    newer = {"patch_size_t": 2, "patch_bias": False} if variant == "1.5" else {}
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=4, attention_head_dim=16, in_channels=8 if i2v else 4, out_channels=4, time_embed_dim=2,
        text_embed_dim=32, num_layers=1, sample_width=4, sample_height=4, sample_frames=5, patch_size=2,
        temporal_compression_ratio=4, max_text_seq_length=226, use_rotary_positional_embeddings=True, **newer,
    )  # fmt: skip
    vae = AutoencoderKLCogVideoX(
        in_channels=3, out_channels=3, block_out_channels=(8, 8, 8, 8), latent_channels=4, layers_per_block=1,
        norm_num_groups=2, temporal_compression_ratio=4,
        down_block_types=("CogVideoXDownBlock3D",) * 4, up_block_types=("CogVideoXUpBlock3D",) * 4,
    )  # fmt: skip
    parts = {
        "tokenizer": t5_tokenizer(226), "text_encoder": t5().eval(), "vae": _lively(vae),
        "transformer": _lively(transformer), "scheduler": CogVideoXDDIMScheduler(),
    }  # fmt: skip
    return write(folder, "CogVideoXImageToVideoPipeline" if i2v else "CogVideoXPipeline", parts)


def make(name: str, folder: Path) -> Path:
    """The checkpoint of a name: "wan-" and a variant, "ltx", "ltx-condition", "cogvideox-" and a variant, "hunyuan",
    "hunyuan-i2v"."""
    family, _, variant = name.partition("-")
    if family == "wan":
        return wan(folder, variant)
    if family == "ltx":
        return ltx(folder, "LTXConditionPipeline" if variant else "LTXPipeline")
    if family == "cogvideox":
        return cogvideox(folder, variant)
    return hunyuan(folder, variant == "i2v")


def hunyuan(folder: Path, pictures: bool = False, seed: int = 0) -> Path:
    """A HunyuanVideo 1.5 checkpoint, from words or from pictures."""
    torch.manual_seed(seed)
    tf = _transformers()
    from diffusers import (
        AutoencoderKLHunyuanVideo15,
        ClassifierFreeGuidance,
        FlowMatchEulerDiscreteScheduler,
        HunyuanVideo15Transformer3DModel,
    )

    transformer = HunyuanVideo15Transformer3DModel(
        in_channels=9, out_channels=4, num_attention_heads=2, attention_head_dim=8, num_layers=2, num_refiner_layers=1,
        mlp_ratio=2.0, patch_size=1, patch_size_t=1, text_embed_dim=16, text_embed_2_dim=32, image_embed_dim=12,
        rope_axes_dim=(2, 2, 4), target_size=32, task_type="i2v" if pictures else "t2v",
    )  # fmt: skip
    vae = AutoencoderKLHunyuanVideo15(
        in_channels=3, out_channels=3, latent_channels=4, block_out_channels=(16, 16, 16, 16, 16), layers_per_block=1,
        spatial_compression_ratio=16, temporal_compression_ratio=4,
    )  # fmt: skip
    text = tf.Qwen2_5_VLTextConfig(
        vocab_size=300, hidden_size=16, num_hidden_layers=4, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=16, max_position_embeddings=2048, pad_token_id=0,
        rope_parameters={"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0},
    )  # fmt: skip
    parts: dict[str, Any] = {
        "text_encoder": tf.Qwen2_5_VLTextModel(text).eval(), "tokenizer": chat_tokenizer(),
        "text_encoder_2": t5(vocabulary=400).eval(), "tokenizer_2": tf.ByT5Tokenizer(), "vae": _lively(vae),
        "transformer": _lively(transformer), "scheduler": FlowMatchEulerDiscreteScheduler(shift=5.0),
        "guider": ClassifierFreeGuidance(guidance_scale=6.0),
    }  # fmt: skip
    if pictures:
        vision = tf.SiglipVisionConfig(
            hidden_size=12, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=378,
            patch_size=14,
        )  # fmt: skip
        parts["image_encoder"] = tf.SiglipVisionModel(vision).eval()
        parts["feature_extractor"] = tf.SiglipImageProcessor(size={"height": 378, "width": 378})
    return write(folder, "HunyuanVideo15ImageToVideoPipeline" if pictures else "HunyuanVideo15Pipeline", parts)


def chat_tokenizer() -> Any:
    """A byte-level tokenizer with a chat template, in Qwen2's class."""
    letters = sorted(_byte_letters())
    vocabulary = {"<|endoftext|>": 0, **{letter: k + 1 for k, letter in enumerate(letters)}}
    tokenizer = _transformers().Qwen2Tokenizer(vocab=vocabulary, merges=[], pad_token="<|endoftext|>")
    said = "{% for m in messages %}{{ m['role'][0] }}{{ m['content'] }}{% endfor %}"
    tokenizer.chat_template = said + "{% if add_generation_prompt %}a{% endif %}"
    return tokenizer


def _byte_letters() -> list[str]:
    from tokenizers.pre_tokenizers import ByteLevel

    return list(ByteLevel.alphabet())
