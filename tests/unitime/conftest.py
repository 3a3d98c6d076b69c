"""Tiny checkpoints of random weights, one of each family, saved to folders and read by the real loaders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

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
    """Folder of a tiny checkpoint for each family."""
    folders = {}
    for family in FAMILIES:
        folder = tmp_path_factory.mktemp(family)
        tiny_net(family).save_pretrained(folder)
        byte_tokenizer().save_pretrained(folder)
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
