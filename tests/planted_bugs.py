"""
Do the tests of the verifier see a bug? Plant them, one at a time, and look.

Run it from anywhere, with the package's test tools installed::

    python tests/planted_bugs.py

Each bug is one that a receiver of webhooks has had, or could have, and is planted
by exact replacement into a copy of the package, on which the tests of the
verification are run. The table names the first test that failed. The exit status
is 0 if every bug was found, 1 if one survived, and 2 if the script itself went
wrong: a text that is not there exactly once, or tests that fail without a bug.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import attrs

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = "kie_wav_async"

#: Which tests hold which module, the plain ones first.
TESTS = {
    "callbacks/signature": ("test_signature", "test_verification", "test_payload"),
    "callbacks/payload": ("test_payload", "test_verification"),
    "protocol/envelope": ("test_payload", "test_envelope"),
    "callbacks/callback_url": ("test_callback_url",),
    "session/verification": ("test_verification",),
    "core/early_callbacks": ("test_early_callbacks",),
    "core/poll_throttle": ("test_poll_throttle",),
    "core/callback_health": ("test_health_rules",),
}
ALL_TESTS = tuple(sorted(set().union(*TESTS.values())))

#: What the tests are run with, beside themselves.
HELPERS = ("conftest.py", "samples.py", "strategies.py")

#: No run takes a tenth of this; it only ends a hang.
PATIENCE_S = 300.0


@attrs.frozen
class Bug:
    """One way to get it wrong: texts of a module and what stands in their place."""

    name: str
    module: str
    changes: tuple[tuple[str, str], ...]

    def plant(self, source: str) -> str:
        """Return *source* with the bug in it; each text must stand there exactly once."""
        for old, new in self.changes:
            if source.count(old) != 1:
                msg = f"{self.name}: stands {source.count(old)} times in {self.module}: {old!r}"
                raise LookupError(msg)
            source = source.replace(old, new)
        compile(source, f"{self.module}.py", "exec")
        return source


COMPARE = "hmac.compare_digest(_sign(message, key), signed.signature)"
DECODED = "hmac.compare_digest(hmac.digest(key, message, 'sha256'), {})"
TIME_PATTERN = 're.compile(rb"[1-9][0-9]{9}")'
TIME_MATCH = "_TIMESTAMP.fullmatch(signed.timestamp) is None"
FRESH = "not abs(now_unix_s - int(signed.timestamp)) <= tolerance_s"
COUNTED = "len(timestamps) != 1 or len(signatures) != 1"
TAKEN = "shape_signed(timestamps[0], signatures[0])"
LOWERED = "lowered = _bytes(name).lower()"
STR_LOWERED = (
    "lowered = (name if isinstance(name, str) else _bytes(name).decode('latin-1'))"
    ".lower().encode('ascii', 'replace')"
)
TRIED = f"""    for key in keys:
        is_genuine |= {COMPARE}
"""
FORGED = """    if not _is_genuine(task_id, signed, keys.reveal()):
        raise SignatureError(reason="signature", task_id=task_id)
"""
STALE = f"""    if {FRESH}:
        raise SignatureError(reason="stale", task_id=task_id)
"""
ID_VERIFIED = """    verify_type(task_id, str, "task_id")
"""
NOW_VERIFIED = """    verify_number(now_unix_s, "now_unix_s")
"""
BLANK_END = """    if key != key.strip():
        msg = f"a key of {name} begins or ends with a blank or a line break, which is part of it"
        raise ValueError(msg)
"""
EMPTY_KEY = """    if not key.strip():
        msg = f"{name} holds"""
TASK_ID_PATTERN = 're.compile(r"[A-Za-z0-9_-]{1,128}")'
IS_TASK_ID = "not isinstance(value, str) or not is_signable(value)"
LOADS = "_decoder(make_object)(text)\n    except {}:"
UNREADABLE = LOADS.format("(ValueError, RecursionError)")
NO_JSON = "json.JSONDecodeError"
LOADED = 'text = body.decode().removeprefix("\\ufeff")'
ATTEMPT_PATTERN = 're.compile(r"[0-9a-f]{32}")'
ONE_ATTEMPT = "values[0] if len(values) == 1 and _ATTEMPT_ID.fullmatch(values[0]) else None"


