from __future__ import annotations

import asyncio
import gzip
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

import aiohttp
import anyio
import pytest

from musicgpt_async.emulator import BEHAVIOURS, ERROR_BODIES, KINDS, Fault, FaultContext, FaultPlan
from musicgpt_async.emulator.api_faults import API_FAULTS
from musicgpt_async.emulator.faults import Stage
from musicgpt_async.emulator.file_faults import FILE_FAULTS

pytestmark = pytest.mark.anyio

GONE = (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError)
BY_THE_FILE_HOST = {
    "status", "redirect", "expired", "changed", "slow_answer", "stall_answer", "drop_before_answer",
}  # fmt: skip


def kinds_for(*targets: str) -> set[str]:
    """Return the names of the faults with one of these targets."""
    return {name for name, row in KINDS.items() if row.targets & set(targets)}


def test_every_row_of_the_table_is_carried_out_somewhere() -> None:
    """No fault is named that nothing does, and none is done that has no name."""
    assert kinds_for("submit", "byId", "byUser") == set(API_FAULTS)
    assert kinds_for("file") == set(FILE_FAULTS) | BY_THE_FILE_HOST
    assert kinds_for("webhook") == set(BEHAVIOURS)


@pytest.mark.parametrize("wrong", [("submit", "nonsense"), ("byId", "gzip"), ("file", "twice")])
def test_a_fault_that_cannot_be_is_refused(wrong: Any) -> None:
    """A name out of no row, or a target that the row does not have, is a ValueError at once."""
    with pytest.raises(ValueError, match=r"unknown fault|is a fault of"):
        Fault(*wrong)
    with pytest.raises(ValueError, match="accepted and early"):
        Fault("file", "status", accepted=True)


def test_a_fault_occurs_as_often_as_planned() -> None:
    """`after` skips requests, `times` limits the number of faults, and the next fault follows."""
    script = FaultPlan([Fault("byId", "status", after=1, times=2), Fault("byId", "redirect")])
    poll = FaultContext(on="byId")
    taken = [script.take(poll, Stage.INSTEAD) for _ in range(5)]
    kinds = [fault and fault.kind for fault in taken]
    assert kinds == ["redirect", "status", "status", None, None]
    assert script.fired() == 3
    assert script.fired("status") == 2
    assert list(script) == []


def test_a_fault_occurs_only_if_its_predicate_is_true() -> None:
    """`when` chooses occasions, and those it passes over do not count."""
    fault = Fault("file", "html", when=lambda occasion: occasion.file == "bass.wav", times=None)
    script = FaultPlan([fault])
    files = ("drums.wav", "bass.wav", "bass.wav")
    taken = [script.take(FaultContext(on="file", file=file), Stage.ANSWER) for file in files]
    assert taken == [None, fault, fault]
    script.clear()
    assert list(script) == []


async def poll(me: Any) -> Any:
    """Ask for the first conversion."""
    return await me.by_id(me.vendor.submissions[0].task_id)


async def list_all(me: Any) -> Any:
    """Ask for all conversions."""
    return await me.api("GET", "/byUser?conversionType=EXTRACTION")


CALLS = {"submit": lambda me: me.submit(), "byId": poll, "byUser": list_all}


@pytest.mark.parametrize("on", CALLS)
@pytest.mark.parametrize("body", [*ERROR_BODIES, b"\xff\x00"])
async def test_a_status_in_every_shape(open_account: Any, on: Any, body: Any) -> None:
    """Any call gets any status and any body once, and works again after that."""
    async with open_account() as me:
        await me.submit()
        me.vendor.script(Fault(on, "status", status=502, body=body, message="Bad luck"))
        refused = await CALLS[on](me)
        assert refused.status == 502
        assert body in {"empty", refused.body} or b"Bad luck" in refused.body
        assert (await CALLS[on](me)).status == 200
        assert len(me.vendor.submissions) == (2 if on == "submit" else 1)


async def test_retry_after_in_every_form(open_account: Any) -> None:
    """A number is seconds, a timedelta an HTTP date that far ahead, a string is sent unchanged."""
    forms = (7, timedelta(hours=1), "soon")
    faults = [Fault("submit", "status", status=429, retry_after=form) for form in forms]
    async with open_account(faults=faults) as me:
        number, date, text = [(await me.submit()).headers["Retry-After"] for _ in forms]
    ahead = parsedate_to_datetime(date) - datetime.now(UTC)
    assert timedelta(minutes=50) < ahead <= timedelta(hours=1)
    assert (number, text) == ("7", "soon")


