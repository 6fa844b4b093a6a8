"""
What the system was asked for, in order: is it on the disk before the next step?

A kill proves nothing about the disk, because the system outlives the process and
writes in the end what it was given. So the calls themselves are looked at, as
``strace`` sees them: a text is on the disk once a write to the ledger's log that
holds it has been followed by a sync of the log which has returned.
"""

from __future__ import annotations

import functools
import re
import shutil
import subprocess

import attrs

#: A page of the log in one piece, and all calls that write, send or sync.
ARGUMENTS = (
    *("-f", "-y", "-s", "5000", "-e", "signal=none"),
    *("-e", "trace=write,writev,pwrite64,sendto,sendmsg,fsync,fdatasync"),
)

CALL = re.compile(r"(?P<thread>\d+) +(?P<name>\w+)\(\d+<(?P<file>[^>]*)>(?P<rest>.*)")
RESUMED = re.compile(r"(?P<thread>\d+) +<\.\.\. \w+ resumed>(?P<rest>.*)")
ATTEMPT = re.compile(r"attempt=([0-9a-f]{32})")
TOLD = re.compile(r'"(?:task (?P<task>\w+)|url \w+ (?P<url>[^ \\]+))\\n"')


@functools.cache
def why_not() -> str:
    """Say why nothing can be looked at here; empty if it can."""
    strace = shutil.which("strace")
    if strace is None:
        return "strace is not installed"
    tried = subprocess.run(  # noqa: S603 - strace of nothing
        [strace, "-f", "-o", "/dev/null", "true"], capture_output=True, text=True, check=False
    )
    return "" if tried.returncode == 0 else f"strace may not look: {tried.stderr.strip()}"


@attrs.define
class Call:
    """One call, and in which lines it began and returned."""

    name: str
    file: str
    text: str
    began: int
    returned: int | None = None


def read_calls(trace: str) -> list[Call]:
    """Return the calls in what strace wrote, in the order in which they began."""
    calls: list[Call] = []
    under_way: dict[str, Call] = {}
    for number, line in enumerate(trace.splitlines()):
        if (found := RESUMED.fullmatch(line)) is not None:
            call = under_way.pop(found["thread"], None)
            if call is not None:
                call.returned = number
                call.text += found["rest"]
        elif (found := CALL.fullmatch(line)) is not None:
            call = Call(found["name"], found["file"], found["rest"], number)
            calls.append(call)
            if found["rest"].endswith("<unfinished ...>"):
                under_way[found["thread"]] = call
            else:
                call.returned = number
    return calls


@attrs.frozen
class Order:
    """How many steps were taken, and how many of them once what they need was on the disk."""

    submits: int
    submits_after_sync: int
    tasks: int
    tasks_after_sync: int
    results: int
    results_after_sync: int

    def line(self) -> str:
        """Say it in one line."""
        return (
            f"submits after their intent was synced: {self.submits_after_sync} of {self.submits}; "
            f"tasks told after their id was: {self.tasks_after_sync} of {self.tasks}; "
            f"results told after they were: {self.results_after_sync} of {self.results}"
        )


def judge_order(trace: str) -> Order:
    """Compare each submit, and each thing told, with what was on the disk before."""
    calls = read_calls(trace)
    log = [call for call in calls if call.file.endswith("-wal") and call.returned is not None]
    writes = [call for call in log if call.name == "pwrite64"]
    syncs = [call for call in log if call.name in {"fsync", "fdatasync"}]

    def is_synced(text: str, before: int) -> bool:
        written = next((call.returned for call in writes if text in call.text), None)
        return written is not None and any(
            written < sync.began and sync.returned < before for sync in syncs
        )

    seen = {"submits": [], "tasks": [], "results": []}
    for call in calls:
        if (
            call.name in {"sendto", "sendmsg", "write", "writev"}
            and "POST /api/v1/wav" in call.text
        ):
            (attempt,) = ATTEMPT.findall(call.text)
            seen["submits"].append(is_synced(attempt, call.began))
        elif call.file.endswith("/told") and (found := TOLD.search(call.text)) is not None:
            what = "tasks" if found["task"] else "results"
            seen[what].append(is_synced(found["task"] or found["url"], call.began))
    return Order(
        **{what: len(synced) for what, synced in seen.items()},
        **{f"{what}_after_sync": sum(synced) for what, synced in seen.items()},
    )
