"""A secret is shown by nothing but its own word, and by no error about it."""

from __future__ import annotations

import copy
import pickle

import pytest

from kie_wav_async._support.secret import Secret, drop_frames

TEXT = "hunter2-hunter2"


def test_only_reveal_shows_it() -> None:
    """No text of a secret has its value, also within other values; `reveal` returns it."""
    secret = Secret(TEXT)
    shown = [repr(secret), str(secret), f"{secret}", f"{secret!r}", repr([secret]), f"{(secret,)}"]
    assert TEXT not in "".join(shown)
    assert TEXT == secret.reveal()
    assert not hasattr(secret, "__dict__")


@pytest.mark.parametrize("call", [pickle.dumps, copy.copy, copy.deepcopy])
def test_it_is_not_copied(call) -> None:
    """A secret is neither pickled nor copied, so that it cannot end up in a file or a log."""
    with pytest.raises(TypeError, match="not pickled"):
        call(Secret(TEXT))


def test_parse_returns_what_is_made_of_it() -> None:
    """What reads the value gets it, and its result is returned."""
    assert len(TEXT) == Secret(TEXT).parse(len)


@pytest.mark.parametrize("kind", [TypeError, ValueError])
def test_an_error_about_it_has_no_frame_that_saw_it(kind) -> None:
    """The error is raised with its text, and without the frames and causes of what read it."""

    def parse(value: str) -> None:
        try:
            {}[value]
        except KeyError:
            msg = "it is no good"
            raise kind(msg) from None

    with pytest.raises(kind, match="it is no good") as caught:
        Secret(TEXT).parse(parse)
    names = [entry.frame.code.name for entry in caught.traceback]
    assert ["test_an_error_about_it_has_no_frame_that_saw_it", "parse"] == names
    assert "secret.py" == caught.traceback[1].path.name
    context = caught.value.__context__
    assert context is None or context.__traceback__ is None


def test_other_errors_are_left_alone() -> None:
    """What is no word on the value, such as an error of the caller's own, stays as it is."""

    def parse(_: str) -> None:
        raise KeyError

    with pytest.raises(KeyError) as caught:
        Secret(TEXT).parse(parse)
    assert 3 == len(caught.traceback)


def raised(error: Exception) -> Exception:
    """Return *error* with a frame."""
    with pytest.raises(type(error)):
        raise error
    assert error.__traceback__ is not None
    return error


def test_frames_are_dropped_all_along() -> None:
    """An error, its causes and contexts, and the members of groups lose their frames."""
    first, second, third, fourth = (raised(KeyError(n)) for n in range(4))
    group = raised(ExceptionGroup("several", [first, second]))
    first.__cause__, second.__context__ = third, fourth
    fourth.__context__ = third
    third.__cause__ = first  # A circle.
    drop_frames(group, None)
    assert [None] * 5 == [e.__traceback__ for e in (group, first, second, third, fourth)]
    assert first.__cause__ is third


def test_what_was_there_before_keeps_its_frames() -> None:
    """Raised while another error is handled, neither takes that one's frames."""
    before = raised(KeyError("before"))
    later = raised(ValueError("later"))
    later.__context__ = before
    drop_frames(later, before)
    assert (None, before) == (later.__traceback__, later.__context__)
    assert before.__traceback__ is not None

    handled = None
    try:
        {}["x"]
    except KeyError as error:
        handled = error
        with pytest.raises(ValueError, match="invalid literal"):
            Secret(TEXT).parse(int)
    assert handled is not None
    assert handled.__traceback__ is not None
