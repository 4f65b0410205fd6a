"""The session: the main job, its slots, its errors, its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import numpy as np
import pytest
import soundfile
from factories.sessions import TRACK, connected

from musicgpt_async import (
    APIError,
    AuthenticationError,
    BadRequestError,
    ConfigurationError,
    ConflictError,
    CreditLimitError,
    DeadlineError,
    ExtractionFailedError,
    ForbiddenError,
    InsufficientCreditsError,
    InvalidOptionError,
    JobDetachedError,
    JobState,
    Limits,
    MusicGPTError,
    MusicGPTSession,
    NotFoundError,
    ProtocolError,
    SessionClosedError,
    SourceError,
    Stem,
    SubmissionUnknownError,
    ValidationError,
    events,
)
from musicgpt_async.emulator import Emulator, Fault

pytestmark = [pytest.mark.anyio, pytest.mark.accelerated(20)]


async def test_a_song_is_uploaded_and_its_stems_are_saved(song: Path, tmp_path: Path) -> None:
    """Real audio is uploaded, awaited, and downloaded as stems that add up to the song."""
    async with Emulator(seconds=0.05) as vendor, connected(vendor) as session:
        job = session.submit(song, stems=["vocals", Stem.INSTRUMENTAL])
        extraction = await job
        files = await job.download(tmp_path / "stems")
    assert list(extraction.stems) == ["vocals", "instrumental"]
    assert extraction.cost is not None
    assert extraction.duration == pytest.approx(2, abs=0.1)
    assert files["vocals"].name == "Mårten's song - vocals.wav"
    whole = soundfile.read(song, always_2d=True)[0]
    parts = sum(soundfile.read(path, always_2d=True)[0] for path in files.values())
    assert np.abs(parts - whole).max() < 1e-3
    assert vendor.submissions[0].upload.file_name == song.name
    assert not vendor.leaked_keys


async def test_both_formats_come_by_stem_and_format(
    session: MusicGPTSession, tmp_path: Path
) -> None:
    """`format="both"` brings two files of each stem, and mp3 alone brings the MP3s."""
    job = session.submit(TRACK, stems=["bass"])
    both = await job.download(tmp_path, format="both")
    assert {kind: path.name for kind, path in both["bass"].items()} == {
        "wav": "song - bass.wav",
        "mp3": "song - bass.mp3",
    }
    assert (await job.download(tmp_path, format="mp3"))["bass"] == both["bass"]["mp3"]


async def test_hundreds_of_submits_return_at_once_and_respect_the_slots(vendor: Emulator) -> None:
    """For any number of submits, at most `parallel` jobs are unfinished at MusicGPT."""
    async with connected(vendor, limits=Limits(parallel=7, polls_per_minute=500)) as session:
        jobs = [session.submit((f"{n}.mp3", TRACK[1])) for n in range(100)]
        assert {job.state for job in jobs} == {JobState.QUEUED}
    assert {job.state for job in jobs} == {JobState.COMPLETED}
    assert vendor.most_unfinished <= 7
    assert len(vendor.submissions) == 100
    assert not vendor.throttled


async def test_jobs_are_submitted_in_the_order_they_came(vendor: Emulator) -> None:
    """The line is first come, first served, also for a job that a 429 sent back to it."""
    vendor.script(Fault("submit", "status", status=429, retry_after=0, after=1))
    async with connected(vendor, limits=Limits(parallel=1, polls_per_minute=500)) as session:
        for n in range(4):
            session.submit((f"{n}.mp3", TRACK[1]))
    assert [each.upload.file_name for each in vendor.submissions] == [
        "0.mp3",
        "1.mp3",
        "2.mp3",
        "3.mp3",
    ]


async def test_leaving_by_an_exception_detaches_the_jobs(vendor: Emulator) -> None:
    """An exception in the block closes the session at once, and its jobs are detached."""
    vendor.script(Fault("job", "never_finishes", times=None))
    session = await connected(vendor).__aenter__()
    job = session.submit(TRACK)
    await job.accepted()
    await session.__aexit__(ZeroDivisionError, ZeroDivisionError(), None)
    with pytest.raises(JobDetachedError, match=r"session\.attach\(") as caught:
        await job
    assert caught.value.job is job
    assert caught.value.task_id == vendor.submissions[0].task_id
    with pytest.raises(SessionClosedError):
        session.submit(TRACK)


async def test_a_session_may_be_closed_by_another_task(vendor: Emulator) -> None:
    """start() and aclose() need not be called by the same task, as in a service's two hooks."""
    session = connected(vendor)
    await asyncio.create_task(session.start())
    job = session.submit(TRACK)
    await asyncio.create_task(session.aclose())
    assert (await job).task_id


