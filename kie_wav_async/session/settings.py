"""The settings of a session: what was given, else what the environment says."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from kie_wav_async.callbacks.callback_url import parse_callback_url
from kie_wav_async.callbacks.signature import parse_keys
from kie_wav_async.protocol.api_constants import KIE_WAV
from kie_wav_async.protocol.user_settings import parse_api_key, parse_base_url, parse_hosts

if TYPE_CHECKING:
    from collections.abc import Iterable

    from yarl import URL


def read_api_key(given: str | None) -> str:
    """Return the API key: *given*, or else ``KIE_API_KEY``."""
    if given is None:
        msg = "no API key: pass api_key or set KIE_API_KEY"
        raise ValueError(msg)
    return parse_api_key(given)


def read_base_url(given: str | URL | None, insecure_hosts: frozenset[str]) -> URL:
    """Return the address of the service: *given*, ``KIE_BASE_URL``, or its own."""
    if given is None:
        given = os.environ.get("KIE_BASE_URL") or KIE_WAV.base_url
    return parse_base_url(given, insecure_hosts)


def read_callback_url(given: str | URL | None) -> str | None:
    """Return where the service posts: *given*, or ``KIE_CALLBACK_URL``; `None` for polling only."""
    if given is None:
        given = os.environ.get("KIE_CALLBACK_URL") or ""
    return None if given == "" else parse_callback_url(given)


def read_webhook_keys(given: str | Iterable[str] | None) -> tuple[bytes, ...]:
    """Return the webhook keys: *given*, or those of ``KIE_WEBHOOK_HMAC_KEY``."""
    if given is not None:
        return parse_keys(given, "webhook_keys")
    value = os.environ.get("KIE_WEBHOOK_HMAC_KEY")
    return parse_keys(value.split(","), "KIE_WEBHOOK_HMAC_KEY") if value else ()


def read_insecure_hosts(given: Iterable[str] | None) -> frozenset[str]:
    """Return the hosts that need no TLS: *given*, or those of ``KIE_INSECURE_HOSTS``."""
    if given is not None:
        return parse_hosts(given, "insecure_hosts")
    named = map(str.strip, os.environ.get("KIE_INSECURE_HOSTS", "").split(","))
    return parse_hosts(filter(None, named), "KIE_INSECURE_HOSTS")
