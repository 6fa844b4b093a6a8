"""
A local KIE to test and play against: no key, no network, no cost.

    async with Simulator(median_s=2.0) as kie:
        async with WavSession(kie.api_key, base_url=kie.base_url) as session: ...

`Simulator` runs in this process, on 127.0.0.1; `SimulatorProcess` runs one in a process of its
own, and so does ``kie-wav simulate``. Faults are scripted with `Fault`; what the
service saw, charged and called back is in `SimulatorState`.

Whatever it sends, it sends to this machine only.

It shares no code with the client, so that a misreading of the service cannot cancel out.
"""

from kie_wav_async.simulator.faults import Fault
from kie_wav_async.simulator.process import SimulatorProcess
from kie_wav_async.simulator.server import Simulator
from kie_wav_async.simulator.state import Arrival, Delivery, SimulatorState

__all__ = [
    "Arrival",
    "Delivery",
    "Fault",
    "Simulator",
    "SimulatorProcess",
    "SimulatorState",
]