async def test_a_start_that_is_cancelled_leaves_nothing_behind(vendor: Emulator) -> None:
    """A start that is cancelled leaves no task and no thread."""
    session = connected(vendor)
    before = asyncio.all_tasks()
    start = asyncio.create_task(session.start())
    await asyncio.sleep(0)  # it has begun, and is not ready yet
    start.cancel()
    await asyncio.wait([start])
    assert start.cancelled()
    assert asyncio.all_tasks() == before
    with pytest.raises(SessionClosedError):
        session.submit(TRACK)


async def test_the_callers_own_client_session_is_used_and_left_open(
    vendor: Emulator, tmp_path: Path
) -> None:
    """Every call goes through `http=`, and it is still open afterwards."""
    used: list[str] = []

    async def note(_: Any, __: Any, params: aiohttp.TraceRequestStartParams) -> None:
        used.append(params.method)

    trace = aiohttp.TraceConfig()
    trace.on_request_start.append(note)
    async with aiohttp.ClientSession(trace_configs=[trace]) as http:
        async with connected(vendor, http=http) as session:
            await session.extract(TRACK, tmp_path, stems=["drums"])
        assert not http.closed
    assert used.count("POST") == 1
    assert used.count("GET") == len(vendor.requests) - 1
    assert not vendor.leaked_keys


async def test_a_client_session_that_is_closed_too_early_is_said_so(vendor: Emulator) -> None:
    """If the caller closes `http=` under the session, jobs fail with an error that says so."""
    http = aiohttp.ClientSession()
    async with connected(vendor, http=http) as session:
        await http.close()
        with pytest.raises(ConnectionError, match="http= was closed"):
            await session.submit(TRACK)


async def test_no_download_at_once_is_a_mistake() -> None:
    """A session that may never download says so at once, in place of waiting for ever."""
    with pytest.raises(ConfigurationError, match="downloads="):
        MusicGPTSession("key", downloads=0)


