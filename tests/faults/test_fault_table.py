"""What the user gets when things go wrong: each row of ``table.py``, over real sockets."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

import aiohttp
import attrs
import pytest
from table import CASES, SPARED, TARGET, Case, markdown

from musicgpt_async import JobState, Limits, MusicGPTError, MusicGPTSession
from musicgpt_async.emulator import Emulator
from musicgpt_async.journal import Journal
from musicgpt_async.models import JobRecord

PAGE = Path(__file__).parents[2] / "docs" / "faults.md"
TRIED = [(case, journal) for case in CASES for journal in case.journals]


@attrs.frozen(kw_only=True)
class Result:
    """The result of a case.

    Attributes:
        error: The error that the user gets.
        submissions: Conversions that the emulator accepted.
        posts: Submits that reached the emulator.
        found: Digests by name of all files in the directory.
        served: Digests by name of the files that the emulator serves.
        injected: Number of injected faults.
        slots: Slots still taken at the end.
        leaks: Requests to the file host with the key.
        record: The journal's record, if there is a journal.
    """

    error: MusicGPTError | None
    submissions: int
    posts: int
    found: Mapping[str, str]
    served: Mapping[str, str]
    injected: int
    slots: int
    leaks: list[str]
    record: JobRecord | None


def name_of(tried: tuple[Case, bool]) -> str:
    """Return a test's name for a case."""
    case, journal = tried
    same = [each for each in CASES if each.on == case.on and each.what == case.what]
    number = f" {same.index(case) + 1}" if len(same) > 1 else ""
    return f"{case.on}: {case.what}{number}{', with a journal' if journal else ''}"


async def result_of(case: Case, journal: bool, *, folder: Path) -> Result:
    """Submit a track, wait for it and download its stems, while all that goes wrong."""
    stems, path = folder / "stems", folder / "journal.db"
    options = {
        "limits": Limits.PRO,
        "request_timeout": 1.5,
        "stall_timeout": 1.5,
        "journal": path if journal else None,
        **case.settings,
    }
    error = None
    async with Emulator(seconds=0.05, separate=False, faults=case.faults) as vendor:
        session = MusicGPTSession(vendor.api_key, base_url=vendor.base_url, **options)
        async with session:
            job = session.submit(("song.mp3", b"ID3" + bytes(case.size)), stems=[TARGET, SPARED])
            try:
                await job.download(stems, format=case.format)
            except MusicGPTError as caught:
                error = caught
        injected = vendor.faults.fired()
        vendor.faults.clear()
        return Result(
            error=error,
            submissions=len(vendor.submissions),
            posts=sum(each.method == "POST" for each in vendor.requests),
            found=digests(stems),
            served=await served_by(vendor, case.format),
            injected=injected,
            slots=session.slots[0],
            leaks=vendor.leaked_keys,
            record=await remembered(path) if journal else None,
        )


def digests(folder: Path) -> dict[str, str]:
    """Return file name → digest of everything in a folder."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.glob("*"))
    }


async def served_by(vendor: Emulator, form: str) -> dict[str, str]:
    """Return the digests by file name that a plain client gets for the only conversion."""
    if not vendor.submissions or not vendor.submissions[0].is_completed:
        return {}
    query = {"conversionType": "EXTRACTION", "task_id": vendor.submissions[0].task_id}
    async with aiohttp.ClientSession() as client:
        key = {"Authorization": vendor.api_key}
        async with client.get(f"{vendor.base_url}/byId", params=query, headers=key) as answer:
            conversion = (await answer.json())["conversion"]
        field = conversion["audio_url" if form == "mp3" else "audio_url_wav"]
        links = dict(re.findall(r'"(\w+)":\s*"([^"]+)"', field))
        served = {}
        for stem, url in links.items():
            async with client.get(url) as answer:
                content = await answer.read()
            served[f"song - {stem}.{form}"] = hashlib.sha256(content).hexdigest()
    return served


async def remembered(path: Path) -> JobRecord:
    """Return the only job in a journal."""
    async with Journal(path) as journal:
        [record] = [each async for each in journal.records()]
        return record


@pytest.mark.anyio
@pytest.mark.accelerated(10)
@pytest.mark.parametrize("tried", TRIED, ids=name_of)
async def test_what_the_user_gets(tried: tuple[Case, bool], tmp_path: Path) -> None:
    """One row of the table: what is paid for, what the user gets, and what is on disk."""
    case, journal = tried
    result = await result_of(case, journal, folder=tmp_path)
    assert result.injected, "the fault never injected"
    assert type(result.error) is (type(None) if case.error is None else case.error)
    assert case.error is None or re.search(case.words, str(result.error)), str(result.error)
    assert (result.submissions, result.posts) == (case.submissions, case.posts)
    whole = {f"song - {stem}.{case.format}" for stem in (TARGET, SPARED)}
    if case.error is not None:
        whole = {f"song - {SPARED}.{case.format}"} if case.on == "File" else set()
    assert result.found == {name: result.served[name] for name in whole}
    assert result.slots == 0
    assert not result.leaks
    if journal:
        assert result.record is not None
        assert result.record.state is state_of(case)


def state_of(case: Case) -> JobState:
    """Return the state in which a journal remembers a submit."""
    if case.error is None:
        return JobState.COMPLETED
    lost = case.gets.endswith("unknown")
    return JobState.UNKNOWN if lost else JobState.FAILED


def test_the_documentation_shows_this_table() -> None:
    """The table on the page of faults is the one that is tested here."""
    text = PAGE.read_text("utf-8")
    (shown,) = re.findall(r"<!-- faults -->\n(.*?)\n<!-- /faults -->", text, re.DOTALL)
    assert shown.strip() == markdown().strip()
