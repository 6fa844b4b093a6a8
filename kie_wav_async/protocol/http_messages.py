"""What the transport sends and brings back: requests and responses as values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import attrs


@attrs.frozen(kw_only=True)
class WireRequest:
    """
    One HTTP request, ready for a transport.

    Attributes:
        method: ``"GET"`` or ``"POST"``.

        url: Absolute, percent-encoded URL.

        headers: What to send besides the transport's own; holds the API key.

        body: JSON, UTF-8; `None` for no body.

        is_submit:
            Whether this request costs credits if the service sees it. It must
            then go out on a fresh connection, once, and follow no redirect.
    """

    method: Literal["GET", "POST"]
    url: str
    headers: Mapping[str, str] = attrs.field(repr=False)
    body: bytes | None = None
    is_submit: bool = False


@attrs.frozen(kw_only=True)
class WireResponse:
    """
    One HTTP answer, as far as we read it.

    Attributes:
        status: The HTTP status.

        body: The body, decompressed, at most 1 MiB.

        retry_after: The ``Retry-After`` header as sent; `None` if absent.

        request_id: The ``cf-ray`` header; `None` if absent.

        date: The ``Date`` header as sent; `None` if absent, or sent more than once.

        now_unix_s: Our wall clock when the answer came, to read HTTP dates by.
    """

    status: int
    body: bytes
    retry_after: str | None = None
    request_id: str | None = None
    date: str | None = None
    now_unix_s: float = 0.0