@pytest.mark.parametrize("kind", ["status", "redirect", "not_success"])
@pytest.mark.parametrize("accepted", [False, True])
async def test_a_wrong_answer_may_hide_an_accepted_submit(
    open_account: Any, kind: str, accepted: bool
) -> None:
    """With `accepted` the conversion runs and is charged, despite the error in the response."""
    async with open_account(faults=[Fault("submit", kind, accepted=accepted)]) as me:
        reply = await me.submit()
        assert {"status": 500, "redirect": 302, "not_success": 200}[kind] == reply.status
        assert len(me.vendor.submissions) == accepted


async def test_an_early_answer_does_not_wait_for_the_body(open_account: Any) -> None:
    """With `early` the refusal is there before the body has been sent."""
    sent = asyncio.Event()

    async def endless() -> Any:
        yield b"sound"
        await sent.wait()

    async with open_account(faults=[Fault("submit", "status", status=402, early=True)]) as me:
        form = aiohttp.FormData()
        form.add_field("audio_file", endless(), filename="song.wav")
        assert (await me.api("POST", "/Extraction", data=form)).status == 402
        sent.set()


async def test_redirects_lead_to_their_location(open_account: Any) -> None:
    """A redirect has the status and the location of its fault."""
    fault = Fault("submit", "redirect", status=307, location="http://127.0.0.1:1/elsewhere")
    async with open_account(faults=[fault]) as me:
        reply = await me.submit()
    assert (reply.status, reply.headers["Location"]) == (307, "http://127.0.0.1:1/elsewhere")


async def test_wrong_json(open_account: Any) -> None:
    """The call is carried out, and its response is JSON of another shape, or any bytes."""
    faults = [Fault("submit", "wrong_json"), Fault("submit", "wrong_json", body=b"{}")]
    async with open_account(faults=faults) as me:
        assert (await me.submit()).json == [{"unexpected": True}]
        assert (await me.submit()).json == {}
        assert len(me.vendor.submissions) == 2


@pytest.mark.parametrize(
    ("kind", "accepted"),
    [
        ("drop_before_body", 0),
        ("drop_mid_body", 0),
        ("drop_before_answer", 1),
        ("drop_mid_answer", 1),
    ],
)
async def test_dropped_connections(open_account: Any, kind: str, accepted: int) -> None:
    """The client's connection is closed; only a drop after the body creates a conversion."""
    async with open_account(faults=[Fault("submit", kind)]) as me:
        with pytest.raises(GONE):
            await me.submit(bytes(200_000))
        assert len(me.vendor.submissions) == accepted
        assert me.vendor.requests[0].status == (200 if kind == "drop_mid_answer" else None)
        assert (await me.submit()).status == 200


@pytest.mark.parametrize("kind", ["drop_before_body", "drop_before_answer", "drop_mid_answer"])
@pytest.mark.parametrize("on", ["byId", "byUser"])
async def test_dropped_polls(open_account: Any, on: Any, kind: str) -> None:
    """Polls and listings can be dropped too; the following poll gets a response."""
    async with open_account() as me:
        await me.submit()
        # aiohttp retries a GET by itself if it is dropped on a kept connection.
        me.vendor.script(Fault(on, kind, times=2))
        with pytest.raises(GONE):
            await CALLS[on](me)
        me.vendor.faults.clear()
        assert (await CALLS[on](me)).status == 200


async def test_how_much_of_the_answer_gets_through(open_account: Any) -> None:
    """`at` is a number of bytes, or a share of the body."""
    async with open_account(faults=[Fault("submit", "drop_mid_answer", at=20)]) as me:
        url, headers = f"{me.vendor.base_url}/Extraction", {"Authorization": me.vendor.api_key}
        form = {"audio_url": "https://example.org/a.mp3"}
        async with me.http.post(url, data=form, headers=headers) as answer:
            got = await answer.content.readexactly(20)
            with pytest.raises(GONE):
                await answer.content.read()
    assert got == b'{"success": true, "m'