BUGS = [
    Bug(name, module, tuple(changes))
    for module, rows in {
        "callbacks/signature": [
            # Comparing.
            ("== for compare_digest", (COMPARE, "_sign(message, key) == signed.signature")),
            (
                "the peer's base64 is decoded",
                (COMPARE, DECODED.format("binascii.a2b_base64(signed.signature)")),
            ),
            (
                "the peer's base64 is decoded leniently",
                ("import binascii\n", "import base64\nimport binascii\n"),
                (COMPARE, DECODED.format("base64.b64decode(signed.signature + b'==')")),
            ),
            (
                "upper and lower case are the same",
                (
                    COMPARE,
                    COMPARE.replace("key)", "key).lower()").replace("ture)", "ture.lower())"),
                ),
            ),
            (
                "the url-safe alphabet is taken too",
                (
                    COMPARE,
                    COMPARE.replace(
                        "signed.signature",
                        "signed.signature.translate(bytes.maketrans(b'-_', b'+/'))",
                    ),
                ),
            ),
            (
                "half of it is compared",
                (COMPARE, COMPARE.replace("key)", "key)[:22]").replace("ture)", "ture[:22])")),
            ),
            ("the length is not looked at", ("!= _SIGNATURE_LENGTH", "< 0")),
            ("43 characters will do", ("!= _SIGNATURE_LENGTH", "not in (43, _SIGNATURE_LENGTH)")),
            ("values are stripped", ("        return value\n", "        return value.strip()\n")),
            ("text is stripped", ("return value.encode()\n", "return value.strip().encode()\n")),
            (
                "text beyond ASCII is encoded",
                ("isinstance(value, str) and value.isascii()", "isinstance(value, str)"),
            ),
            # Signing.
            ("the time is not signed", ('b"." + signed.timestamp', 'b"."')),
            ("id and time touch", ('b"." + signed.timestamp', "signed.timestamp")),
            ("another digest", ('message, "sha256")', 'message, "sha1")')),
            # Keys.
            ("only the first key is tried", ("for key in keys:", "for key in keys[:1]:")),
            ("only the last key counts", (f"is_genuine |= {COMPARE}", f"is_genuine = {COMPARE}")),
            (
                "tried until one matches",
                (TRIED, f"    is_genuine = any({COMPARE} for key in keys)\n"),
            ),
            (
                "tried until one matches, by or",
                (f"is_genuine |= {COMPARE}", f"is_genuine = is_genuine or {COMPARE}"),
            ),
            ("forgeries are let through", (FORGED, "")),
            ("a short key will do", ("len(key) < _MIN_KEY_LENGTH", "not key")),
            ("15 characters will do", ("len(key) < _MIN_KEY_LENGTH", "len(key) < 15")),
            ("16 are too few", ("len(key) < _MIN_KEY_LENGTH", "len(key) <= _MIN_KEY_LENGTH")),
            (
                "a blank key will do",
                (EMPTY_KEY, EMPTY_KEY.replace("not key.strip()", "not key")),
                (BLANK_END, ""),
            ),
            ("blank ends of a key are part of it", (BLANK_END, "")),
            ("blank ends of a key are cut off", (BLANK_END, "    key = key.strip()\n")),
            (
                "a key shows in its error",
                (
                    'msg = f"a key of {name} is no Unicode',
                    'msg = f"{key!r} of {name} is no Unicode',
                ),
            ),
            # Time.
            ("match for fullmatch", (TIME_MATCH, "_TIMESTAMP.match(signed.timestamp) is None")),
            (
                "^...$ for fullmatch",
                (TIME_PATTERN, 're.compile(rb"^[1-9][0-9]{9}$")'),
                (TIME_MATCH, "_TIMESTAMP.match(signed.timestamp) is None"),
            ),
            (
                r"\d for [0-9]",
                (TIME_PATTERN, r're.compile(r"[1-9]\d{9}")'),
                (TIME_MATCH, TIME_MATCH.replace("amp)", "amp.decode('utf-8', 'replace'))")),
            ),
            ("a leading zero will do", (TIME_PATTERN, 're.compile(rb"[0-9]{10}")')),
            ("11 digits will do", (TIME_PATTERN, 're.compile(rb"[1-9][0-9]{9,10}")')),
            (
                "isdigit for a pattern",
                (TIME_MATCH, "not signed.timestamp.decode('latin-1').isdigit()"),
            ),
            (
                "int for a pattern",
                (TIME_MATCH, "len(signed.timestamp) != 10 or not int(signed.timestamp)"),
            ),
            ("< for <= at the tolerance", (FRESH, FRESH.replace("<=", "<"))),
            (
                "the future is fresh",
                (FRESH, "not now_unix_s - int(signed.timestamp) <= tolerance_s"),
            ),
            ("the past is fresh", (FRESH, "not int(signed.timestamp) - now_unix_s <= tolerance_s")),
            ("everything is fresh", (STALE, "")),
            (
                "a NaN clock finds all fresh",
                (FRESH, "abs(now_unix_s - int(signed.timestamp)) > tolerance_s"),
            ),
            ("whole seconds only", (FRESH, FRESH.replace("now_unix_s -", "int(now_unix_s) -"))),
            ("freshness before authenticity", (FORGED, ""), (STALE, STALE + FORGED)),
            ("a tolerance of 0 will do", ('"tolerance_s", above=0)', '"tolerance_s", least=0)')),
            ("a negative tolerance will do", ('"tolerance_s", above=0)', '"tolerance_s")')),
            # Headers.
            ("the first of two headers", (COUNTED, "not timestamps or not signatures")),
            (
                "the last of two headers",
                (COUNTED, "not timestamps or not signatures"),
                (TAKEN, "shape_signed(timestamps[-1], signatures[-1])"),
            ),
            ("two signatures will do", (COUNTED, "len(timestamps) != 1 or not signatures")),
            ("two times will do", (COUNTED, "not timestamps or len(signatures) != 1")),
            (
                "headers are made a dict",
                ("for pair in cast(", "for pair in dict(given).items() or cast("),
            ),
            ("names in one case only", (LOWERED, "lowered = _bytes(name)")),
            (
                "str.lower beyond ASCII",
                (LOWERED, STR_LOWERED),
            ),
            ("_ is - in a name", (LOWERED, f"{LOWERED}.replace(b'_', b'-')")),
        ],
        "callbacks/payload": [
            ("nobody verifies", ("    verify_signed(", "    (lambda *_, **__: None)(")),
            (
                "the body before the headers",
                (
                    "    signed = read_signed(headers)\n",
                    "    read_body(body)\n    signed = read_signed(headers)\n",
                ),
            ),
            ("any character in an id", (TASK_ID_PATTERN, 're.compile(r"(?s).{1,128}")')),
            ("a dot in an id", (TASK_ID_PATTERN, 're.compile(r"[A-Za-z0-9._-]{1,128}")')),
            (r"\w in an id", (TASK_ID_PATTERN, r're.compile(r"[\w-]{1,128}")')),
            ("match for fullmatch of an id", ("_TASK_ID.fullmatch(", "_TASK_ID.match(")),
            (
                "^...$ for fullmatch of an id",
                (TASK_ID_PATTERN, 're.compile(r"^[A-Za-z0-9_-]{1,128}$")'),
                ("_TASK_ID.fullmatch(", "_TASK_ID.match("),
            ),
            ("an id without end", (TASK_ID_PATTERN, 're.compile(r"[A-Za-z0-9_-]+")')),
            ("an id of 129", (TASK_ID_PATTERN, 're.compile(r"[A-Za-z0-9_-]{1,129}")')),
            ("an empty id", (TASK_ID_PATTERN, 're.compile(r"[A-Za-z0-9_-]{0,128}")')),
            (
                "a number is an id",
                (IS_TASK_ID, "_TASK_ID.fullmatch(value := str(value)) is None"),
            ),
            (
                "what is no text is passed over",
                ("if value is None:\n", "if not isinstance(value, str):\n"),
            ),
            ("two ids, the last counts", ("found is not None and value != found", "False")),
            (
                "two ids, the first counts",
                ("            found = value\n", "            return value\n"),
            ),
            (
                "ids are compared without case",
                ("value != found", "value.lower() != found.lower()"),
            ),
            (
                "the top level is not looked at",
                ("for place in (data, root):", "for place in (data,):"),
            ),
            (
                "one spelling only",
                ("for name in KIE_WAV.task_id_names:", 'for name in ("task_id",):'),
            ),
            (
                "names twice, the last counts",
                ("load_object(raw, make_strict_object)", "load_object(raw)"),
            ),
            ("any length", ("len(raw) > MAX_BODY_LENGTH", "False")),
            ("65,536 are too long", ("len(raw) > MAX_BODY_LENGTH", "len(raw) >= MAX_BODY_LENGTH")),
            ("65,537 will do", ("len(raw) > MAX_BODY_LENGTH", "len(raw) > MAX_BODY_LENGTH + 1")),
            (
                "items are counted for bytes",
                ("len(raw) > MAX_BODY_LENGTH", "len(given) > MAX_BODY_LENGTH"),
            ),
            (
                "an error repeats the body",
                ('msg = "the body is no JSON', 'msg = f"{raw[:200]!r}: the body is no JSON'),
            ),
        ],
        "protocol/envelope": [
            ("deep nesting breaks out", (UNREADABLE, LOADS.format("ValueError"))),
            ("bad UTF-8 breaks out", (UNREADABLE, LOADS.format(f"({NO_JSON}, RecursionError)"))),
            (
                "long numbers break out",
                (UNREADABLE, LOADS.format(f"({NO_JSON}, UnicodeDecodeError, RecursionError)")),
            ),
            (
                "UTF-16 is guessed",
                (LOADED, LOADED.replace("decode()", "decode(json.detect_encoding(body))")),
            ),
            (
                "halves of pairs are decoded",
                (LOADED, LOADED.replace("decode()", 'decode("utf-8", "surrogatepass")')),
            ),
            (
                "bad bytes are replaced",
                (LOADED, LOADED.replace("decode()", 'decode("utf-8", "replace")')),
            ),
            ("any depth that can be loaded", ("> _MAX_DEPTH and not", "< 0 and not")),
            ("a list is an object", ("if isinstance(loaded, dict) else None", "")),
        ],
        "callbacks/callback_url": [
            (
                "two attempts, the first counts",
                (ONE_ATTEMPT, ONE_ATTEMPT.replace("len(values) == 1", "values")),
            ),
            (
                "two attempts, the last counts",
                (
                    ONE_ATTEMPT,
                    ONE_ATTEMPT.replace("len(values) == 1", "values").replace("[0]", "[-1]"),
                ),
            ),
            ("any attempt", (ONE_ATTEMPT, "values[0] if len(values) == 1 else None")),
            ("match for fullmatch of an attempt", ("_ATTEMPT_ID.fullmatch(", "_ATTEMPT_ID.match(")),
            ("upper case in an attempt", (ATTEMPT_PATTERN, 're.compile(r"[0-9a-fA-F]{32}")')),
            (r"\d in an attempt", (ATTEMPT_PATTERN, r're.compile(r"[\da-f]{32}")')),
            (
                "a quoted name is another",
                (
                    "if name == ATTEMPT_NAME or unquote_plus(name) == ATTEMPT_NAME",
                    "if name == ATTEMPT_NAME",
                ),
            ),
            ("a query without end", ("if len(text) <= _MAX_QUERY_LENGTH else []", "")),
            ("an empty user will do", ('if "@" in authority:', "if url.user or url.password:")),
            ("any user will do", ('if "@" in authority:', "if False:")),
            ("a fragment will do", ('if "#" in text:', "if False:")),
            ("an empty fragment will do", ('if "#" in text:', "if url.fragment:")),
            ("blanks will do", ('None if " " in text else parse_url(text)', "parse_url(text)")),
            ("our name will do", ('if _values_of_attempt(text.partition("?")[2]):', "if False:")),
            (
                "the last ? begins the query",
                ('_attempt(text.partition("?")[2]):', '_attempt(text.rpartition("?")[2]):'),
            ),
            ("always joined by &", ('if query and not query.endswith("&"):', "if query:")),
        ],
        "session/verification": [
            ("no key will do", ("    if not parsed:\n", "    if False:\n")),
            ("a NaN time will do", (NOW_VERIFIED, "")),
            ("any tolerance will do", ("    verify_tolerance(tolerance_s)\n", "")),
            ("the wrong clock", ("SystemClock().time()", "SystemClock().monotonic()")),
            ("0 is the system's time", ("if now_unix_s is None:", "if not now_unix_s:")),
            (
                "headers before our own settings",
                (ID_VERIFIED, ID_VERIFIED + "    shape_signed(timestamp, signature)\n"),
            ),
        ],
        "core/early_callbacks": [
            ("the last of a task stays", ("if kept[1].attempt_id is None:", "if True:")),
            ("the first of a task stays", ("if kept[1].attempt_id is None:", "if False:")),
            ("one too many is kept", ("> MAX_BUFFERED", "> MAX_BUFFERED + 1")),
            (
                "the newest gives way",
                (
                    "self._buffered.popitem(last=False)\n\n    def pop",
                    "self._buffered.popitem()\n\n    def pop",
                ),
            ),
            (
                "kept a moment too long",
                ("now_mono_s - kept_at < BUFFERED_S", "now_mono_s - kept_at <= BUFFERED_S"),
            ),
        ],
        "core/poll_throttle": [
            ("a task may be asked again at once", ("-math.inf) + TASK_GAP_S", "-math.inf)")),
            (
                "the narrower gap holds",
                ("max(GAP_S, least_gap_s)", "min(GAP_S, least_gap_s)"),
            ),
            ("nothing is forgotten", ("<= now_mono_s:", "< 0:")),
            ("the order of the polls is lost", ("        self._last.move_to_end(task_id)\n", "")),
        ],
        "core/callback_health": [
            ("one callback is enough", (">= HISTORY_LENGTH", "> 0")),
            ("polls do not count", ("            self.mark_unhealthy()\n", "            pass\n")),
        ],
    }.items()
    for name, *changes in rows
]


