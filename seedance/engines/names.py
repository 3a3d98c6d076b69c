"""The names that one tensor has in the layouts a family's weights are passed around in.

Notable choices:

- One rule a line, from diffusers' name to the original one; the way back is a table over a model's own names, so a name
  can never come back as another.
- Wan's trap: the original counts a block's norms in the order norm1, norm3, norm2 and diffusers in the order they run,
  so that norm2 and norm3 change places. Both are norms of one width: exchanged, everything loads where both have
  weights, and the film is noise.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

PREFIXES = (
    "base_model.model.", "model.diffusion_model.", "diffusion_model.", "transformer_2.", "transformer.", "pipe.dit.",
    "dit.", "unet.", "lora_unet_", "lora_transformer_",
)  # fmt: skip

_WAN_TOP = {
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "condition_embedder.image_embedder.norm1": "img_emb.proj.0",
    "condition_embedder.image_embedder.ff.net.0.proj": "img_emb.proj.1",
    "condition_embedder.image_embedder.ff.net.2": "img_emb.proj.3",
    "condition_embedder.image_embedder.norm2": "img_emb.proj.4",
    "condition_embedder.image_embedder.pos_embed": "img_emb.emb_pos",
    "proj_out": "head.head",
    "scale_shift_table": "head.modulation",
}
_WAN_BLOCK = {
    "norm2": "norm3",  # after self-attention, before cross-attention
    "norm3": "norm2",  # before the feed-forward
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
    "scale_shift_table": "modulation",
}
_WAN_ATTENTION = {
    "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "o", "add_k_proj": "k_img", "add_v_proj": "v_img",
    "norm_added_k": "norm_k_img",
}  # fmt: skip
_LTX_TOP = {"proj_in": "patchify_proj", "time_embed": "adaln_single"}


def original(family: str, name: str) -> str:
    """The name that diffusers' `name`, of a module or a tensor, has in the family's own layout ("Wan", "LTX-Video";
    others have one layout)."""
    if family == "LTX-Video":
        for ours, theirs in _LTX_TOP.items():
            name = _renamed(name, ours, theirs)
        return name.replace(".norm_q.", ".q_norm.").replace(".norm_k.", ".k_norm.")
    if family != "Wan":
        return name
    block = re.match(r"(blocks\.\d+)\.(.+)$", name)
    if block is None:
        for ours, theirs in _WAN_TOP.items():
            if _renamed(name, ours, theirs) != name:
                return _renamed(name, ours, theirs)
        return name
    head, rest = block[1], block[2]
    for side, theirs in (("attn1", "self_attn"), ("attn2", "cross_attn")):
        if rest == side or rest.startswith(f"{side}."):
            inner = rest[len(side) :].removeprefix(".")
            for ours, short in _WAN_ATTENTION.items():
                if _renamed(inner, ours, short) != inner:
                    inner = _renamed(inner, ours, short)
                    break
            return f"{head}.{theirs}" + (f".{inner}" if inner else "")
    for ours, theirs in _WAN_BLOCK.items():
        if _renamed(rest, ours, theirs) != rest:
            return f"{head}.{_renamed(rest, ours, theirs)}"
    return name


def aliases(family: str, names: Iterable[str]) -> dict[str, str]:
    """Every way to write the modules `names` -> the name itself: as it is, in the family's own layout, and both with
    dots turned into underscores, as kohya's tools write them."""
    found: dict[str, str] = {}
    for name in names:
        for spelled in (name, original(family, name)):
            found[spelled] = found[spelled.replace(".", "_")] = name
    return found


def bare(name: str) -> str:
    """`name` without what tools put before it."""
    changed = True
    while changed:
        changed = False
        for prefix in PREFIXES:
            if name.startswith(prefix):
                name, changed = name.removeprefix(prefix), True
    return name


def _renamed(name: str, ours: str, theirs: str) -> str:
    """`name` with its first words `ours` replaced, if those are its first words."""
    if name == ours or name.startswith(f"{ours}."):
        return theirs + name[len(ours) :]
    return name
