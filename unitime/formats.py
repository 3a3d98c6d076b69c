"""How published checkpoints are spoken to: their prompts, where they see the time, and which frames they are shown.

    FORMATS["timelens-8b"].prompts
    recognise("TencentARC/TimeLens-7B", config)      # "timelens-7b"

===========  =============================  ==========================================  ===========================
format       where a time is seen           what is asked                               times that an answer names
===========  =============================  ==========================================  ===========================
unitime      text before every unit         a second turn, after an instruction         stamps, the mean of a unit
qwen2.5-vl   positions alone, in one block  in the video's turn                         every half second
qwen3-vl     `<3.2 seconds>` before a unit  in the video's turn                         every half second
timelens-7b  `3.0s` before every frame      in the video's turn, after its preamble     stamps
timelens-8b  as qwen3-vl                    in the video's turn                         every half second
===========  =============================  ==========================================  ===========================

Notable choices:

- A format is found, in this order, by what the caller names, by ``unitime.json`` of the folder, by the checkpoint's
  name (TimeLens' configurations are those of their bases), by a LoRA adapter (UniTime's way of publishing), and by the
  type of the model. A folder under another name can so be put right with one argument or one file.
- TimeLens (arXiv 2512.14698, C.2; `evaluation/utils.py` and `training/data/grounding.py` of TencentARC/TimeLens) asks
  with one sentence, and so does its evaluation of the Qwen bases, and wants "The event happens in a - b seconds." back,
  at 2 frames a second and 14,336 visual tokens, at least 64 a unit.
- TimeLens-7B was shown every second of those frames as a picture of its own, twice in its unit, behind its time, in
  place of the template's vision tokens. The paper says so, and two programs that feed its processor rebuild it so:
  yiqiu0215/TimeLoc (`training/data/time_interleave.py`: frames [::2] doubled, their index over the rate before each
  block) and Viiitoo/StreamRecall (`streamtimelens/src/streamtimelens/refiner/timelens_adapter.py`: f0, f0, f1, f1).
  How the time is written is less sure: one decimal, "10.2s" in the paper's table 2 and section 5.1, "10.2 seconds" in
  C.2; its `processing_timelens.py` was not at hand. ``{"prompts": {"marker": "{t} seconds"}}`` in a ``unitime.json``
  beside the weights takes the other.
- Qwen3-VL's frames stand as ``<t seconds><|vision_start|>...<|vision_end|>`` in place of the template's own vision
  tokens, t the mean of a unit's two times: transformers 4.57 (`processing_qwen3_vl.py`), with which it and TimeLens-8B
  came, replaces all three of them, and so does vLLM (`vllm/model_executor/models/qwen3_vl.py`, whose target for a video
  is the three together). That transformers 5 leaves the outer two around all frames is not what the weights saw.
- TimeLens-8B and the bases answer with any time. A choice among all tenths of a second would spread each start over ten
  answers; half a second is what 2 frames a second can tell.
- The bases and TimeLens know no coarse answer. They take up to 1,024 s in one pass, as they were trained to, and only
  above are asked for segments, in words of our own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from unitime.errors import UniTimeError
from unitime.prompts import Prompts

_WHEN = (
    "Please find the visual event described by the sentence '{query}', determining its starting and ending times. "
    "The format should be: 'The event happens in <start time> - <end time> seconds'."
)
_STAMPED = (
    "You are given a video with multiple frames. The numbers before each video frame indicate its sampling timestamp "
    "(in seconds). "
)
_PARTS = (
    "The video is shown in parts of equal length. In which of them does this happen: '{query}'? Answer with the times "
    "in seconds at which those parts begin, such as '32.0 seconds, 64.0 seconds.'"
)
_ASKED = Prompts(
    marker="",
    fine="",
    coarse="",
    answering=None,
    query=_WHEN,
    coarse_query=_PARTS,
    opening="The event happens in ",
    window="{start} - {end} seconds",
    question="{question}",
    choice="{question}\nOptions:\n{options}\nPlease only give the best option.",
    one_turn=True,
)
_SEEN: dict[str, Any] = {"budget": 14336, "min_tokens": 64, "max_fps": 2.0, "short_limit": 1024.0}


@dataclass(frozen=True)
class Format:
    """Prompts, and what they change of the published frame rule (:class:`unitime.frames.FrameRule`)."""

    prompts: Prompts
    rule: dict[str, Any] = field(default_factory=dict)


def _asked(**changes: Any) -> Prompts:
    """The one-sentence prompts with some of their strings changed."""
    return Prompts.from_dict(_ASKED.to_dict() | changes)


_QWEN3 = Format(_asked(marker="<{t} seconds>", system=None), _SEEN | {"answer_step": 0.5})
FORMATS: dict[str, Format] = {
    "unitime": Format(Prompts()),
    "qwen2.5-vl": Format(_asked(one_block=True), _SEEN | {"answer_step": 0.5}),
    "qwen3-vl": _QWEN3,
    "timelens-7b": Format(
        _asked(marker="{t}s", query=_STAMPED + _WHEN, coarse_query=_STAMPED + _PARTS), _SEEN | {"still": True}
    ),
    "timelens-8b": _QWEN3,
}
_NAMED = ("timelens-7b", "timelens-8b")  # formats that only a checkpoint's name tells
_OF_FAMILY = {"qwen2_vl": "unitime", "qwen2_5_vl": "qwen2.5-vl", "qwen3_vl": "qwen3-vl"}
_FAMILY_OF = {"timelens-7b": "qwen2_5_vl", "timelens-8b": "qwen3_vl", "qwen2.5-vl": "qwen2_5_vl"}


def named(name: str) -> Format:
    """The format of that name. Raises UniTimeError, with the names there are, for any other."""
    if name not in FORMATS:
        raise UniTimeError(f"prompts: {name!r} is no format; there are {', '.join(FORMATS)}")
    return FORMATS[name]


def recognise(name_or_path: str, config: Mapping[str, Any], adapted: bool = False) -> str:
    """The name of the format that a checkpoint was trained with.

    Args:
        name_or_path: hub id or folder, as the caller gave it.
        config: its ``config.json``; ``model_type`` and ``_name_or_path`` are looked at.
        adapted: whether a LoRA adapter goes on it.
    """
    family = str(config.get("model_type"))
    names = (name_or_path, str(config.get("_name_or_path")))
    said = [re.split(r"[/\\]", part.lower().rstrip("/\\"))[-1] for part in names]
    for key in _NAMED:
        if _FAMILY_OF[key] == family and any(key in text for text in said):
            return key
    return "unitime" if adapted else _OF_FAMILY.get(family, "unitime")


def check_family(name: str, family: str) -> None:
    """Raises UniTimeError where a format cannot be shown to a family: positions in seconds are Qwen2.5-VL's alone."""
    if FORMATS[name].prompts.one_block and family != _FAMILY_OF[name]:
        raise UniTimeError(
            f"prompts: {name!r} tells times by positions alone, which {family} has not; take another or leave it out"
        )