async def test_key_and_url_come_from_the_environment(
    vendor: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`MUSICGPT_API_KEY` and `MUSICGPT_BASE_URL` replace the arguments; the error names them."""
    monkeypatch.delenv("MUSICGPT_API_KEY", raising=False)
    with pytest.raises(ConfigurationError, match="MUSICGPT_API_KEY"):
        MusicGPTSession()
    monkeypatch.setenv("MUSICGPT_API_KEY", vendor.api_key)
    monkeypatch.setenv("MUSICGPT_BASE_URL", vendor.base_url + "/")
    async with MusicGPTSession() as session:
        assert (await session.submit(TRACK)).task_id
    monkeypatch.setenv("MUSICGPT_BASE_URL", "http://example.com/api")
    with pytest.raises(ConfigurationError, match="unencrypted"):
        MusicGPTSession()


async def test_a_session_in_another_loop_says_so(session: MusicGPTSession) -> None:
    """Used from the wrong event loop a session refuses with a sentence, not later with a riddle."""

    def elsewhere() -> None:
        async def use() -> None:
            session.submit(TRACK)

        asyncio.run(use())

    with pytest.raises(ConfigurationError, match="another event loop"):
        await asyncio.to_thread(elsewhere)


@pytest.mark.parametrize(
    ("options", "closest"),
    [
        ({"stems": ["vocal"]}, "vocals"),
        ({"stems": ["Drums"]}, "drums"),
        ({"preprocessing": ["denoise"]}, "Denoise"),
        ({"stems": "vocals"}, r"\['vocals'\]"),
    ],
)
async def test_a_wrong_name_is_refused_before_anything_is_sent(
    vendor: Emulator, session: MusicGPTSession, options: dict[str, Any], closest: str
) -> None:
    """A stem or option that does not exist is refused in the call itself, naming the right one."""
    with pytest.raises(InvalidOptionError, match=closest):
        session.submit(TRACK, **options)
    assert not vendor.requests


@pytest.mark.parametrize(
    ("status", "kind", "hint"),
    [
        (400, BadRequestError, "check the track"),
        (401, AuthenticationError, "MUSICGPT_API_KEY"),
        (402, InsufficientCreditsError, "add credit"),
        (403, ForbiddenError, "key may be wrong"),
        (404, NotFoundError, "account"),
        (409, ConflictError, "duplicate"),
        (422, ValidationError, "field"),
        (418, APIError, "refused"),
    ],
)
@pytest.mark.parametrize("body", ["message", "error", "error_object", "detail", "detail_list"])
async def test_a_refusal_has_its_class_and_the_vendors_words(
    vendor: Emulator,
    session: MusicGPTSession,
    status: int,
    kind: type[MusicGPTError],
    hint: str,
    body: str,
) -> None:
    """Each status has its error with MusicGPT's message in any shape, and says what to do."""
    vendor.script(Fault("submit", "status", status=status, body=body, message="So it goes"))
    with pytest.raises(kind, match=hint) as caught:
        await session.submit(TRACK)
    assert caught.value.status == status
    assert "So it goes" in (caught.value.vendor_message or "")
    assert not vendor.submissions


async def test_success_false_is_an_error(vendor: Emulator, session: MusicGPTSession) -> None:
    """A 200 with `success: false` is a refusal with MusicGPT's message."""
    vendor.script(Fault("submit", "not_success", message="Not this one"))
    with pytest.raises(APIError, match="Not this one"):
        await session.submit(TRACK)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirected_submit_is_an_error(
    vendor: Emulator, session: MusicGPTSession, status: int
) -> None:
    """No redirect of a submit is followed: it would lose the track or send it twice."""
    location = f"{vendor.base_url}/Extraction"
    vendor.script(Fault("submit", "redirect", status=status, location=location))
    with pytest.raises(ProtocolError, match=str(status)):
        await session.submit(TRACK)
    assert not vendor.submissions


@pytest.mark.parametrize(
    "fault",
    [
        Fault("submit", "drop_before_answer"),
        Fault("submit", "drop_mid_answer"),
        Fault("submit", "wrong_json"),
        Fault("submit", "status", status=500, accepted=True),
        Fault("submit", "status", status=502, body="html", accepted=True),
        Fault("submit", "status", status=504, body="empty", accepted=True),
    ],
    ids=lambda fault: f"{fault.kind}-{fault.status}",
)
async def test_a_lost_answer_is_unknown_and_never_sent_again(
    vendor: Emulator, session: MusicGPTSession, fault: Fault
) -> None:
    """A submit that may have been accepted is sent once, and the error says so."""
    vendor.script(fault)
    job = session.submit(TRACK)
    with pytest.raises(SubmissionUnknownError, match="not sent again") as caught:
        await job
    assert isinstance(caught.value, ConnectionError)
    assert caught.value.job is job
    assert job.state is JobState.UNKNOWN
    assert len(vendor.submissions) == 1


@pytest.mark.parametrize(
    "fault",
    [
        Fault("submit", "drop_before_body"),
        Fault("submit", "drop_mid_body"),
        Fault("submit", "status", status=429, retry_after=0),
        Fault("submit", "status", status=503, body="html", retry_after=0),
    ],
    ids=lambda fault: f"{fault.kind}-{fault.status}",
)
async def test_what_was_not_delivered_or_not_accepted_is_sent_again(
    vendor: Emulator, session: MusicGPTSession, fault: Fault
) -> None:
    """A submit that was certainly not accepted is repeated automatically, and paid for once."""
    vendor.script(fault)
    data = b"ID3" + bytes(8 << 20)  # more than the sockets' buffers hold
    assert (await session.submit(("long.mp3", data))).task_id
    assert [each.upload.size for each in vendor.submissions] == [len(data)]


async def test_credit_that_runs_out_leaves_the_rest_unsent(vendor: Emulator) -> None:
    """After a 402 no queued job is submitted; each handle says why."""
    vendor.script(Fault("submit", "status", status=402, after=1))
    async with connected(vendor, limits=Limits(parallel=1, polls_per_minute=500)) as session:
        # URLs: on a slow machine the body of a file may run ahead of its slot.
        jobs = [session.submit(f"https://example.com/{n}.mp3") for n in range(5)]
    errors = [job.exception() for job in jobs]
    assert errors[0] is None
    assert isinstance(errors[1], InsufficientCreditsError)
    assert [type(error) for error in errors[2:]] == [CreditLimitError] * 3
    assert len(vendor.submissions) == 1
    assert sum(each.method == "POST" for each in vendor.requests) == 2


async def test_a_wrong_key_is_tried_once(vendor: Emulator) -> None:
    """After a 401 no queued job is uploaded, since it would be refused as well."""
    options: dict[str, Any] = {"base_url": vendor.base_url, "limits": Limits(parallel=1)}
    async with MusicGPTSession("wrong", **options) as session:
        jobs = [session.submit((f"{n}.mp3", TRACK[1])) for n in range(4)]
    assert [type(job.exception()) for job in jobs] == [AuthenticationError] * 4
    assert sum(each.method == "POST" for each in vendor.requests) == 1


async def test_max_credits_ends_submitting(vendor: Emulator) -> None:
    """Once the estimates reach `max_credits` nothing more is sent, however many slots are free."""
    async with connected(vendor, max_credits=0.01) as session:
        jobs = [session.submit((f"{n}.mp3", TRACK[1])) for n in range(5)]
    assert len(vendor.submissions) == 1
    assert [type(job.exception()) for job in jobs[1:]] == [CreditLimitError] * 4


async def test_a_job_that_fails_bears_the_vendors_words(
    vendor: Emulator, session: MusicGPTSession
) -> None:
    """A failed job is an error with its `status_msg`, and its slot is released."""
    vendor.script(Fault("job", "fails", word="Failed", message="Unreadable audio"))
    with pytest.raises(ExtractionFailedError, match="Unreadable audio") as caught:
        await session.submit(TRACK)
    assert caught.value.vendor_message == "Unreadable audio"
    assert session.slots[0] == 0


@pytest.mark.parametrize(
    "fault",
    [
        Fault("byId", "status", status=429, retry_after=0, times=2),
        Fault("byId", "status", status=500, times=2),
        Fault("byId", "status", status=502, body="html", times=2),
        Fault("byId", "status", status=404, times=2),
        Fault("byId", "status", status=401, times=2),
        Fault("byId", "not_success", times=2),
        Fault("byId", "wrong_json", times=2),
        Fault("byId", "drop_before_answer", times=2),
        Fault("byId", "drop_mid_answer", times=2),
        Fault("byId", "redirect", times=2),
    ],
    ids=lambda fault: f"{fault.kind}-{fault.status}",
)
async def test_a_failed_poll_is_never_a_failed_job(
    vendor: Emulator, session: MusicGPTSession, fault: Fault
) -> None:
    """After any failed poll the job continues, is not submitted again, and completes."""
    vendor.script(fault)
    assert (await session.submit(TRACK)).stems
    assert len(vendor.submissions) == 1
    assert vendor.polls >= 3 or fault.kind.startswith("drop")


async def test_a_deadline_bears_the_live_handle(vendor: Emulator) -> None:
    """After its deadline a job raises TimeoutError, and can be attached by its task_id."""
    vendor.script(Fault("job", "never_finishes"))
    async with connected(vendor, deadline=0.2) as session:
        job = session.submit(TRACK)
        with pytest.raises(TimeoutError, match=r"session\.attach") as caught:
            await job
        assert isinstance(caught.value, DeadlineError)
        assert caught.value.job is job
        assert caught.value.task_id == job.task_id
        assert session.slots[0] == 0
        again = session.attach(job.task_id or "")
        assert again.state is JobState.PROCESSING


async def test_a_job_of_somebody_else_can_be_attached(
    vendor: Emulator, session: MusicGPTSession, tmp_path: Path
) -> None:
    """A task_id is enough to wait for a job and download it."""
    submitted = session.submit(TRACK, stems=["piano"])
    task_id = (await submitted.accepted()).task_id
    files = await session.attach(task_id).download(tmp_path)
    assert files["piano"].name == f"{task_id} - piano.wav"


async def test_one_job_of_two_sessions_is_downloaded_once(
    vendor: Emulator, session: MusicGPTSession, tmp_path: Path
) -> None:
    """If two sessions download one job to one directory, the second uses the first one's files."""
    task_id = (await session.submit(TRACK, stems=["piano", "bass"])).task_id
    assert task_id is not None
    vendor.script(Fault("file", "slow_answer", seconds=1.0, times=None))
    async with connected(vendor) as other, anyio.create_task_group() as both:
        for each in (session, other):
            both.start_soon(each.attach(task_id).download, tmp_path)
    assert sum("/files" in each.path for each in vendor.requests) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"{task_id} - bass.wav",
        f"{task_id} - piano.wav",
    ]