@pytest.mark.parametrize("kind", ["stall_read", "stall_answer"])
async def test_a_stalled_submit_hangs(open_account: Any, kind: str) -> None:
    """The client waits in vain; a stalled response hides an accepted conversion."""
    async with open_account(faults=[Fault("submit", kind, at=1000)]) as me:
        waiting = asyncio.create_task(me.submit(bytes(30_000_000)))
        if kind == "stall_answer":
            await me.until(lambda: me.vendor.submissions)
        for _ in range(3):
            assert (await me.api("GET", "/byUser?conversionType=EXTRACTION")).status == 200
        assert not waiting.done()
        assert len(me.vendor.submissions) == (kind == "stall_answer")
        waiting.cancel()
        await asyncio.wait([waiting])


async def test_the_emulator_ends_though_something_is_stalled(open_account: Any) -> None:
    """Leaving the block ends stalled exchanges and unfinished conversions, and does not wait."""
    faults = [Fault("submit", "stall_answer")]
    with anyio.fail_after(30):
        async with open_account(faults=faults, seconds=3600) as me:
            waiting = asyncio.create_task(me.submit())
            await me.until(lambda: me.vendor.submissions)
        with pytest.raises(GONE):
            await waiting


async def test_a_slow_answer_takes_the_vendors_seconds(open_account: Any) -> None:
    """`seconds` are emulated seconds: with `speed` they pass faster."""
    fault = Fault("submit", "slow_answer", seconds=7200)
    async with open_account(speed=100_000, faults=[fault]) as me:
        before = me.vendor.speed * asyncio.get_running_loop().time()
        assert (await me.submit()).status == 200
        assert me.vendor.speed * asyncio.get_running_loop().time() - before >= 7200


SIZE = 100_000


async def fetch(me: Any, url: str, headers: dict[str, str]) -> tuple[Any, bytes, bool]:
    """The headers, the bytes that came, and whether they came to a proper end."""
    got = b""
    with anyio.fail_after(60):
        request = me.http.get(url, headers=headers, auto_decompress=False, allow_redirects=False)
        async with request as answer:
            try:
                async for chunk in answer.content.iter_any():
                    got += chunk
            except aiohttp.ClientPayloadError:
                return answer, got, False
            return answer, got, True


