"""What is not loaded with the package is loaded when a session is made, and never later."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import asyncio, pathlib, sys, tempfile
from kie_wav_async import Track, WavSession, errors
from kie_wav_async.testing import (
    FakeClock, ScriptedTransport, accepted, answer, polled_task_id, succeeded
)

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.startswith("kie_wav_async") or name == "decimal":
            raise OSError(24, "Too many open files", name)

def reply(request):
    if request.is_submit:
        return accepted("t1")
    if "credit" in request.url:
        return answer({"code": 200, "msg": "success", "data": 7})
    return succeeded(polled_task_id(request))

async def main():
    clock, seen = FakeClock(), []
    session = WavSession(
        "key", callback_url="", transport=ScriptedTransport(reply), clock=clock,
        on_event=seen.append, download_hosts=["other.invalid"],
    )
    sys.meta_path.insert(0, Refuse())
    async with session:
        wav = await clock.run(session.convert(Track("m", "a")))
        print(await clock.run(session.get_credits()))
        try:
            await session.download(wav, pathlib.Path(tempfile.gettempdir(), "none.wav"))
        except errors.DownloadError as error:
            print(error.reason)
    print(*(type(event).__name__ for event in seen))

asyncio.run(main())
"""


def test_nothing_is_loaded_once_a_session_is_made() -> None:
    """A process that cannot open a file any more still submits, reports and refuses as ever."""
    done = subprocess.run(  # noqa: S603 - our own interpreter and our own text
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=False
    )
    assert ("", ["7", "url-not-allowed", "SubmitAccepted ConversionSucceeded"]) == (
        done.stderr,
        done.stdout.splitlines(),
    )
