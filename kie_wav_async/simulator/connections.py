"""The simulator's HTTP server: which connections were used, and which are stalled."""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from aiohttp import web
from aiohttp.http import HttpProcessingError
from aiohttp.log import server_logger

if TYPE_CHECKING:
    import asyncio


class _MalformedOnce(logging.Filter):
    """Lets one line pass of each kind of malformed request, without the traceback."""

    def __init__(self) -> None:
        super().__init__()
        self._kinds: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
        if not isinstance(error, HttpProcessingError):
            return True
        kind = type(error).__name__
        if kind in self._kinds:
            return False
        self._kinds.add(kind)
        record.msg = f"{record.getMessage()}: malformed request ({kind}); the next is not logged"
        record.args = record.exc_info = record.exc_text = None
        return True


def quiet_logger() -> logging.Logger:
    """Return a logger for one server, which says no more than aiohttp's own."""
    logger = logging.Logger(server_logger.name)  # noqa: LOG001 - the filter is this server's
    logger.parent = server_logger
    logger.addFilter(_MalformedOnce())
    return logger


class Server(web.Server):
    """Tells when a connection is lost, which a stalled handler waits for."""

    def __init__(self, handler: Callable[[web.BaseRequest], Any]) -> None:
        super().__init__(handler, access_log=None, tcp_keepalive=False, logger=quiet_logger())
        self.used: set[web.RequestHandler] = set()
        self.stalled: dict[web.RequestHandler, asyncio.Event] = {}

    def connection_lost(
        self, handler: web.RequestHandler, exc: BaseException | None = None
    ) -> None:
        """Let a stalled handler go on."""
        self.used.discard(handler)
        if handler in self.stalled:
            self.stalled[handler].set()
        super().connection_lost(handler, exc)
