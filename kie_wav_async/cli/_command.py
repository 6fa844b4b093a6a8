"""What every command has: options of its kind, and an end with an exit code."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import click

from kie_wav_async.cli._output import (
    ACCEPT_SHORT,
    INTERRUPTED,
    CliError,
    failure_of,
    print_json,
)
from kie_wav_async.errors import KieWavError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine


class ReaderGoneError(Exception):
    """Whoever read our results has gone, as ``head`` does."""


def run_command(work: Coroutine[Any, Any, int], *, as_json: bool) -> int:
    """Run a command to its end."""
    try:
        return asyncio.run(work)
    except KieWavError as error:
        failure = failure_of(error)
    except CliError as error:
        failure = error
    except asyncio.CancelledError:
        failure = CliError(INTERRUPTED, "interrupted")
    except BrokenPipeError as error:  # click would call it a failure of the command.
        raise ReaderGoneError from error
    if as_json:
        print_json({"error": failure.facts})
    raise failure


json_option = click.option("--json", "as_json", is_flag=True, help="Print results as JSON.")
accept_short_option = click.option(
    ACCEPT_SHORT,
    is_flag=True,
    help="Save a WAV that came completely although it is shorter than its header declares.",
)


def service_options(command: Callable[..., int]) -> Callable[..., int]:
    """Add what every command that asks the service has."""
    command = json_option(command)
    command = click.option(
        "--insecure-host",
        "insecure_hosts",
        multiple=True,
        metavar="HOST",
        help="Accept plain http and addresses that are not public of this host; may be repeated. "
        "A service on this machine needs none.",
    )(command)
    return click.option(
        "--base-url",
        metavar="URL",
        help="Where the service is.  [default: $KIE_BASE_URL, else https://api.kie.ai]",
    )(command)
