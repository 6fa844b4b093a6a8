"""The proxy of the command line: as an option, and of the environment."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from yarl import URL

from bulk_runs import see_off, write_catalog
from cli_runs import KEY, is_wav, service, submit_before
from kie_wav_async.cli import main
from kie_wav_async.cli.commands import cli
from kie_wav_async.cli.common.shell import without_password
from proxy import Plan, Proxy, http
from test_cli_shell import order_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Run = Callable[..., Awaitable[tuple[int, str, str]]]

NAMES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
# Where nobody but a proxy finds the service.
FAR = ("--base-url", "http://kie.test", "--insecure-host", "kie.test")
FILES = ("--insecure-host", "127.0.0.1")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run ``kie-wav`` in a thread, without the developer's proxies, and with a .netrc."""
    monkeypatch.chdir(tmp_path)
    netrc = tmp_path / "netrc"
    netrc.write_text("default login other password other\n")
    netrc.chmod(0o600)
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)

    async def run(*words: str, **environment: str) -> tuple[int, str, str]:
        with monkeypatch.context() as patched:
            for name, value in {"KIE_API_KEY": KEY, "NETRC": str(netrc), **environment}.items():
                patched.setenv(name, value)
            capsys.readouterr()
            code = await asyncio.to_thread(main, words)
        await see_off()
        return code, *capsys.readouterr()

    return run


def with_password(proxy: Proxy) -> str:
    """Return the URL of a proxy that wants to know who we are."""
    return str(URL(proxy.base_url).with_user("me").with_password("hu@sh"))


def headers_of(request: bytes) -> dict[str, str]:
    """Return the headers of a request as sent."""
    lines = request.partition(b"\r\n\r\n")[0].decode().split("\r\n")[1:]
    return {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}


@pytest.mark.parametrize("is_option", [True, False])
async def test_everything_goes_through_the_proxy(run: Run, *, is_option: bool) -> None:
    """Requests and files go through the proxy, and the key goes to the service alone."""
    async with service() as kie, Proxy(kie.base_url) as proxy:
        await submit_before(kie, "a")
        words = ("convert", "m", "a", "-o", "song.wav", *FAR, *FILES)
        address = with_password(proxy)
        if is_option:
            code, _, err = await run(*words, "--proxy", address)
        else:
            code, _, err = await run(*words, HTTP_PROXY=address)
        lines = [request.split(b"\r\n")[0].decode() for request in proxy.requests]

        assert 0 == code, err
        assert is_wav(Path("song.wav"))
        submit, *polls, file = lines
        assert "POST http://kie.test/api/v1/wav/generate HTTP/1.1" == submit
        assert polls
        assert all(poll.startswith("GET http://kie.test/api/v1/") for poll in polls)
        assert file.startswith(f"GET {kie.base_url}/s/")
    sent = [headers_of(request) for request in proxy.requests]
    assert [f"Bearer {KEY}"] * (len(sent) - 1) + [None] == [h.get("authorization") for h in sent]
    assert ["Basic bWU6aHVAc2g="] * len(sent) == [h["proxy-authorization"] for h in sent]
    assert "hu@sh" not in err


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY"])
async def test_the_service_itself_is_behind_the_proxy(run: Run, name: str) -> None:
    """By default the proxy is asked for a tunnel to KIE, and a refusal is told as the proxy's."""
    async with Proxy(plan=lambda _: Plan(answer=http("407 Who are you"))) as proxy:
        code, _, err = await run("credits", **{name: with_password(proxy)})

    assert 3 == code
    assert f"the proxy {proxy.base_url} answered HTTP 407: its user or password is" in err
    assert "hu@sh" not in err
    assert all(request.startswith(b"CONNECT api.kie.ai:443 ") for request in proxy.requests)
    assert KEY.encode() not in b"".join(proxy.requests)


async def test_a_proxy_that_is_not_there(run: Run) -> None:
    """A proxy that cannot be reached is named, without its password."""
    async with Proxy() as proxy:
        address = with_password(proxy)
    code, _, err = await run("tracks", "m", "--proxy", address)

    assert 3 == code
    assert f"the proxy {proxy.base_url} cannot be reached: " in err
    assert "(Connection refused)" in err
    assert "hu@sh" not in err


