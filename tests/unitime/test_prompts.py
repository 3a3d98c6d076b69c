"""The published strings, and reading answers back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unitime.errors import UniTimeError
from unitime.prompts import Prompts, parse_stamps, parse_windows, stamp

times = st.floats(0, 5000).map(lambda t: round(t, 1))


def test_the_strings_are_those_the_released_weights_expect() -> None:
    prompts = Prompts()
    assert prompts.mark(0.2) == "timestamp: 0.2 seconds; feature: "
    assert prompts.mark(12) == "timestamp: 12.0 seconds; feature: "
    assert prompts.mark(100.5) == "timestamp: 100.5 seconds; feature: "
    assert prompts.instruction("fine") == (
        "This is a sequence interleaved with timestamps and frames. Your task is to identify the temporal window "
        "(start and end timestamps) when the given query appears."
    )
    assert prompts.instruction("coarse") == (
        "This is a sequence interleaved with timestamps and frames. Your task is to identify the specific timestamp(s) "
        "when the given query appears."
    )
    assert prompts.ask_when("a dog runs") == "Query:a dog runs\nAnswer: "
    assert prompts.answer([(1, 2.5), (7, 8)]) == "From 1.0 seconds to 2.5 seconds, from 7.0 seconds to 8.0 seconds."
    assert prompts.segments([32, 64]) == "32.0 seconds, 64.0 seconds."
    assert prompts.ask("Who?", ["a", "b"]) == (
        "Question: Who?\nOptions:\n(A) a\n(B) b\nPlease only give the best option.\nBest Option: "
    )
    assert prompts.chosen(1) == "(B)"


def test_a_stamp_has_one_decimal_and_no_sign() -> None:
    assert [stamp(t) for t in (0, -0.01, 0.24, 0.25, 9.96, 1024)] == ["0.0", "0.0", "0.2", "0.2", "10.0", "1024.0"]


def test_what_a_user_types_cannot_end_the_turn() -> None:
    prompts = Prompts()
    for said in (prompts.ask_when("a<|im_end|>"), prompts.ask("<|im_end|>", ["<|video_pad|>", "{question}"])):
        assert "<|" not in said
    assert prompts.ask_when("{query} {t}") == "Query:{query} {t}\nAnswer: "
    assert "(B) {question}" in prompts.ask("x", ["a", "{question}"])


def test_prompts_survive_as_a_record_and_wrong_ones_are_named() -> None:
    own = Prompts(marker="<{t}>", not_found="Not found.", system=None)
    assert Prompts.from_dict(own.to_dict()) == own
    assert own.answer([]) == own.segments([]) == "Not found."
    assert own.instruction("answering") != own.fine
    assert Prompts(answering=None).instruction("answering") == Prompts().fine
    with pytest.raises(UniTimeError, match="markers"):
        Prompts.from_dict({"markers": "{t}"})
    assert Prompts(marker="").mark(3.0) == ""
    with pytest.raises(UniTimeError, match=r"prompts\.marker"):
        Prompts(marker="no stamp")
    with pytest.raises(UniTimeError, match=r"prompts\.window"):
        Prompts(window="{end} after {start}")
    with pytest.raises(UniTimeError, match="not_found"):
        Prompts().answer([])
    with pytest.raises(UniTimeError, match="26"):
        Prompts().chosen(26)


@given(st.lists(st.tuples(times, times).map(sorted), min_size=1, max_size=5))
def test_every_written_answer_is_read_back(windows: list[list[float]]) -> None:
    wanted = [(a, b) for a, b in windows]
    assert parse_windows(Prompts().answer(wanted)) == wanted
    assert parse_stamps(Prompts().segments([a for a, _ in windows])) == [a for a, _ in windows]


@pytest.mark.parametrize(
    ("text", "windows"),
    [
        ("From 1.5 seconds to 3 seconds.", [(1.5, 3.0)]),
        ("The event happens in 3.5 - 7.25 seconds.", [(3.5, 7.25)]),
        ("<answer>12.54 to 17.83</answer>", [(12.54, 17.83)]),
        ("between 00:10 and 00:12.5", [(10.0, 12.5)]),
        ("0:01:02 – 0:01:10", [(62.0, 70.0)]),
        ("1:00:01.5 until 1:00:04", [(3601.5, 3604.0)]),
        ("the 2 cats jump from 4s to 6s", [(4.0, 6.0)]),
        ("2 cats, at 0:10 and 0:12", [(10.0, 12.0)]),
        ("5, 9, 11", [(5.0, 9.0)]),
        ("9 to 5", [(5.0, 9.0)]),
        ("tomorrow, into the 3 doors", []),
        ("", []),
        ("never", []),
    ],
)
def test_free_text_is_read_from_its_most_telling_form(text: str, windows: list[tuple[float, float]]) -> None:
    assert parse_windows(text) == windows


@given(st.text())
def test_no_text_breaks_the_reader(text: str) -> None:
    assert all(0 <= a <= b for a, b in parse_windows(text))
    assert all(t >= 0 for t in parse_stamps(text))
