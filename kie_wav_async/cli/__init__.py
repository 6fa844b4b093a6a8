"""
The command line ``kie-wav``, also ``python -m kie_wav_async``; needs the extra ``cli``.

Results go to stdout, progress and messages to stderr. The API key comes from
``KIE_API_KEY`` and from nowhere else. Exit codes:

===  =========================================================================
0    done
1    a conversion failed or was not finished in time, or --max-charges was reached
2    usage: a wrong argument, no API key, the extra is missing
3    the service, the network or the disk got in the way
4    a submit may or may not have been accepted: somebody has to decide
130  interrupted
===  =========================================================================
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run the command line and return its exit code.

    Args:
        arguments: What follows ``kie-wav``; `None`: the process's own.
    """
    try:
        from kie_wav_async.cli.commands import run  # noqa: PLC0415 - the extra may be missing
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in {"click", "rich"}:
            raise
        sys.stderr.write(
            "kie-wav: the command line needs an extra: pip install 'kie-wav-async[cli]'\n"
        )
        return 2
    except KeyboardInterrupt:
        return 130
    return run(arguments)
