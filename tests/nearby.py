"""Sessions of the pages' programs: their files come from a simulator on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kie_wav_async.downloads.file_client import FileClient

if TYPE_CHECKING:
    from kie_wav_async.http.connection_settings import ConnectionSettings


def nearby_media(network: ConnectionSettings, **hosts: frozenset[str]) -> FileClient:
    """Fetch from the simulator as well."""
    hosts["insecure_hosts"] |= {"127.0.0.1"}
    return FileClient(network, **hosts)
