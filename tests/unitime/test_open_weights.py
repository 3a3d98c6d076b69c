"""Published checkpoints: recognised, spoken to in their own words, shrunk, and grounded with, on tiny ones."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shots.runtime.vision import transformers
from unitime import UniTime
from unitime.checkpoints import PUBLISHED, needs, of_folder, table
from unitime.decode import _Words
from unitime.errors import UniTimeError
from unitime.formats import FORMATS, recognise
from unitime.frames import FrameRule
from unitime.model import VisionLanguageModel
from unitime.prompts import parse_windows
from unitime.reading import read_units
from unitime.sequence import build_prefix, continuation

TEMPLATE = (
    "{% if system %}<|im_start|>system\n{{ system }}<|im_end|>\n{% endif %}{% for m in messages %}<|im_start|>"
    "{{ m['role'] }}\n{% for c in m['content'] %}{% if c['type'] == 'video' %}VIDEO{% else %}{{ c['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{{ '<|im_start|>assistant\n' }}"
)  # the same turns as the checkpoints' own templates make, for one video and one text
PLACE = {  # transformers 4.57, which Qwen3-VL and TimeLens-8B came with, put the frames in place of all three
    "qwen2_5_vl": "<|vision_start|><|video_pad|><|vision_end|>",
    "qwen3_vl": "<|video_pad|>",
}


@pytest.fixture(scope="module")
def bare(tiny_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiny checkpoints as published ones come: with nothing that says how to speak to them."""
    folders = {}
    for family, folder in tiny_folders.items():
        folders[family] = tmp_path_factory.mktemp("bare") / family
        shutil.copytree(folder, folders[family])
        (folders[family] / "unitime.json").unlink()
    return folders


