"""docs/security.md: what it lists is so, and its nginx configuration works."""

from __future__ import annotations

import asyncio
import re
import shutil
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
import pytest

from kie_wav_async import WavSession, errors, webhook
from kie_wav_async.callbacks import payload, signature
from kie_wav_async.core import early_callbacks, known_hosts, poll_throttle
from kie_wav_async.session import callback_processor
from kie_wav_async.testing import ScriptedTransport, signed_callback
from kie_wav_async.webhook import CallbackServer, request_handler

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

FOLDER = Path(__file__).resolve().parent.parent / "docs"
PAGE = (FOLDER / "security.md").read_text("utf-8")
NGINX = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
KEY = "a-key-of-the-proxy-test"
(CONFIG,) = re.findall(r"^```nginx\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_it_links_to_what_exists() -> None:
    """Links of the page lead to files beside it."""
    links = re.findall(r"\]\(([^)#]+)", PAGE)

    assert links
    assert [] == [link for link in links if not (FOLDER / link).is_file()]


def test_it_promises_no_more_than_the_limits() -> None:
    """The numbers on the page are those of the code."""
    assert f"{signature.TOLERANCE_S:g} s" in PAGE
    assert f"{payload.MAX_BODY_LENGTH // 1024} KiB" in PAGE
    assert f"kept for {early_callbacks.BUFFERED_S / 60:g} minutes" in PAGE
    assert f"at most {early_callbacks.MAX_BUFFERED:,} callbacks" in PAGE
    assert f"The last {known_hosts.MAX_HOSTS} hosts" in PAGE
    assert f"one per {poll_throttle.TASK_GAP_S:g} s for a task" in PAGE
    assert f"{1 / poll_throttle.GAP_S:g} per second in all" in PAGE
    assert (
        f"at most {callback_processor._MAX_REJECTED_PER_MINUTE} `CallbackRejected` a minute" in PAGE
    )
    assert (
        f"at most {callback_processor._MAX_RECEIVED_PER_MINUTE} `CallbackReceived` a minute" in PAGE
    )
    assert f"oldest of {request_handler.MAX_READS} incomplete bodies" in PAGE
    assert f"did not arrive within {request_handler.READ_TIMEOUT_S:g} s" in PAGE
    assert webhook.__doc__ is not None
    answered = re.findall(r"^\| (\d{3}) \|", PAGE, re.MULTILINE)
    assert ["200", "400", "401", "405", "408", "413", "415", "500", "503"] == answered
    assert all(status in webhook.__doc__ for status in answered if status != "500")


def test_it_says_what_remains() -> None:
    """What is left under the default trust stands on the page, word by word."""
    assert (
        "Whoever holds a fresh signature and the query, before the genuine delivery settles, can "
        "name another file *on the same host*, and anybody with an account can put one there."
    ) in PAGE


def test_every_reason_is_machine_readable() -> None:
    """A refusal has one of four reasons, and the page names the one that is not forgery."""
    assert {"headers", "timestamp", "signature", "stale"} == set(errors._REFUSALS)
    assert "as `stale`" in PAGE


def free_port() -> int:
    """Return a port that nobody listens on at this moment."""
    with socket.create_server(("127.0.0.1", 0)) as held:
        return int(held.getsockname()[1])


@pytest.fixture
async def proxied(tmp_path: Path) -> AsyncIterator[str]:
    """Give the address of the page's nginx before a receiver, without its TLS."""
    if NGINX is None:
        pytest.skip("nginx is not installed")
    port = free_port()
    async with (
        WavSession("key", transport=ScriptedTransport([]), webhook_keys=KEY) as session,
        CallbackServer(session) as server,
    ):
        plain = re.sub(r" *ssl_certificate.*\n", "", CONFIG)
        for shown, here in {
            "listen 443 ssl": f"listen 127.0.0.1:{port}",
            "127.0.0.1:8080": f"127.0.0.1:{server.port}",
            "/var/log/nginx/kie.log": str(tmp_path / "access.log"),
        }.items():
            assert 1 == plain.count(shown)
            plain = plain.replace(shown, here)
        paths = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        temporary = "".join(f"{name}_temp_path {tmp_path / name};\n" for name in paths)
        (tmp_path / "nginx.conf").write_text(
            f"daemon off; master_process off; pid {tmp_path / 'pid'}; error_log stderr;\n"
            f"events {{}}\nhttp {{ access_log off;\n{temporary}{plain}}}\n"
        )
        nginx = await asyncio.create_subprocess_exec(
            *(NGINX, "-p", str(tmp_path), "-c", "nginx.conf", "-e", "stderr"),
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            async with asyncio.timeout(20):
                while nginx.returncode is None:
                    try:
                        _, writer = await asyncio.open_connection("127.0.0.1", port)
                    except OSError:
                        await asyncio.sleep(0.01)  # Until it listens.
                    else:
                        writer.close()
                        break
            assert nginx.returncode is None, "nginx refuses the configuration"
            yield f"http://127.0.0.1:{port}"
        finally:
            if nginx.returncode is None:
                nginx.terminate()
            await nginx.wait()


async def test_the_proxy_passes_what_is_genuine_and_little_else(
    proxied: str, tmp_path: Path
) -> None:
    """Behind the page's nginx genuine callbacks arrive; encoded, long and other requests do not."""
    headers, body = signed_callback("5c79", key=KEY)
    path = "/kie/callback?attempt=0123"
    async with aiohttp.ClientSession(proxied) as http:

        async def status(path: str, method: str = "POST", **sent: object) -> int:
            async with http.request(
                method, path, **{"headers": headers, "data": body, **sent}
            ) as got:
                return got.status

        assert 200 == await status(path)
        assert 401 == await status(path, headers={**headers, "X-Webhook-Signature": "0" * 44})
        assert 415 == await status(path, headers={**headers, "Content-Encoding": "gzip"})
        assert 415 == await status(path, headers={**headers, "Content-Encoding": "identity"})
        assert 413 == await status(path, data=b" " * 65_537)
        assert 403 == await status(path, "GET", data=None)
        assert 404 == await status("/kie/callback/")
        doubled = [*headers.items(), ("X-Webhook-Signature", "0" * 44)]
        assert 401 == await status(path, headers=doubled)

    assert "attempt" not in (tmp_path / "access.log").read_text()
    assert "POST /kie/callback" in (tmp_path / "access.log").read_text()