@pytest.mark.parametrize(
    ("fault", "status", "sent", "ends"),
    [
        (Fault("file", "status", status=403), 403, None, True),
        (Fault("file", "status", status=416, body="empty"), 416, 0, True),
        (Fault("file", "redirect", location="http://127.0.0.1:1/"), 302, 0, True),
        (Fault("file", "expired"), 403, None, True),
        (Fault("file", "truncated"), 200, SIZE // 2, False),
        (Fault("file", "truncated", at=10), 200, 10, False),
        (Fault("file", "mis_sized"), 200, SIZE // 2, True),
        (Fault("file", "no_length"), 200, SIZE, True),
        (Fault("file", "no_length_truncated"), 200, SIZE // 2, True),
        (Fault("file", "html"), 200, None, True),
        (Fault("file", "xml"), 200, None, True),
        (Fault("file", "empty"), 200, 0, True),
        (Fault("file", "no_ranges"), 200, SIZE, True),
        (Fault("file", "slow_answer", seconds=0.01), 200, SIZE, True),
    ],
)
async def test_files_go_wrong(
    open_account: Any, fault: Fault, status: int, sent: int | None, ends: bool
) -> None:
    """Each fault of a file does what its row says, once; the next request gets the file."""
    async with open_account(stem_bytes=SIZE) as me:
        url = await me.link()
        _, whole, _ = await fetch(me, url, {})
        me.vendor.script(fault)
        answer, got, ended = await fetch(me, url, {})
        assert (answer.status, ended) == (status, ends)
        assert sent is None or len(got) == sent
        assert status != 200 or sent is None or got == whole[:sent]
        assert ("Content-Length" in answer.headers) == (not fault.kind.startswith("no_length"))
        assert me.vendor.requests[-1].status == status
        again, got, _ = await fetch(me, url, {})
        assert again.status == (403 if fault.kind == "expired" else 200)


async def test_a_dropped_file(open_account: Any) -> None:
    """A request for a file may get no response at all."""
    async with open_account() as me:
        url = await me.link()
        me.vendor.script(Fault("file", "drop_before_answer", times=2))
        with pytest.raises(GONE):
            await me.call("GET", url)
        me.vendor.faults.clear()
        assert (await me.call("GET", url)).status == 200


@pytest.mark.parametrize("kind", ["stall", "stall_answer"])
async def test_a_stalled_file(open_account: Any, kind: str) -> None:
    """The file stops on its way, with the connection left open."""
    async with open_account(stem_bytes=SIZE) as me:
        url = await me.link()
        me.vendor.script(Fault("file", kind, at=1000))
        timeout = aiohttp.ClientTimeout(sock_read=0.2)
        with pytest.raises(TimeoutError):
            await me.call("GET", url, timeout=timeout)
        if kind == "stall":
            me.vendor.script(Fault("file", kind, at=1000))
            async with me.http.get(url, timeout=timeout) as answer:
                assert len(await answer.content.readexactly(1000)) == 1000
                with pytest.raises(TimeoutError):
                    await answer.content.read(1)


async def test_gzip_that_was_not_requested(open_account: Any) -> None:
    """The body is encoded, and Content-Length is that of the encoded bytes."""
    async with open_account(stem_bytes=SIZE) as me:
        url = await me.link()
        _, whole, _ = await fetch(me, url, {})
        me.vendor.script(Fault("file", "gzip"))
        answer, got, _ = await fetch(me, url, {"Accept-Encoding": "identity"})
    assert answer.headers["Content-Encoding"] == "gzip"
    assert int(answer.headers["Content-Length"]) == len(got)
    assert gzip.decompress(got) == whole


async def test_truncated_ranges(open_account: Any) -> None:
    """Faults apply to ranges too: a 206 that breaks off, one with another start, and none."""
    asked = {"Range": f"bytes={SIZE // 2}-"}
    async with open_account(stem_bytes=SIZE) as me:
        url = await me.link()
        _, whole, _ = await fetch(me, url, {})
        for kind in ("truncated", "wrong_range", "no_ranges"):
            me.vendor.script(Fault("file", kind))
        truncated, part, ended = await fetch(me, url, asked)
        elsewhere, other, _ = await fetch(me, url, asked)
        plain, everything, _ = await fetch(me, url, asked)
    assert (truncated.status, ended) == (206, False)
    assert part == whole[SIZE // 2 : SIZE * 3 // 4]
    assert truncated.headers["Content-Length"] == str(SIZE // 2)
    assert elsewhere.headers["Content-Range"] == f"bytes {SIZE // 4}-{SIZE - 1}/{SIZE}"
    assert other == whole[SIZE // 4 :]
    assert (plain.status, everything) == (200, whole)


@pytest.mark.parametrize("kind", ["changed", "changed_anyway"])
async def test_a_file_that_changes_midway(open_account: Any, kind: str) -> None:
    """Content and ETag change for good; If-Range gets the complete new file, or is ignored."""
    async with open_account(stem_bytes=SIZE) as me:
        url = await me.link()
        old, whole, _ = await fetch(me, url, {})
        me.vendor.script(Fault("file", kind))
        asked = {"Range": f"bytes={SIZE // 2}-", "If-Range": old.headers["ETag"]}
        answer, got, _ = await fetch(me, url, asked)
        again, changed, _ = await fetch(me, url, {})
    assert answer.headers["ETag"] == again.headers["ETag"] != old.headers["ETag"]
    assert len(changed) == SIZE
    assert changed != whole
    assert (answer.status, got) == (
        (200, changed) if kind == "changed" else (206, changed[SIZE // 2 :])
    )


async def test_a_conversion_that_never_finishes(open_account: Any) -> None:
    """Its last word is that it is in progress, and it keeps its slot."""
    async with open_account(faults=[Fault("job", "never_finishes")]) as me:
        task = (await me.submit()).json["task_id"]
        await me.extract()
        words = {(await me.by_id(task)).json["conversion"]["status"] for _ in range(5)}
        assert words <= {"IN_QUEUE", "PENDING", "PROCESSING", "IN_PROGRESS"}
        assert me.vendor.unfinished == 1


async def test_faults_can_choose_a_track(open_account: Any) -> None:
    """A predicate can depend on the submit: here one file name is refused."""
    fault = Fault(
        "submit",
        "status",
        status=422,
        body="detail_list",
        when=lambda occasion: occasion.upload.file_name == "bad.mp3",
        times=None,
    )
    async with open_account(faults=[fault]) as me:
        statuses = [(await me.submit(name=name)).status for name in ("good.mp3", "bad.mp3") * 2]
    assert statuses == [200, 422, 200, 422]