def spoken(model: VisionLanguageModel, plan: Any, query: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids (L,) and positions (3, L) of a whole prompt, ready for the answer."""
    prefix = build_prefix(
        plan, model.prompts, model.tokenizer, model.family, tokens_per_second=model.tokens_per_second
    )  # fmt: skip
    tail = continuation(model.tokenizer, model.prompts, model.prompts.ask_when(query)).ids
    after = (torch.arange(len(tail)) + prefix.next_position).expand(3, -1)
    return torch.cat([prefix.ids, tail]), torch.cat([prefix.positions, after], dim=1)


def processed(model: VisionLanguageModel, plan: Any, query: str, system: str) -> dict[str, Any]:
    """What the family's own processor makes of the same frames and the same question."""
    library = transformers()
    kind = {"qwen3_vl": "Qwen3VL", "qwen2_5_vl": "Qwen2_5_VL"}[model.family]
    video_kind = library.Qwen3VLVideoProcessor if kind == "Qwen3VL" else library.Qwen2VLVideoProcessor
    processor = getattr(library, f"{kind}Processor")(
        image_processor=library.Qwen2VLImageProcessor(patch_size=model.patch),
        tokenizer=model.tokenizer, video_processor=video_kind(patch_size=model.patch, do_resize=False),
        chat_template=TEMPLATE.replace("VIDEO", PLACE[model.family]),
    )  # fmt: skip
    asked = [{"type": "video"}, {"type": "text", "text": model.prompts.ask_when(query)}]
    text = processor.apply_chat_template([{"role": "user", "content": asked}], tokenize=False, system=system)
    frames = torch.zeros(plan.times.size, 3, *plan.size, dtype=torch.uint8)
    indices = np.rint(plan.times.flatten() * 10).astype(int).tolist()  # of a film of 10 frames a second
    metadata = {"fps": 10.0, "total_num_frames": indices[-1] + 1, "frames_indices": indices}
    return dict(
        processor(
            text=[text], videos=[frames], video_metadata=[metadata], do_sample_frames=False, return_tensors="pt",
            cap_pixels_per_frame=False,
        )
    )  # fmt: skip


@pytest.mark.parametrize(("family", "system"), [("qwen3_vl", ""), ("qwen2_5_vl", "You are a helpful assistant.")])
def test_a_prompt_has_the_tokens_that_the_familys_own_processor_makes(
    bare: dict[str, Path], family: str, system: str
) -> None:
    model = VisionLanguageModel.from_pretrained(bare[family], dtype="fp32", device="cpu")
    plan = model.rule.plan(duration=5.9, height=64, width=96)
    times = np.rint(plan.times * 10) / 10
    plan = dataclasses.replace(plan, times=times, stamps=tuple(round(float(t), 1) for t in times.mean(axis=1)))
    ids, positions = spoken(model, plan, "a cat jumps")
    wanted = processed(model, plan, "a cat jumps", system)
    text = model.tokenizer.decode(wanted["input_ids"][0])
    assert ids.tolist() == wanted["input_ids"][0].tolist()
    assert ("<0.2 seconds><|vision_start|>" in text or "<0.3 seconds>" in text) == (family == "qwen3_vl")
    spaced = {"second_per_grid_ts": wanted["second_per_grid_ts"]} if family == "qwen2_5_vl" else {}
    theirs, _ = model.net.model.get_rope_index(
        wanted["input_ids"], mm_token_type_ids=(wanted["input_ids"] == model.net.config.video_token_id).int() * 2,
        video_grid_thw=wanted["video_grid_thw"], attention_mask=wanted["attention_mask"], **spaced,
    )  # fmt: skip
    shown = wanted["input_ids"][0] == model.net.config.video_token_id
    mine, theirs = positions[:, shown], theirs[:, 0, shown]
    if family == "qwen2_5_vl":  # seconds per unit are measured here between the frames' own times
        assert (mine[0] - theirs[0]).abs().max() <= 1
        mine, theirs = mine[1:], theirs[1:]
    assert torch.equal(mine, theirs)


def test_timelens_7b_is_shown_single_frames_behind_their_times_in_the_turn_of_the_question(
    bare: dict[str, Path], film: Callable[..., Any]
) -> None:
    model = VisionLanguageModel.from_pretrained(bare["qwen2_5_vl"], device="cpu", prompts="timelens-7b")
    plan = model.rule.plan(duration=4.0, height=56, width=56)
    paired = dataclasses.replace(model.rule, still=False).plan(duration=4.0, height=56, width=56)
    assert np.array_equal(plan.times, np.repeat(paired.times[:, :1], 2, axis=1))  # every second one, twice
    units = np.concatenate(list(read_units(film(4.0), plan)))
    assert units.shape[:2] == plan.times.shape
    assert np.array_equal(units[:, 0], units[:, 1]) and len({unit.tobytes() for unit in units}) > 1
    ids, _ = spoken(model, plan, "a cat jumps")
    text = model.tokenizer.decode(ids).replace("<|video_pad|>", "")
    stamps = [round(float(first), 1) for first in plan.times[:, 0]]
    frames = "".join(f"{t:.1f}s<|vision_start|><|vision_end|>" for t in stamps)
    assert text == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n" + frames + "You are given a "
        "video with multiple frames. The numbers before each video frame indicate its sampling timestamp (in seconds). "
        "Please find the visual event described by the sentence 'a cat jumps', determining its starting and ending "
        "times. The format should be: 'The event happens in <start time> - <end time> seconds'.<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert list(model.rule.answer_times(plan)) == stamps


def test_a_checkpoint_is_recognised_by_its_name_its_adapter_and_its_type() -> None:
    for name, config, adapted, wanted in [
        ("Qwen/Qwen2-VL-7B-Instruct", {"model_type": "qwen2_vl"}, True, "unitime"),
        ("Qwen/Qwen2-VL-7B-Instruct", {"model_type": "qwen2_vl"}, False, "unitime"),
        ("Qwen/Qwen2.5-VL-7B-Instruct", {"model_type": "qwen2_5_vl"}, False, "qwen2.5-vl"),
        ("Qwen/Qwen2.5-VL-7B-Instruct", {"model_type": "qwen2_5_vl"}, True, "unitime"),
        ("Qwen/Qwen3-VL-4B-Instruct", {"model_type": "qwen3_vl"}, False, "qwen3-vl"),
        ("TencentARC/TimeLens-7B", {"model_type": "qwen2_5_vl"}, False, "timelens-7b"),
        ("models/timelens-8b/", {"model_type": "qwen3_vl"}, False, "timelens-8b"),
        ("models/mine", {"model_type": "qwen3_vl", "_name_or_path": "TencentARC/TimeLens-8B"}, False, "timelens-8b"),
        ("timelens-7b/qwen", {"model_type": "qwen2_5_vl"}, False, "qwen2.5-vl"),  # a folder above is no name
        ("timelens-7b", {"model_type": "qwen3_vl"}, False, "qwen3-vl"),  # not what TimeLens-7B is built on
    ]:
        assert recognise(name, config, adapted) == wanted, name


def test_the_callers_word_goes_before_the_folders_and_the_folders_before_the_guess(
    bare: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "TimeLens-7B"
    shutil.copytree(bare["qwen2_5_vl"], folder)

    def chosen(**options: Any) -> VisionLanguageModel:
        return VisionLanguageModel.from_pretrained(folder, device="cpu", **options)

    assert chosen().format == "timelens-7b"
    (folder / "unitime.json").write_text('{"format": "qwen2.5-vl", "rule": {"budget": 512}}')
    own = chosen()
    assert (own.format, own.rule.budget, own.rule.min_tokens) == ("qwen2.5-vl", 512, 64)
    assert chosen(prompts="unitime").rule == FrameRule()
    (folder / "unitime.json").write_text('{"prompts": {"query": "When: {query}"}}')
    assert chosen().prompts.ask_when("x") == "When: x"
    assert chosen().prompts.fine.startswith("This is a sequence")
    again = VisionLanguageModel.from_pretrained(chosen(prompts="timelens-7b").save_pretrained(tmp_path / "saved"))
    assert again.prompts == FORMATS["timelens-7b"].prompts
    assert again.rule.still


def test_words_that_name_no_format_or_the_wrong_one_are_refused_before_weights_are_read(
    bare: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(UniTimeError, match=r"prompts: 'timelens' is no format; there are unitime, "):
        VisionLanguageModel.from_pretrained(tmp_path, prompts="timelens")
    with pytest.raises(UniTimeError, match="positions alone, which qwen3_vl has not"):
        VisionLanguageModel.from_pretrained(bare["qwen3_vl"], prompts="qwen2.5-vl")
    with pytest.raises(UniTimeError, match="quantization: 'int3' is not one of int8, int4"):
        VisionLanguageModel.from_pretrained(tmp_path, quantization="int3")


@pytest.mark.parametrize("name", list(FORMATS))
def test_every_format_reads_its_own_answers(name: str) -> None:
    prompts = FORMATS[name].prompts
    wanted = [(1.0, 2.5), (7.0, 8.0)]
    assert parse_windows(prompts.answer(wanted)) == wanted
    if name != "unitime":
        assert prompts.answer(wanted) == "The event happens in 1.0 - 2.5 seconds, 7.0 - 8.0 seconds."
        assert prompts.instruction("coarse") == ""
        assert prompts.ask_when("x", "coarse") != prompts.ask_when("x")


def test_the_answers_of_every_format_can_be_constrained_with_qwens_way_of_cutting_text() -> None:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    pieces = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    pieces += r"\s*[\r\n]+|\s+(?!\S)|\s+"
    alphabet = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges = [("Ġ", "-"), ("Ġ", "s"), ("Ġs", "e"), (".", "Ċ"), ("i", "n"), ("Ġ", "in"), ("s", "e")]
    vocabulary = alphabet | {a + b: 256 + i for i, (a, b) in enumerate(merges)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    cut = pre_tokenizers.Split(Regex(pieces), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    fast = transformers().PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    for name, form in FORMATS.items():
        for mode in ("fine", "coarse"):
            words = _Words.of(fast, form.prompts, mode, (0.5, 12.0))  # raises where stamps and words melt
            assert words.stop, name


def test_an_answer_may_name_every_half_second_of_a_window_and_never_more_than_two_thousand_times() -> None:
    rule = FrameRule(**FORMATS["qwen3-vl"].rule)
    plan = rule.plan(duration=10.0, height=100, width=100, window=(2.3, 4.1))
    assert rule.answer_times(plan) == (2.3, 2.5, 3.0, 3.5, 4.0, 4.1)
    long = rule.answer_times(rule.plan(duration=1e4, height=100, width=100, mode="fine"))
    assert len(long) <= 2002
    assert (long[0], long[-1]) == (0.0, 1e4)
    with pytest.raises(UniTimeError, match="answer_step"):
        FrameRule(answer_step=0.01)


def test_timelens_sampling_shows_448_frames_of_a_long_video_and_two_a_second_of_a_short_one() -> None:
    rule = FrameRule(patch=16, **FORMATS["timelens-8b"].rule)
    short = rule.plan(duration=31.0, height=360, width=640)
    assert (short.mode, short.units) == ("fine", 31)
    long = rule.plan(duration=1000.0, height=360, width=640)
    assert long.mode == "fine"
    assert 2 * long.units == pytest.approx(448, rel=0.1)
    assert long.tokens <= 14336


@pytest.mark.parametrize("name", ["timelens-7b", "timelens-8b"])
def test_a_model_that_knows_names_the_event_through_the_formats_own_words(
    name: str, oracle: Callable[..., Any], film: Callable[..., Any]
) -> None:
    events = {"a cat jumps": [(3.0, 7.0)]}
    model = oracle(FrameRule(min_tokens=1, **{k: v for k, v in FORMATS[name].rule.items() if k != "min_tokens"}),
                   FORMATS[name].prompts, events)  # fmt: skip
    [found] = UniTime(model).ground(film(12.0), ["a cat jumps"])
    assert found.status == "ok"
    assert found.raw.startswith("The event happens in ")
    assert (found.moments[0].start, found.moments[0].end) == pytest.approx((3.0, 7.0), abs=1.1)  # a unit


@pytest.mark.parametrize("name", list(FORMATS))
def test_grounding_stays_within_the_window_asked_for_in_every_format(
    bare: dict[str, Path], film: Callable[..., Any], name: str
) -> None:
    family = {"unitime": "qwen2_vl", "qwen2.5-vl": "qwen2_5_vl", "timelens-7b": "qwen2_5_vl"}.get(name, "qwen3_vl")
    model = UniTime.from_pretrained(bare[family], prompts=name, device="cpu")
    for window in (None, (8.0, 14.0)):
        [found] = model.ground(film(16.0), ["a cat jumps"], top_k=2, window=window, threshold=1.0)
        low, high = window or (0.0, 16.0)
        assert found.moments
        for moment in found.moments:
            assert low - 1e-6 <= moment.start < moment.end <= high + 1e-6


def test_a_clock_told_by_positions_starts_with_the_window(bare: dict[str, Path], film: Callable[..., Any]) -> None:
    model = UniTime.from_pretrained(bare["qwen2_5_vl"], device="cpu")
    [found] = model.ground(film(16.0), ["a cat jumps"], window=(8.0, 14.0), threshold=1.0)
    plan = model.encode(film(16.0)).plan((8.0, 14.0))
    sequence = build_prefix(plan, model.model.prompts, model.model.tokenizer, "qwen2_5_vl")
    rows = sequence.positions[0, sequence.pads]
    assert int(rows.max() - rows.min()) == pytest.approx(10, abs=2)  # 5 s between first and last unit, 2 a second
    assert (found.relevance[0][0], found.relevance[-1][0]) == (8.0, 14.0)


@pytest.mark.parametrize(("how", "bound", "size"), [("int8", 0.01, 0.30), ("int4", 0.15, 0.20)])
def test_a_quantised_model_is_smaller_and_answers_nearly_the_same(
    bare: dict[str, Path], how: str, bound: float, size: float
) -> None:
    pytest.importorskip("torchao")
    folder = bare["qwen2_5_vl"]
    whole = VisionLanguageModel.from_pretrained(folder, dtype="fp32", device="cpu")
    shrunk = VisionLanguageModel.from_pretrained(folder, dtype="fp32", device="cpu", quantization=how)
    frames = np.random.default_rng(0).integers(0, 256, (3, 2, 56, 56, 3), dtype=np.uint8)
    plan = whole.rule.plan(duration=3.0, height=56, width=56)
    hidden = []
    for model in (whole, shrunk):
        features = model.vision(frames).select(range(plan.units)).compress(plan.grid)
        sequence = build_prefix(plan, model.prompts, model.tokenizer, model.family)
        hidden.append(model.forest(model.prefill(sequence, features)).grow([1, 2, 3], [-1, 0, 1]))
    error = (hidden[1] - hidden[0]).norm() / hidden[0].norm()
    assert 0 < error < 5 * bound  # after three layers of random weights
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    layers = [model.net.model.language_model.layers[0].mlp.up_proj for model in (whole, shrunk)]
    one, two = (layer(x) for layer in layers)
    assert 0 < (one - two).norm() / one.norm() < bound
    assert shrunk.fingerprint == whole.fingerprint  # kept features serve both
    assert _stored(shrunk) / _stored(whole) < size
    with pytest.raises(UniTimeError, match=f"kept as {how}; load it without quantization"):
        shrunk.save_pretrained(folder / "no")


def _stored(model: VisionLanguageModel) -> int:
    """Bytes that the linear weights of the language model take, their scales included."""
    layers = [m for m in model.net.model.language_model.modules() if isinstance(m, torch.nn.Linear)]
    inner = lambda w: [getattr(w, name) for name in w.__tensor_flatten__()[0]]  # noqa: E731
    parts = [p for m in layers for p in (inner(m.weight) if hasattr(m.weight, "__tensor_flatten__") else [m.weight])]
    return sum(p.nbytes for p in parts)


def test_what_a_checkpoint_needs_is_what_it_weighs(bare: dict[str, Path]) -> None:
    for folder in bare.values():
        model = VisionLanguageModel.from_pretrained(folder, dtype="bf16", device="cpu")
        said = needs(json.loads((folder / "config.json").read_text()))
        assert said.weights() == sum(p.nbytes for p in model.net.parameters())
    with pytest.raises(UniTimeError, match="model_type is 'llama'"):
        needs({"model_type": "llama"})
    assert f"| `{bare['qwen3_vl']}` | 0.00 B |" in table([of_folder(bare["qwen3_vl"])])


def test_the_kept_configurations_have_the_published_numbers_of_weights() -> None:
    billions = {"Qwen2-VL-7B": 8.29, "Qwen2.5-VL-3B": 3.75, "Qwen3-VL-2B": 2.13, "Qwen3-VL-8B": 8.77}  # hub's counts
    for name, count in billions.items():
        [known] = [c for c in PUBLISHED if c.name.startswith(f"Qwen/{name}")]
        found = needs(known.config, known.name)
        assert found.parameters / 1e9 == pytest.approx(count, abs=0.006)
        assert found.weights("int4") < found.weights("int8") < found.weights()