@attrs.frozen
class Found:
    """What became of a planted bug: the first test that failed, if one did."""

    test: str | None
    seconds: float


class RunError(Exception):
    """The tests could not be run, or fail without a bug."""


def read(module: str) -> str:
    """Return the source of *module* as it is."""
    return (REPOSITORY / PACKAGE / f"{module}.py").read_text(encoding="utf-8")


def copy(folder: Path) -> None:
    """Copy what the tests of the verification need into *folder*."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(REPOSITORY / PACKAGE, folder / PACKAGE, ignore=ignored)
    shutil.copy(REPOSITORY / "pyproject.toml", folder)
    (folder / "tests").mkdir()
    for name in (*HELPERS, *(f"{test}.py" for test in ALL_TESTS)):
        shutil.copy(REPOSITORY / "tests" / name, folder / "tests")


def run(folder: Path, tests: tuple[str, ...]) -> Found:
    """Run *tests* on the copy in *folder* until one fails."""
    began = time.perf_counter()
    # The copy is found before whatever is installed.
    places = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(places),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    environment.pop("PYTEST_ADDOPTS", None)
    options = ("-x", "-q", "--tb=no", "-rfE", "-p", "no:cacheprovider")
    try:
        made = subprocess.run(  # noqa: S603 - this very Python, with arguments of ours
            [sys.executable, "-m", "pytest", *options, *(f"tests/{test}.py" for test in tests)],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        msg = f"the tests hang: {', '.join(tests)}"
        raise RunError(msg) from error
    seconds = time.perf_counter() - began
    if made.returncode == 0:
        return Found(None, seconds)
    failed = re.search(r"^FAILED tests/(\w+\.py::\w+)", made.stdout, re.MULTILINE)
    # Other failures, as of an import, would find each and every bug.
    if made.returncode != 1 or failed is None:
        msg = f"the tests could not be run:\n{made.stdout[-2_000:]}{made.stderr[-2_000:]}"
        raise RunError(msg)
    return Found(failed[1], seconds)


def run_all() -> None:
    """Run all tests without a bug; raise `RunError` if one fails."""
    with tempfile.TemporaryDirectory() as made:
        copy(Path(made))
        found = run(Path(made), ALL_TESTS)
    if found.test is not None:
        msg = f"{found.test} fails without a bug"
        raise RunError(msg)


def try_bug(bug: Bug) -> Found:
    """Run the tests of the module on a copy with *bug* in it."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        copy(folder)
        target = folder / PACKAGE / f"{bug.module}.py"
        target.write_text(bug.plant(read(bug.module)), encoding="utf-8")
        return run(folder, TESTS[bug.module])


