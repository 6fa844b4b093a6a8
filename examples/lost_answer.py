"""
What a lost answer costs: a submit the service took, and whose answer never came.

Needs no key and no network: python examples/lost_answer.py
"""

from __future__ import annotations

import asyncio

from kie_wav_async import PollSchedule, Track, WavSession, errors
from kie_wav_async.simulator import Fault, Simulator


async def main() -> None:
    """Lose an answer, be told so, and find the task."""
    track = Track("5c79be8e", "e231")
    hangup = Fault(on="submit", kind="hangup", when="after", at=1)
    quick = PollSchedule(first_s=0.1, interval_s=0.1)
    async with Simulator(median_s=0.2, faults=[hangup]) as kie:
        async with WavSession(kie.api_key, base_url=kie.base_url, poll=quick) as session:
            try:
                await session.convert(track)
            except errors.SubmitUnknownError as error:
                print(error)
                # Where a person would look into KIE's logs.
                task_id = kie.arrivals[0].task_id
                await session.resolve_unknown(error.attempt_id, task_id=task_id)
            wav = await session.convert(track)
            bill = session.statistics()
        print(f"{wav.url} of task {wav.task_id}")
        print(f"accepted {bill.accepted}, unknown {bill.unknown}, charged {kie.charges}")


if __name__ == "__main__":
    asyncio.run(main())
