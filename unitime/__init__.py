"""UniTime: when does it happen? Moments with scores for questions put to a video of any length.

    model = unitime.UniTime.from_pretrained("unitime-nano")
    for grounding in model.ground("film.mp4", ["a red cube jumps", "the blue sphere falls"], top_k=3):
        print(grounding.query, grounding.status, [(m.start, m.end, m.score) for m in grounding.moments])

`grounder` holds the public class, `qa` answers questions from the moment that bears on them, `api` serves both. The
parts: `frames` says which frames to look at, `reading` fetches them, `features` keeps what the vision tower made of
them, `prompts` and `sequence` write the interleaved text, `formats` knows how published checkpoints are spoken to and
`checkpoints` what they need, `model` runs any Qwen-VL checkpoint, `quantization` shrinks one, `adapters` reads LoRA
weights, `decode` turns the model's next-token distributions into windows with probabilities. `metrics`,
`annotations` and `evaluation` measure, `suites` fixes the held-out videos of the stage, `training` makes the weights.

Notable choice: public names are looked up on first use, so `import unitime` loads no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unitime.errors import UniTimeError
    from unitime.features import FeatureCache
    from unitime.frames import FramePlan, FrameRule
    from unitime.grounder import Grounding, Moment, UniTime, VideoHandle
    from unitime.metrics import calibrate_threshold
    from unitime.prompts import Prompts
    from unitime.qa import Answer

_HOME = {
    "Answer": "unitime.qa",
    "FeatureCache": "unitime.features",
    "FramePlan": "unitime.frames",
    "FrameRule": "unitime.frames",
    "Grounding": "unitime.grounder",
    "Moment": "unitime.grounder",
    "Prompts": "unitime.prompts",
    "UniTime": "unitime.grounder",
    "UniTimeError": "unitime.errors",
    "VideoHandle": "unitime.grounder",
    "calibrate_threshold": "unitime.metrics",
}

__all__ = [
    "Answer",
    "FeatureCache",
    "FramePlan",
    "FrameRule",
    "Grounding",
    "Moment",
    "Prompts",
    "UniTime",
    "UniTimeError",
    "VideoHandle",
    "calibrate_threshold",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'unitime' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
