from __future__ import annotations

import copy
import pickle
import re
import traceback
from asyncio import InvalidStateError
from typing import Any

import pytest

import musicgpt_async
from musicgpt_async import errors
from musicgpt_async.errors import APIError, MusicGPTError

KINDS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, MusicGPTError)
]
DATA: dict[str, Any] = {
    "status": 429,
    "task_id": "t",
    "retry_after": 1.5,
    "vendor_message": "slow down",
    "job": object(),
}
MEANS = {
    errors.ConfigurationError: ValueError,
    errors.InvalidOptionError: ValueError,
    errors.SourceError: OSError,
    errors.SourceChangedError: OSError,
    errors.SessionClosedError: RuntimeError,
    errors.NotFinishedError: InvalidStateError,
    errors.TransportError: ConnectionError,
    errors.TransportTimeoutError: TimeoutError,
    errors.ProtocolError: ValueError,
    errors.BadRequestError: ValueError,
    errors.AuthenticationError: PermissionError,
    errors.ForbiddenError: PermissionError,
    errors.NotFoundError: LookupError,
    errors.ValidationError: ValueError,
    errors.SubmissionUnknownError: ConnectionError,
    errors.DeadlineError: TimeoutError,
    errors.JobNotFoundError: LookupError,
    errors.DownloadError: OSError,
    errors.JournalError: OSError,
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_bears_the_same_data(kind: type[MusicGPTError]) -> None:
    """Message and attributes exist, ``None`` by default."""
    error = kind("what to do", **DATA)
    assert str(error) == error.message == "what to do"
    assert {name: getattr(error, name) for name in DATA} == DATA == dict(error.kwargs)
    bare = kind("x")
    assert set(bare.kwargs.values()) == {None}
    assert isinstance(error, MusicGPTError)


@pytest.mark.parametrize(("kind", "builtin"), MEANS.items())
def test_errors_are_caught_as_the_builtin_that_they_mean(
    kind: type[MusicGPTError], builtin: type[Exception]
) -> None:
    """Code that knows nothing of the library still catches them."""
    with pytest.raises(builtin):
        raise kind("x")


@pytest.mark.parametrize("kind", KINDS)
def test_a_fresh_error_is_equal_and_has_no_past(kind: type[MusicGPTError]) -> None:
    """Each raise of an outcome is a new exception with its own traceback."""
    try:
        raise kind("x", **DATA) from KeyError("cause")
    except MusicGPTError as error:
        first = error
    again = first.copy()
    assert type(again) is kind
    assert again is not first
    assert again.kwargs == first.kwargs
    assert again.__cause__ is first.__cause__
    assert again.__traceback__ is None
    changed = first.copy(status=500, job=None)
    assert (changed.status, changed.job, changed.task_id) == (500, None, "t")
    assert "KeyError" in "".join(traceback.format_exception(again))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_errors_travel_between_processes(kind: type[MusicGPTError], protocol: int) -> None:
    """A pickled error comes back with its data; the handle, which lives in a loop, stays behind."""
    error = pickle.loads(pickle.dumps(kind("wörds", **DATA), protocol))  # noqa: S301 - our own
    assert type(error) is kind
    assert error.message == "wörds"
    assert dict(error.kwargs) == {**DATA, "job": None}


@pytest.mark.parametrize("kind", KINDS)
def test_errors_can_be_copied(kind: type[MusicGPTError]) -> None:
    """``copy`` makes another of the same kind."""
    error = copy.copy(kind("x", **DATA))
    assert (type(error), error.message, error.status) == (kind, "x", 429)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if issubclass(kind, APIError)])
def test_every_answer_that_says_no_says_what_to_do(kind: type[APIError]) -> None:
    """A hint is a sentence, and the two that need an action name it."""
    assert kind.advice.endswith(".")


def test_the_two_that_need_an_action_name_it() -> None:
    """401 says where the key is read from, 402 to add credit."""
    assert "MUSICGPT_API_KEY" in errors.AuthenticationError.advice
    assert "add credit" in errors.InsufficientCreditsError.advice


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    """The docstring has every class with its base, builtin and status."""
    assert errors.__doc__
    drawn: dict[str, str | None] = {}
    path: list[str] = []
    for line in errors.__doc__.splitlines():
        found = re.match(r"    (?P<lead>[│ ├└─]*)(?P<name>\w+Error)(?: \((?P<means>\w+)\))?", line)
        if found:
            depth = len(found["lead"]) // 4
            path[depth:] = [found["name"]]
            drawn[found["name"]] = path[depth - 1] if depth else None
            means = [base.__name__ for base in vars(errors)[found["name"]].__bases__]
            assert found["means"] is None or found["means"] in means
    assert drawn.keys() == {kind.__name__ for kind in KINDS}
    for name, parent in drawn.items():
        if parent is not None:
            assert vars(errors)[name].__bases__[0].__name__ == parent


def test_every_error_is_at_the_front() -> None:
    """Every error can be imported from the package."""
    for kind in KINDS:
        assert getattr(musicgpt_async, kind.__name__) is kind
        assert kind.__name__ in musicgpt_async.__all__
        assert kind.__doc__
