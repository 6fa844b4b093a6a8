"""URLs in responses and callbacks: where they stand, and which of them are URLs."""

from __future__ import annotations

import re
from typing import Final

from yarl import URL

from kie_wav_async.protocol.api_constants import KIE_WAV
from kie_wav_async.protocol.envelope import (
    JsonObject,
    as_object,
    open_text,
)
from kie_wav_async.protocol.wav_links import find_links


def find_url(root: JsonObject, data: JsonObject) -> URL | None:
    """
    Return the WAV's URL, wherever an answer or a callback has it; `None` if nowhere.

    The documented names count first, where they are documented; then whatever
    else in the answer can only be the WAV (see `protocol.wav_links`).
    """
    url = find_documented_url(root, data)
    if url is not None:
        return url
    links = map(parse_url, find_links(root))
    return next((link for link in links if link is not None), None)


def find_documented_url(root: JsonObject, data: JsonObject) -> URL | None:
    """Return the WAV's URL if it is where the service documents it; else `None`."""
    # Most records name no file yet: what is absent is passed over at once.
    for place in (data.get("response"), data, data.get("info"), root):
        if not place:
            continue
        fields = as_object(open_text(place) or place)
        for name in KIE_WAV.url_names:
            value = fields.get(name)
            if value is not None and (url := parse_url(value)) is not None:
                return url
    return None


#: Longest URL we take; web servers commonly stop at 8 KiB.
_MAX_URL_LENGTH: Final = 8192


#: Longest host with its port. DNS stops at 253, and so must we before yarl sees
#: one: the ASCII form of a long host in another script takes it many seconds.
_MAX_AUTHORITY_LENGTH: Final = 260


#: What may stand in brackets. yarl takes more, and then raises whatever it is asked.
_IPV6_AUTHORITY: Final = re.compile(r"\[[0-9A-Fa-f:.]+\](:[0-9]*)?")


_AUTHORITY_END: Final = re.compile(r"[/?#\\]")


def parse_url(value: object) -> URL | None:
    """Return *value* as an absolute http(s) URL, spelled as sent; `None` if it is none."""
    if not isinstance(value, str) or not value.isprintable() or len(value) > _MAX_URL_LENGTH:
        return None
    text = value.strip()
    authority = _AUTHORITY_END.split(text.partition("//")[2], maxsplit=1)[0]
    if len(authority) > _MAX_AUTHORITY_LENGTH:
        return None
    if ("[" in authority or "]" in authority) and _IPV6_AUTHORITY.fullmatch(authority) is None:
        return None
    try:
        # A signed link must stay as it is; only one that could not stand in a
        # request line is quoted.
        url = URL(text, encoded=text.isascii() and " " not in text)
        # Asking for the port is what makes yarl look at it.
        host = url.host or ""
        usable = url.scheme in {"http", "https"} and url.port is not None
    except ValueError:
        return None
    return url if usable and host and " " not in host else None
