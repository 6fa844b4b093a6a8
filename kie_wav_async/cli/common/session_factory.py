"""Where the service is, and the sessions that speak to it."""

from __future__ import annotations

import contextlib
import ipaddress
import os
from typing import TYPE_CHECKING, Any, Final

import attrs
from yarl import URL

from kie_wav_async import AiohttpTransport, WavSession
from kie_wav_async.cli.common.output import USAGE, CliError

if TYPE_CHECKING:
    from collections.abc import Generator

_LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})

# What the package's arguments are called here.
_NAMES: Final = {
    "insecure_hosts": "--insecure-host (KIE_INSECURE_HOSTS)",
    "callback_url": "--callback-url (KIE_CALLBACK_URL)",
}


@contextlib.contextmanager
def as_usage() -> Generator[None]:
    """Turn the package's word on a wrong argument into ours."""
    try:
        yield
    except ValueError as error:
        sentence = str(error)
        for theirs, ours in _NAMES.items():
            sentence = sentence.replace(theirs, ours)
        raise CliError(USAGE, sentence) from error


@attrs.frozen
class Service:
    """Where the service is, as the command line says; the rest is in the environment."""

    base_url: str | None
    insecure_hosts: tuple[str, ...]
    proxy: str | None = None

    def session(self, callback_url: str = "", **settings: Any) -> WavSession:  # noqa: ANN401 - WavSession checks them
        """
        Return a session, not entered.

        Args:
            callback_url:
                Where callbacks come from outside; with it the webhook keys of the
                environment are read. Without it neither they nor the
                environment's callback URL matter, and may be wrong.

            settings: As for `WavSession`.

        Raises:
            CliError: There is no API key, or an argument is wrong.
        """
        if not os.environ.get("KIE_API_KEY"):
            raise CliError(USAGE, "no API key: set KIE_API_KEY (`kie-wav demo` works without one)")
        transport = self._transport()
        with as_usage():
            return WavSession(
                transport=transport,
                base_url=self.base_url,
                insecure_hosts=self.file_hosts(),
                callback_url=callback_url,
                webhook_keys=None if callback_url else (),
                **settings,
            )

    def file_hosts(self) -> set[str]:
        """
        Return the hosts from which a file may come by plain http.

        They are those of the command line and of the environment, and a local service's.
        """
        base = self._base()
        is_local = base.scheme == "http" and base.host in _LOOPBACK
        named = map(str.strip, os.environ.get("KIE_INSECURE_HOSTS", "").split(","))
        return {*self.insecure_hosts, *filter(None, named), *(_LOOPBACK if is_local else ())}

    def _transport(self) -> AiohttpTransport:
        """
        Return the way to the service and to its files.

        The proxies of the environment do not lead to a service on this machine.
        """
        proxy = self.proxy
        if proxy is not None and "//" not in proxy:
            proxy = f"http://{proxy}"
        try:
            return AiohttpTransport(proxy=proxy, trust_env=not _is_loopback(self._base().host))
        except ValueError as error:
            named = f"--{error}" if proxy is not None else f"the environment's {error}"
            raise CliError(USAGE, named) from error

    def _base(self) -> URL:
        try:
            return URL(self.base_url or os.environ.get("KIE_BASE_URL") or "")
        except ValueError:
            return URL()  # The session will say so.


def _is_loopback(host: str | None) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False
