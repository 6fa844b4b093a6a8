"""``kie-wav simulate``: a local KIE in the foreground."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click
from yarl import URL

from kie_wav_async.cli.common.output import DONE, SERVICE, CliError, print_json, print_line, say
from kie_wav_async.cli.common.shell import quote
from kie_wav_async.cli.common.streams import flush, hurry
from kie_wav_async.simulator import Fault

if TYPE_CHECKING:
    from kie_wav_async.simulator import Simulator


def read_script(_: click.Context, __: click.Parameter, value: str | None) -> tuple[Fault, ...]:
    """
    Return the faults that ``--faults`` names.

    Raises:
        click.BadParameter: They cannot be read.
    """
    if value is None:
        return ()
    try:
        text = Path(value[1:]).read_text("utf-8") if value.startswith("@") else value
        given: object = json.loads(text)
        if not isinstance(given, list):
            msg = "a list of faults is wanted"
            raise click.BadParameter(msg)
        return tuple(Fault.from_json(one) for one in cast("list[object]", given))
    except (OSError, ValueError) as error:
        raise click.BadParameter(str(error)) from error


async def run_simulator(simulator: Simulator, *, as_json: bool) -> int:
    """Run *simulator* until SIGINT or SIGTERM; either is a good end."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError):  # Windows has no such handlers.
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
    try:
        async with simulator as kie:
            environment = {
                "KIE_BASE_URL": kie.base_url,
                "KIE_API_KEY": kie.api_key,
                # Its files have plain http URLs, in callbacks too.
                "KIE_INSECURE_HOSTS": URL(kie.base_url).host or "",
                "KIE_WEBHOOK_HMAC_KEY": kie.webhook_key,
            }
            if as_json:
                print_json(
                    {
                        "base_url": kie.base_url,
                        "api_key": kie.api_key,
                        "webhook_key": kie.webhook_key,
                        "environment": environment,
                    }
                )
            else:
                for name, value in environment.items():
                    print_line(f"export {name}={quote(value)}")
            say("A simulated KIE is listening; Ctrl-C stops it.")
            with contextlib.suppress(asyncio.CancelledError):
                await _wait(stop)
            hurry()
            state = kie.state()
    except (OSError, UnicodeError) as error:  # A host may not even be a name.
        why = getattr(error, "strerror", None) or error
        sentence = f"cannot listen: {why}; choose another --host or --port"
        raise CliError(SERVICE, sentence) from error
    say(
        f"Stopped: {len(state.arrivals)} submits, {state.charges} charged, "
        f"{sum(state.polls.values())} polls."
    )
    return DONE


async def _wait(stop: asyncio.Event) -> None:
    """
    Wait until *stop* is set.

    Raises:
        OutputError: What was printed before, nobody will see.
    """
    stopping, flushing = asyncio.create_task(stop.wait()), asyncio.create_task(flush())
    try:
        _ = await asyncio.wait({stopping, flushing}, return_when=asyncio.FIRST_COMPLETED)
        if not stopping.done():
            await flushing
            _ = await stopping
    finally:
        for task in (stopping, flushing):
            _ = task.cancel()
        _ = await asyncio.gather(stopping, flushing, return_exceptions=True)
