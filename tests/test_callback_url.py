from __future__ import annotations

import pytest
from yarl import URL

from kie_wav_async._callback_url import (
    PLACEHOLDER_CALLBACK_URL,
    build_callback_url,
    find_attempt,
    is_called_back_elsewhere,
)
from kie_wav_async._models import TaskRecord, TaskState
from samples import ATTEMPT_ID, CALLBACK_URL, TASK_ID, short

PENDING = TaskState.PENDING
OTHER_ID = "ffffffffffffffffffffffffffffffff"


def test_the_placeholder_names_the_attempt():
    """Where nobody listens, the callback URL is under ``.invalid`` and names the attempt."""
    url = URL(build_callback_url(PLACEHOLDER_CALLBACK_URL, ATTEMPT_ID))

    assert url.host.endswith(".invalid")
    assert dict(url.query) == {"attempt": ATTEMPT_ID}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"callbackUrl": CALLBACK_URL}, ATTEMPT_ID),
        ({"callBackUrl": CALLBACK_URL}, ATTEMPT_ID),
        ({"callbackUrl": None, "callBackUrl": CALLBACK_URL}, ATTEMPT_ID),
        ({"callbackUrl": "rubbish", "callBackUrl": CALLBACK_URL}, ATTEMPT_ID),
        ({"callbackUrl": "https://h.example/", "callBackUrl": CALLBACK_URL}, None),
        ({"callbackUrl": f"https://h.example/cb?x=1&attempt={ATTEMPT_ID}&y=2"}, ATTEMPT_ID),
        ({"callbackUrl": f"{CALLBACK_URL}&attempt={OTHER_ID}"}, None),
        ({"callbackUrl": f"{CALLBACK_URL}&attempt={ATTEMPT_ID}"}, None),
        ({"callbackUrl": "https://h.example/cb?attempt"}, ""),
        ({"callbackUrl": "https://h.example/cb?attempt="}, ""),
        ({"callbackUrl": f"https://h.example/cb?Attempt={ATTEMPT_ID}"}, None),
        ({"callbackUrl": f"https://h.example/cb?xattempt={ATTEMPT_ID}"}, None),
        ({"callbackUrl": f"https://h.example/cb#attempt={ATTEMPT_ID}"}, None),
        ({"callbackUrl": f"https://h.example/attempt={ATTEMPT_ID}"}, None),
        ({"callbackUrl": 5}, None),
        ({}, None),
    ],
    ids=short,
)
def test_an_attempt_is_named_once_or_not_at_all(fields, expected):
    """The attempt is the one value of its name in the callback URL's query."""
    found = TaskRecord(task_id=TASK_ID, state=PENDING, raw=fields)

    assert expected == find_attempt(found)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"callbackUrl": CALLBACK_URL}, False),
        ({"callBackUrl": CALLBACK_URL}, False),
        ({"callbackUrl": CALLBACK_URL.partition("?")[0]}, False),
        ({"callbackUrl": f"{CALLBACK_URL}#part"}, False),
        ({"callbackUrl": f"{CALLBACK_URL}&attempt={OTHER_ID}"}, False),
        ({"callbackUrl": "https://other.example/callback"}, True),
        ({"callBackUrl": "https://other.example/callback"}, True),
        ({"callbackUrl": None, "callBackUrl": "https://other.example/callback"}, True),
        ({"callbackUrl": CALLBACK_URL, "callBackUrl": "https://other.example/"}, False),
        ({"callbackUrl": CALLBACK_URL.replace("https", "http")}, True),
        ({"callbackUrl": CALLBACK_URL.replace("?", "/x?")}, True),
        ({"callbackUrl": "rubbish"}, False),
        ({"callbackUrl": 5}, False),
        ({}, False),
    ],
    ids=short,
)
def test_a_task_is_called_back_elsewhere_if_its_record_says_so(fields, expected):
    """A task is somebody else's if its record shows a callback URL that is not ours."""
    found = TaskRecord(task_id=TASK_ID, state=PENDING, raw=fields)

    assert is_called_back_elsewhere(found, CALLBACK_URL) is expected
    assert is_called_back_elsewhere(found, CALLBACK_URL.partition("?")[0]) is expected