async def test_attaching_to_nothing_says_so(session: MusicGPTSession) -> None:
    """An unknown task_id ends in NotFoundError, not in an endless wait."""
    with pytest.raises(NotFoundError, match="task_id"):
        await session.attach("00000000-0000-0000-0000-000000000000")


async def test_a_missing_file_is_the_sources_error(
    vendor: Emulator, session: MusicGPTSession, tmp_path: Path
) -> None:
    """What cannot be read is a SourceError that names the file; nothing is sent."""
    with pytest.raises(SourceError, match=r"gone\.wav cannot be read"):
        await session.submit(tmp_path / "gone.wav")
    with pytest.raises(SourceError, match="not a file"):
        await session.submit(tmp_path)
    assert not vendor.submissions


async def test_a_stream_of_unknown_length_is_sent_completely(
    vendor: Emulator, session: MusicGPTSession
) -> None:
    """An async iterable is spooled first and arrives under its name with its full length."""

    async def stream() -> AsyncIterator[bytes]:
        for _ in range(5):
            yield bytes(100_000)

    await session.submit(("stream.ogg", stream()))
    upload = vendor.submissions[0].upload
    assert (upload.file_name, upload.size) == ("stream.ogg", 500_000)


async def test_a_url_is_downloaded_by_musicgpt(vendor: Emulator, session: MusicGPTSession) -> None:
    """A URL is sent as `audio_url`, with no file beside it."""
    job = session.submit("https://example.com/music/A%20song.mp3?x=1")
    await job
    assert job.title == "A song"
    upload = vendor.submissions[0].upload
    assert upload.audio_url == "https://example.com/music/A%20song.mp3?x=1"
    assert upload.file_name is None


