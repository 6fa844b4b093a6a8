"""A simulator in a process of its own: what runs there, and what starts and asks it."""

import asyncio
import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, Self, cast

import aiohttp

from kie_wav_async.simulator.faults import Fault, faults_from_json
from kie_wav_async.simulator.server import Simulator
from kie_wav_async.simulator.state import SimulatorState

_START_S = 30.0  # An interpreter on a loaded machine.
_STOP_S = 5.0
_READ = 65_536


def simulator_from_json(settings: Mapping[str, object]) -> Simulator:
    """
    Build a simulator from its keywords as JSON: lists for pairs, objects for faults.

    Raises:
        ValueError: a setting is unknown or out of range.

    """
    given: dict[str, Any] = dict(settings)
    if "faults" in given:
        given["faults"] = faults_from_json(given["faults"])
    try:
        return Simulator(**given)
    except TypeError as error:
        raise ValueError(str(error)) from error


def main() -> int:
    """
    Run a simulator until SIGTERM, SIGINT, the end of standard input or of its life.

    The first line of standard input has ``settings``, which are keywords of `Simulator`, and
    ``max_life_s``; `SimulatorProcess` writes it. One line with ``base_url``, ``api_key``,
    ``webhook_key`` and ``pid`` is printed when the simulator is ready.

    Returns:
        The exit code: 0, or 2 after a sentence on stderr if the settings make no sense.

    """
    given = cast("dict[str, Any]", json.loads(sys.stdin.buffer.readline()))
    try:
        simulator = simulator_from_json(given["settings"])
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    asyncio.run(_run(simulator, max_life_s=given["max_life_s"]))
    return 0


async def _run(simulator: Simulator, *, max_life_s: float) -> None:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        with contextlib.suppress(NotImplementedError):  # Windows has no such handlers.
            loop.add_signal_handler(number, stop.set)
    async with simulator as kie:
        ready = {
            "base_url": kie.base_url,
            "api_key": kie.api_key,
            "webhook_key": kie.webhook_key,
            "pid": os.getpid(),
        }
        sys.stdout.write(json.dumps(ready) + "\n")
        sys.stdout.flush()
        # A thread, because only a blocking read works on every kind of standard input;
        # a daemon, because nothing ends that read.
        watch = threading.Thread(target=_watch_stdin, args=(loop, stop.set), daemon=True)
        watch.start()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max_life_s):
                await stop.wait()


def _watch_stdin(loop: asyncio.AbstractEventLoop, stop: Callable[[], None]) -> None:
    # The file descriptor itself: a buffered reader would be locked at interpreter exit.
    with contextlib.suppress(OSError):
        while os.read(0, _READ):
            pass
    with contextlib.suppress(RuntimeError):  # The loop has ended by itself.
        loop.call_soon_threadsafe(stop)


class SimulatorProcess:
    """
    A `Simulator` in a process of its own, for measurements that must not share our loop.

    Use it as ``async with SimulatorProcess(median_s=2.0) as kie``: it has `base_url`,
    `api_key` and `webhook_key`, and tells its state on request. The process ends with the
    block, and with this process, however that ends.

    Args:
        faults: The script.
        max_life_s: The process ends by itself after this many seconds.
        settings: Any other keyword of `Simulator` except `now`; values must be JSON.

    Raises:
        RuntimeError: on entering, the process did not come up; its own words are on stderr.

    """

    def __init__(
        self, *, faults: Iterable[Fault] = (), max_life_s: float = 600.0, **settings: object
    ) -> None:
        self.base_url = ""
        self.api_key = ""
        self.webhook_key = ""
        given = {**settings, "faults": [fault.to_json() for fault in faults]}
        self._line = json.dumps({"settings": given, "max_life_s": max_life_s})
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        self._process = process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "kie_wav_async.simulator",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdin is not None  # noqa: S101 - asked for above
        assert process.stdout is not None  # noqa: S101 - asked for above
        try:
            async with asyncio.timeout(_START_S):
                process.stdin.write(self._line.encode() + b"\n")
                line = await process.stdout.readline()
        except BaseException:
            await self.aclose()
            raise
        if not line:
            await self.aclose()
            message = "the simulator's process ended before it was ready"
            raise RuntimeError(message)
        ready = cast("dict[str, str]", json.loads(line))
        self.base_url, self.api_key = ready["base_url"], ready["api_key"]
        self.webhook_key = ready["webhook_key"]
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End the process: ask by closing its standard input, kill it after 5 s."""
        if self._process is None:
            return
        process, self._process = self._process, None
        assert process.stdin is not None  # noqa: S101 - asked for at the start
        assert process.stdout is not None  # noqa: S101 - asked for at the start
        process.stdin.close()
        try:
            async with asyncio.timeout(_STOP_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
        # To its end, so that the pipe is closed with it.
        await process.stdout.read()

    async def state(self, *, brief: bool = False) -> SimulatorState:
        """
        Return everything counted so far.

        Args:
            brief: Leave out what grows with each track: `arrivals`, `charges_by_track`, `polls`,
                `deliveries`.

        """
        answer = await self._ask("GET", "state" + "?brief=1" * brief)
        return SimulatorState.from_json(answer)

    async def set_faults(self, faults: Iterable[Fault]) -> None:
        """Put a new script in place of the old one; its counts start at zero."""
        await self._ask("POST", "faults", [fault.to_json() for fault in faults])

    async def reset(self) -> None:
        """Forget every task and count and start the script from its beginning."""
        await self._ask("POST", "reset")

    async def _ask(self, method: str, what: str, body: object = None) -> dict[str, object]:
        url = f"{self.base_url}/__sim__/{what}"
        async with (
            aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as client,
            client.request(method, url, json=body, headers={"Connection": "close"}) as answer,
        ):
            answer.raise_for_status()
            return cast("dict[str, object]", await answer.json())
