"""Scripts: three text forms with one meaning, and every fault named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shots import Script, Shot, ShotsError
from shots.script import MAX_TEXT

texts = st.text(min_size=1, max_size=40).filter(lambda text: bool(text.split()))
lengths = st.none() | st.floats(min_value=1e-6, max_value=3600, allow_nan=False)
shots = st.builds(Shot, caption=texts, seconds=lengths, camera=st.none() | texts)
scripts = st.builds(
    Script,
    shots=st.lists(shots, min_size=1, max_size=4).map(tuple),
    title=st.none() | texts,
    style=st.none() | texts,
    caption=st.none() | texts,
)
words = st.lists(st.sampled_from(["a", "red", "cube,", "jumps", ".", "1:", "-", "cut"]), min_size=1)


@given(scripts)
def test_yaml_json_and_dict_give_the_same_script_back(script: Script) -> None:
    assert Script.from_dict(script.to_dict()) == script
    assert Script.parse(script.to_json()) == script
    assert Script.parse(script.to_yaml()) == script


@given(st.lists(words.map(" ".join), min_size=1, max_size=5))
def test_plain_text_gives_the_captions_back(captions: list[str]) -> None:
    cut = Script.parse(" [cut] ".join(captions))
    labelled = Script.parse("\n".join(f"Shot {number}: {text}" for number, text in enumerate(captions, start=1)))
    assert [shot.caption for shot in cut.shots] == captions
    assert labelled == cut


@given(st.text(max_size=60))
def test_any_text_parses_or_says_what_is_wrong(text: str) -> None:
    try:
        assert Script.parse(text).shots
    except ShotsError as error:
        assert str(error)


def test_a_plain_prompt_is_one_shot() -> None:
    assert Script.parse("  a red cube\n jumps ") == Script((Shot("a red cube jumps"),))


def test_text_before_the_first_label_describes_the_film() -> None:
    script = Script.parse("At night. Shot 1: a cube. shot 2 : a cone.")
    assert script == Script((Shot("a cube."), Shot("a cone.")), caption="At night.")


def test_labels_between_cuts_are_dropped_and_odd_numbers_are_plain_words() -> None:
    assert Script.parse("Shot 1: a cube [CUT] Shot 2: a cone") == Script((Shot("a cube"), Shot("a cone")))
    assert len(Script.parse("we see shot 7: a cone").shots) == 1


def test_a_shot_has_exactly_its_seconds_times_fps_frames() -> None:
    assert Shot("a", seconds=2.5).frames(12, 37) == 30
    assert Shot("a").frames(12, 37) == 37
    with pytest.raises(ShotsError, match="no frame at all"):
        Shot("a", seconds=0.01).frames(12, 37)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "prompt: empty"),
        ("  \n", "prompt: empty"),
        ("x" * (MAX_TEXT + 1), f"prompt: {MAX_TEXT + 1} characters, at most {MAX_TEXT}"),
        ("\udcff", "prompt: not valid UTF-8"),
        ("a [cut] [cut] b", "shot 2: empty"),
        ("Shot 1: a Shot 2:", "shot 2: empty"),
        ('{"shots": []}', "shots: the script has none"),
        ("shots:", "shots: missing or not a list"),
        ("shots: a red cube", "shots: missing or not a list"),
        ("shots: [a cube]", "shot 1: 'a cube' is not a mapping"),
        ("shots: [{caption: a, secnds: 2}]", "shot 1: unknown key 'secnds'; did you mean 'seconds'?"),
        ("shots: [{caption: a}]\nfps: 12", "script: unknown key 'fps'; known are"),
        ("shots: [{seconds: 2}]", "shot 1: has no caption"),
        ("shots: [{caption: a}, {caption: ''}]", "shot 2, caption: empty"),
        ("shots: [{caption: 7}]", "shot 1, caption: 7 is not text"),
        ("shots: [{caption: a, seconds: 0}]", "shot 1, seconds: 0 seconds"),
        ("shots: [{caption: a, seconds: -2}]", "shot 1, seconds: -2 seconds"),
        ("shots: [{caption: a, seconds: .inf}]", "shot 1, seconds: inf seconds"),
        ("shots: [{caption: a, seconds: .nan}]", "shot 1, seconds: nan seconds"),
        ("shots: [{caption: a, seconds: two}]", "shot 1, seconds: 'two' is not a number"),
        ("shots: [{caption: a, seconds: true}]", "shot 1, seconds: True is not a number"),
        ("title: [a]\nshots: [{caption: a}]", "title: ['a'] is not text"),
        ("shots: [{caption: a, caption: b}]", "the key 'caption' stands twice"),
        ('{"shots": [], "shots": []}', "the key 'shots' stands twice"),
        ("shots: [", "not valid YAML"),
        ("shots: !!python/object:os.system x", "not valid YAML"),
        ('{"shots": ', "not valid JSON"),
    ],
)
def test_bad_scripts_are_refused_in_one_line(text: str, says: str) -> None:
    with pytest.raises(ShotsError) as caught:
        Script.parse(text)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_are_read_by_their_names_and_faults_name_the_file(tmp_path: Path) -> None:
    script = Script((Shot("a", 2.0, "close-up"), Shot("b")), title="t")
    (tmp_path / "s.yaml").write_text(script.to_yaml())
    (tmp_path / "s.json").write_text(script.to_json())
    (tmp_path / "s.txt").write_text("a [cut] b")
    assert Script.load(tmp_path / "s.yaml") == script == Script.load(str(tmp_path / "s.json"))
    assert len(Script.load(tmp_path / "s.txt").shots) == 2
    (tmp_path / "empty.yaml").write_text("")
    (tmp_path / "noise.yaml").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "list.json").write_text(json.dumps([1]))
    for name, says in (
        ("gone.yaml", "does not exist"),
        ("empty.yaml", "is not a mapping"),
        ("noise.yaml", "not a text file"),
        ("list.json", "is not a mapping"),
        ("", "cannot be read"),
    ):
        with pytest.raises(ShotsError, match=says) as caught:
            Script.load(tmp_path / name)
        assert str(tmp_path) in str(caught.value)