async def test_a_service_on_this_machine_needs_no_proxy(run: Run) -> None:
    """The proxies of the environment do not stand before a service on this machine."""
    async with service() as kie, Proxy() as gone:
        pass
    async with service() as kie:
        for host in ("127.0.0.1", "localhost"):
            base_url = str(URL(kie.base_url).with_host(host))
            code, out, _ = await run("credits", "--base-url", base_url, HTTP_PROXY=gone.base_url)
            assert (0, "100000.25\n") == (code, out)


async def test_hosts_that_are_excepted(run: Run) -> None:
    """What NO_PROXY names is asked without the proxy, unless the proxy was asked for by option."""
    async with Proxy(plan=lambda _: Plan(answer=http("200 OK", '{"code":200,"data":7}'))) as proxy:
        for words in ((), ("--proxy", proxy.base_url)):
            code, *_ = await run(
                *("credits", "--base-url", "http://kie.test.invalid"),
                *("--insecure-host", "kie.test.invalid", *words),
                HTTP_PROXY=proxy.base_url,
                NO_PROXY="other,.invalid",
            )
            assert (0 if words else 3) == code

    assert 1 == len(proxy.requests)


@pytest.mark.parametrize("words", [("--proxy", "socks5://me:hu@sh@h:1"), ()])
async def test_a_proxy_that_cannot_be_one(run: Run, words: tuple[str, ...]) -> None:
    """What is no HTTP proxy is a usage error that says where it stands, and not its password."""
    code, _, err = await run("credits", *words, ALL_PROXY="socks5://me:hu@sh@h:1")

    assert 2 == code
    name = "--proxy" if words else "the environment's all_proxy"
    assert f"kie-wav: {name} must be an absolute http(s) URL like http://127.0.0.1:3128\n" == err


async def test_the_scheme_may_be_left_out(run: Run) -> None:
    """A proxy is named by host and port as well."""
    async with Proxy(plan=lambda _: Plan(answer=http("200 OK", '{"code":200,"data":7}'))) as proxy:
        place = proxy.base_url.removeprefix("http://")
        code, out, _ = await run("credits", *FAR, "--proxy", place)

    assert (0, "7\n", 1) == (code, out, len(proxy.requests))


async def test_the_password_is_in_no_command(run: Run) -> None:
    """A command to go on with has placeholders for the proxy's user and password."""
    write_catalog("m,a0,")
    async with Proxy() as proxy:
        pass
    words = ("bulk", "c.csv", "--out", "out", *FAR, f"--proxy={with_password(proxy)}", "--json")
    code, out, err = await run(*words)
    resume = json.loads(out)["resume"]

    assert 3 == code
    assert "hu@sh" not in out + err
    assert f"--proxy=http://USER:PASSWORD@{proxy.base_url.removeprefix('http://')}" in resume
    order = order_of("c.csv", "--proxy", "me:x@h:1", "--proxy=http://h:1")
    assert "kie-wav bulk c.csv --proxy USER:PASSWORD@h:1 --proxy=http://h:1" == order.resume(
        is_planned=True
    )


@pytest.mark.parametrize(
    ("proxy", "shown"),
    [
        ("http://h:1", "http://h:1"),
        ("h:1", "h:1"),
        ("http://me:x@h:1/", "http://USER:PASSWORD@h:1/"),
        ("https://me@h", "https://USER:PASSWORD@h"),
        ("me:x/y@z@h:1", "USER:PASSWORD@h:1"),
        ("http://me:x//y\n@h:1", "http://USER:PASSWORD@h:1"),
    ],
)
def test_what_is_shown_of_a_proxy(proxy: str, shown: str) -> None:
    """Nothing before the last @ of a proxy is shown, however it is written."""
    assert shown == without_password(proxy)


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_every_command_that_asks_the_service_has_a_proxy(name: str) -> None:
    """Wherever the service can be named, its proxy can."""
    options = {option for param in cli.commands[name].params for option in param.opts}

    assert ("--base-url" in options) == ("--proxy" in options)