def say(*cells: str) -> None:
    """Write one row of the table."""
    widths = (42, 25, 0)
    row = " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
    sys.stdout.write(f"{row.rstrip()}\n")
    sys.stdout.flush()


def main(arguments: list[str] | None = None) -> int:
    """Plant the bugs, print what found them, and return the exit status."""
    parser = argparse.ArgumentParser(description="Plant bugs in the verifier, and look for them.")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at a time")
    parser.add_argument("words", nargs="*", help="only the bugs whose name has one of these")
    options = parser.parse_args(arguments)
    bugs = [bug for bug in BUGS if any(word in bug.name for word in options.words or [""])]
    survived = 0
    try:
        for bug in bugs:  # All of them before the first run: a stale text is told at once.
            bug.plant(read(bug.module))
        run_all()
        say("bug", "where", "found by")
        say("-" * 42, "-" * 25, "-" * 40)
        with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
            for bug, found in zip(bugs, pool.map(try_bug, bugs), strict=True):
                survived += found.test is None
                say(bug.name, f"{bug.module}.py", found.test or "NOBODY: IT SURVIVED")
    except (LookupError, RunError) as error:
        sys.stderr.write(f"planted_bugs.py: {error}\n")
        return 2
    sys.stdout.write(f"{len(bugs) - survived} of {len(bugs)} bugs were found\n")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
