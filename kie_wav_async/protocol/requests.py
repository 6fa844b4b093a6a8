"""
Requests as the service wants them, ready for a transport.

Sources: docs.kie.ai, "Convert to WAV", "Get WAV Details", "Get Music Details",
"Get Download URL", "Get Remaining Credits".
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from kie_wav_async.protocol.api_constants import KIE_WAV, ApiTable
from kie_wav_async.protocol.http_messages import WireRequest

if TYPE_CHECKING:
    from yarl import URL

    from kie_wav_async._support.secret import Secret
    from kie_wav_async.models import Track


class _Headers(Mapping[str, str]):
    """The headers of every request; the key is put into its header when that is read."""

    __slots__ = ("_api_key",)

    # The service wants the content type on every request, GET included.
    _OTHERS: Final = {"Content-Type": "application/json", "Accept": "application/json"}

    def __init__(self, api_key: Secret[str]) -> None:
        self._api_key = api_key

    def __getitem__(self, name: str) -> str:
        if name == "Authorization":
            return f"Bearer {self._api_key.reveal()}"
        return self._OTHERS[name]

    def __iter__(self) -> Iterator[str]:
        yield "Authorization"
        yield from self._OTHERS

    def __len__(self) -> int:
        return 1 + len(self._OTHERS)

    def __repr__(self) -> str:
        return f"<headers {', '.join(self)}>"


class RequestBuilder:
    """Builds every request of one session; URLs and headers are made once."""

    __slots__ = (
        "_credits_url",
        "_download_url",
        "_headers",
        "_music_url",
        "_record_url",
        "_submit_names",
        "_submit_url",
    )

    def __init__(self, base_url: URL, api_key: Secret[str], api: ApiTable = KIE_WAV) -> None:
        """Take a checked base URL, and a key that can stand in a header."""
        base = str(base_url).rstrip("/")
        self._submit_url = base + api.submit_path
        self._submit_names = api.submit_names
        self._record_url = f"{base}{api.record_path}?{api.task_query_name}="
        self._music_url = f"{base}{api.music_path}?{api.task_query_name}="
        self._download_url = base + api.download_url_path
        self._credits_url = base + api.credits_path
        self._headers = _Headers(api_key)

    def submit(self, track: Track, callback_url: str) -> WireRequest:
        """Ask for the conversion of *track*; costs credits."""
        values = (track.music_task_id, track.audio_id, callback_url)
        body = dict(zip(self._submit_names, values, strict=True))
        return WireRequest(
            method="POST",
            url=self._submit_url,
            headers=self._headers,
            body=json.dumps(body).encode(),
            is_submit=True,
        )

    def poll(self, task_id: str) -> WireRequest:
        """Ask for the record of a conversion task."""
        return self._get(self._record_url + quote(task_id, safe=""))

    def music(self, music_task_id: str) -> WireRequest:
        """Ask for the record of a music task."""
        return self._get(self._music_url + quote(music_task_id, safe=""))

    def credits(self) -> WireRequest:
        """Ask for the account's credits."""
        return self._get(self._credits_url)

    def download_url(self, url: URL) -> WireRequest:
        """Ask for a 20-minute link to the file behind *url*."""
        return WireRequest(
            method="POST",
            url=self._download_url,
            headers=self._headers,
            body=json.dumps({"url": str(url)}).encode(),
        )

    def _get(self, url: str) -> WireRequest:
        return WireRequest(method="GET", url=url, headers=self._headers)