async def test_two_tracks_of_one_name_do_not_overwrite_each_other(
    session: MusicGPTSession, tmp_path: Path
) -> None:
    """Different tracks with the same name get different files in the same directory."""
    jobs = [session.submit(TRACK, stems=["bass"]) for _ in range(2)]
    paths = [(await job.download(tmp_path))["bass"].name for job in jobs]
    assert paths == ["song - bass.wav", "song (2) - bass.wav"]


async def test_events_report_every_step(vendor: Emulator, tmp_path: Path) -> None:
    """A session's stream bears every step of a job in order, and ends with the session."""
    async with connected(vendor) as session:
        stream = session.events()
        await session.extract(TRACK, tmp_path, stems=["bass"])
    kinds = [type(event) async for event in stream]
    story = [
        events.Queued,
        events.Uploading,
        events.Accepted,
        events.Polled,
        events.Completed,
        events.Downloading,
        events.Downloaded,
    ]
    assert list(dict.fromkeys(kinds)) == story


async def test_a_cancelled_extract_detaches_its_job(
    vendor: Emulator, session: MusicGPTSession, tmp_path: Path
) -> None:
    """A timeout around extract() detaches the job."""
    vendor.script(Fault("job", "never_finishes"))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await session.extract(TRACK, tmp_path)
    assert session.slots[0] == 0
