"""``--listen HOST:PORT --callback-url URL``: be called back, by a server of our own."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from typing import TYPE_CHECKING, Final

import attrs
import click

from kie_wav_async.cli.common.output import SERVICE, USAGE, CliError
from kie_wav_async.webhook import CallbackServer

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from kie_wav_async import WavSession

#: Where webhook keys are read from, and from nowhere else.
KEY_NAME: Final = "KIE_WEBHOOK_HMAC_KEY"

_ADDRESS: Final = re.compile(
    r"(?:\[(?P<inner>[^\[\]\s]+)\]|(?P<host>[^\[\]:\s]+)):(?P<port>[0-9]{1,5})"
)
_MAX_PORT: Final = 65_535


@attrs.frozen
class ListenOptions:
    """
    Where we listen, and where the service posts so that it gets here.

    Attributes:
        host: A name or a literal address of this machine.

        port: From 1.

        callback_url: Not checked yet.

        has_keys: Whether the environment has webhook keys, right or wrong.
    """

    host: str
    port: int
    callback_url: str
    has_keys: bool

    def __str__(self) -> str:
        """Return where we listen, as it is given on the command line."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def read_address(
    _: click.Context, __: click.Parameter, value: str | None
) -> tuple[str, int] | None:
    """
    Return the host and the port that ``--listen`` names.

    Raises:
        click.BadParameter: It names none, or port 0.
    """
    if value is None:
        return None
    match = _ADDRESS.fullmatch(value)
    if match is None:
        msg = (
            f"{value!r} is not HOST:PORT like 127.0.0.1:8080 or [::1]:8080; "
            "0.0.0.0:8080 and [::]:8080 are every address of this machine"
        )
        raise click.BadParameter(msg)
    port = int(match["port"])
    if port == 0:
        msg = "port 0 is any free one, and the callback URL could not lead to it"
        raise click.BadParameter(msg)
    if port > _MAX_PORT:
        msg = f"there is no port {port}"
        raise click.BadParameter(msg)
    return match["inner"] or match["host"], port


def read_listening(
    address: tuple[str, int] | None, callback_url: str | None
) -> ListenOptions | None:
    """
    Return how to be called back; `None`: not at all, whatever the environment says.

    Args:
        address: From ``--listen``.

        callback_url: From ``--callback-url``.

    Raises:
        CliError: One of the two is missing.
    """
    if address is None:
        if callback_url is not None:
            sentence = (
                "--callback-url says where KIE posts the result, but nobody would listen: "
                "add --listen HOST:PORT, or leave it out to poll"
            )
            raise CliError(USAGE, sentence)
        return None
    url = os.environ.get("KIE_CALLBACK_URL") if callback_url is None else callback_url
    if not url:
        sentence = (
            "--listen needs the address under which KIE gets here: "
            "add --callback-url URL, or set KIE_CALLBACK_URL"
        )
        raise CliError(USAGE, sentence)
    return ListenOptions(*address, url, bool(os.environ.get(KEY_NAME)))


@contextlib.asynccontextmanager
async def listen(session: WavSession, listening: ListenOptions | None) -> AsyncGenerator[None]:
    """
    Take the session's callbacks for as long as the block runs; without *listening* do nothing.

    Raises:
        CliError: The address cannot be listened on.
    """
    async with contextlib.AsyncExitStack() as stack:
        if listening is not None:
            server = CallbackServer(session, listening.host, listening.port)
            try:
                await stack.enter_async_context(server)
            except (OSError, UnicodeError) as error:  # A host may not even be a name.
                sentence = f"cannot listen on {listening}: {_reason(error)}; nothing was submitted"
                raise CliError(SERVICE, sentence) from error
        yield


def _reason(error: OSError | UnicodeError) -> str:
    """Say it as the system does: asyncio puts the address before it again."""
    if isinstance(error, UnicodeError):
        return "not the name of a host"
    # Without a number it is asyncio's own: none of the host's addresses is here.
    number = errno.EADDRNOTAVAIL if error.errno is None else error.errno
    return (os.strerror(number) if number > 0 else error.strerror or str(error)).lower()
