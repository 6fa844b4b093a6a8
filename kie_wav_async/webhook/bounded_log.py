"""Log lines that anybody can cause: the first of a kind, then one a minute with a count."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from aiohttp.http import HttpProcessingError

from kie_wav_async._support.budget import Budget

#: Least time between two lines of one kind.
_PERIOD_S: Final = 60.0

_logger = logging.getLogger("kie_wav_async")


class BoundedLog:
    """Logs at most one line of a kind per minute."""

    __slots__ = ("_budgets",)

    def __init__(self) -> None:
        self._budgets: dict[str, Budget] = {}

    def error(self, kind: str, text: str) -> None:
        """
        Log *text*, unless a line of this kind was logged less than a minute ago.

        Args:
            kind: One of a few: nothing a peer sent.

            text: The line.
        """
        budget = self._budgets.setdefault(kind, Budget(1, _PERIOD_S))
        left_out = budget.admit(asyncio.get_running_loop().time())
        if left_out is not None:
            _logger.error("%s%s", text, _count(left_out))


class MalformedRequestFilter(logging.Filter):
    """
    Bounds what aiohttp logs about requests that are not HTTP.

    Its server logs a traceback for each, which quotes the request. At most one line
    a minute is left of them, without the traceback. Other records are not changed.
    """

    def __init__(self) -> None:
        super().__init__()
        self._budget = Budget(1, _PERIOD_S)

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether *record* is to be logged, and shorten it if it is one of these."""
        error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
        if not isinstance(error, HttpProcessingError):
            return True
        left_out = self._budget.admit(record.created)
        if left_out is None:
            return False
        record.msg = f"{record.getMessage()}: malformed request ({type(error).__name__})"
        record.msg += _count(left_out)
        record.args = record.exc_info = record.exc_text = None
        return True


def _count(left_out: int) -> str:
    return f" ({left_out:,} more since the last such line)" if left_out else ""
