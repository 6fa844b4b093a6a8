"""What every command has: options of its kind, and an end with an exit code."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from typing import TYPE_CHECKING, Any

import click

from kie_wav_async.cli.common.output import (
    ACCEPT_SHORT,
    INTERRUPTED,
    CliError,
    failure_of,
    print_json,
)
from kie_wav_async.cli.common.session_factory import Service
from kie_wav_async.cli.common.streams import OutputError, verify_stdout
from kie_wav_async.errors import KieWavError
from kie_wav_async.protocol.api_constants import KIE_WAV

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator


@contextlib.contextmanager
def telling_failures(*, as_json: bool) -> Generator[None]:
    """
    Have what ends the block be a `CliError`; print one JSON object of it if *as_json*.

    Raises:
        CliError: The block did not come to its end.
    """
    try:
        yield
    except KieWavError as error:
        failure = failure_of(error)
    except OutputError:
        raise
    except CliError as error:
        failure = error
    except asyncio.CancelledError:
        failure = CliError(INTERRUPTED, "interrupted")
    else:
        return
    if as_json:
        with contextlib.suppress(OutputError):
            print_json({"error": failure.facts})
    raise failure


def run_command(
    work: Coroutine[Any, Any, int], *, as_json: bool, resume: tuple[str, str] | None = None
) -> int:
    """
    Run a command to its end.

    Args:
        work: What it does.

        as_json: Print one JSON object if it fails.

        resume: What is said if nothing can be printed, before anything was done: words,
            and the command that does the same again.
    """
    with telling_failures(as_json=as_json), contextlib.closing(work):
        try:
            verify_stdout()  # Before anything is done whose result could not be printed.
        except OutputError as error:
            error.resume = resume
            raise
        return asyncio.run(work)


json_option = click.option("--json", "as_json", is_flag=True, help="Print results as JSON.")
accept_short_option = click.option(
    ACCEPT_SHORT,
    is_flag=True,
    help="Save a WAV that came completely although it is shorter than its header declares.",
)


def service_options(command: Callable[..., int]) -> Callable[..., int]:
    """Add the options of commands that use the service, and pass them as *service*."""

    @functools.wraps(command)
    def with_service(
        *arguments: object,
        base_url: str | None,
        insecure_hosts: tuple[str, ...],
        proxy: str | None,
        **settings: object,
    ) -> int:
        return command(*arguments, service=Service(base_url, insecure_hosts, proxy), **settings)

    given = json_option(with_service)
    given = click.option(
        "--proxy",
        metavar="URL",
        help="HTTP proxy for all requests.  [default: $HTTPS_PROXY, $HTTP_PROXY or $ALL_PROXY, not "
        "for $NO_PROXY or a service on this machine]",
    )(given)
    given = click.option(
        "--insecure-host",
        "insecure_hosts",
        multiple=True,
        metavar="HOST",
        help="Accept plain http and addresses that are not public of this host; may be repeated, "
        "and is added to those of $KIE_INSECURE_HOSTS. A service on this machine needs none.",
    )(given)
    return click.option(
        "--base-url",
        metavar="URL",
        help=f"Where the service is.  [default: $KIE_BASE_URL, else {KIE_WAV.base_url}]",
    )(given)
