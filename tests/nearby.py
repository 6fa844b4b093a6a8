"""Sessions of the pages' programs: their files come from a simulator on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kie_wav_async._media import Media

if TYPE_CHECKING:
    from kie_wav_async._network import Network


def nearby_media(network: Network, **hosts: frozenset[str]) -> Media:
    """Fetch from the simulator as well."""
    hosts["insecure_hosts"] |= {"127.0.0.1"}
    return Media(network, **hosts)
