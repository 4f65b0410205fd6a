from __future__ import annotations

import os
import re
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import anyio
import numpy as np
import pytest
import soundfile
from factories.reports import HOSTILE, HOSTILE_FILE, read, record, stem_files, with_journal

from musicgpt_async import JobState
from musicgpt_async.cli.report import report
from musicgpt_async.cli.report.markup import element
from musicgpt_async.cli.report.track_card import url
from musicgpt_async.cli.report.tracks import Attempts, TrackStatus, from_files
from musicgpt_async.cli.report.waveforms import BLOCK, PARTS, Waveform
from musicgpt_async.cli.settings import JOURNAL, Settings
from musicgpt_async.cli.usage import UsageError
from musicgpt_async.models import StemFile


@pytest.mark.parametrize("channels", [1, 2, 6])
def test_a_wave_is_what_the_samples_say(tmp_path: Path, channels: int) -> None:
    """Read block by block, each part's peak and level are those of all samples at once."""
    samples = np.random.default_rng(1).uniform(-1, 1, (2 * BLOCK + 12_345, channels))
    samples[: BLOCK // 2] *= 0.1
    soundfile.write(tmp_path / "a.wav", samples, 8000, "FLOAT")
    waveform = Waveform.of(tmp_path / "a.wav")
    assert waveform is not None
    assert waveform.seconds == len(samples) / 8000
    edges = [-(-part * len(samples) // PARTS) for part in range(PARTS + 1)]
    parts = [samples[a:b] for a, b in pairwise(edges)]
    assert waveform.peaks == pytest.approx([np.abs(part).max() for part in parts], rel=1e-4)
    assert waveform.levels == pytest.approx([np.sqrt((part**2).mean()) for part in parts], rel=1e-3)


@pytest.mark.parametrize("frames", [1, 7, PARTS - 1, PARTS + 1])
def test_short_files_have_fewer_parts(tmp_path: Path, frames: int) -> None:
    """No part is without a sample, and each takes two characters, the loudest the last digit."""
    soundfile.write(tmp_path / "a.wav", np.full(frames, 0.25), 8000)
    waveform = Waveform.of(tmp_path / "a.wav")
    assert waveform is not None
    assert waveform.encode(0.25) == "_" * (2 * min(frames, PARTS))


def test_a_steady_tone_in_an_mp3_has_no_holes(tmp_path: Path) -> None:
    """An MP3 longer than a block of other kinds is drawn as steadily as it sounds."""
    moments = np.arange(3 * BLOCK) / 44100
    tone = 0.5 * np.sin(2 * np.pi * 330 * moments)
    soundfile.write(tmp_path / "tone.mp3", tone, 44100, format="MP3")
    waveform = Waveform.of(tmp_path / "tone.mp3")
    assert waveform is not None
    assert waveform.levels[5:-5].min() > 0.9 * waveform.levels.max()


def test_what_is_no_audio_has_no_wave(tmp_path: Path) -> None:
    """Noise, nothing, silence without samples and a missing file are None; NaN is silence."""
    (tmp_path / "noise.wav").write_bytes(b"noise" * 100)
    (tmp_path / "nothing.wav").touch()
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 8000)
    for name in ("noise.wav", "nothing.wav", "empty.wav", "missing.wav"):
        assert Waveform.of(tmp_path / name) is None
    soundfile.write(tmp_path / "nan.wav", np.full(PARTS, np.nan), 8000, "FLOAT")
    waveform = Waveform.of(tmp_path / "nan.wav")
    assert waveform is not None
    assert set(waveform.encode(1)) == {"A"}


def test_everything_is_escaped_but_markup() -> None:
    """Text and attributes are escaped, what turns text around is replaced, joiners stay."""
    assert element("p", "<b>", element("i", "&"), class_='"') == (
        '<p class="&#34;">&lt;b&gt;<i>&amp;</i></p>'
    )
    assert element("p", "a\u202eb\x00") == "<p>a\ufffdb\ufffd</p>"
    assert element("p", "👩\u200d🎤") == "<p>👩\u200d🎤</p>"


def test_urls_lead_back_to_the_file(tmp_path: Path) -> None:
    """Whatever a name holds, even bytes that are no UTF-8, its URL is relative and means it."""
    for name in (HOSTILE_FILE, "a:b.wav", "../up.wav", os.fsdecode(b"\xff\xfe.wav")):
        shown = url(tmp_path / name, tmp_path)
        assert not set(shown) & set("#?\"'<>: ")
        assert os.fsencode(unquote(shown, errors="surrogateescape")) == os.fsencode(name)


def test_files_are_grouped_by_their_names(tmp_path: Path) -> None:
    """Stems are beside their song or in its folder; a file with another name is not a stem."""
    for name in (
        "a - b.flac", "a - b - bass.wav", "a - b - bass.mp3", "a - b - vocals.wav",
        "a - b - bass (2).wav", "c/drums.mp3", "Artist - Song.mp3", "drums.wav", ".x/bass.wav",
    ):  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    tracks = {track.title: track for track in from_files(tmp_path)}
    assert set(tracks) == {"a - b", "a - b (2)", "c"}
    assert tracks["a - b"].song == tmp_path / "a - b.flac"
    assert list(tracks["a - b"].stems) == ["vocals", "bass"]
    assert [path.suffix for path in tracks["a - b"].stems["bass"]] == [".wav", ".mp3"]
    assert tracks["c"].stems == {"drums": (tmp_path / "c/drums.mp3",)}


def test_a_moved_directory_is_found_again(tmp_path: Path) -> None:
    """Files are searched beside the journal, too; one that is nowhere is shown as missing."""
    (tmp_path / "now").mkdir()
    (tmp_path / "now" / "x - bass.wav").touch()
    files = tuple(
        StemFile(stem=stem, format="wav", path=str(tmp_path / f"was/x - {stem}.wav"), size=1,
                 sha256="") for stem in ("bass", "drums")
    )  # fmt: skip
    done = record("x", state=JobState.COMPLETED, directory=str(tmp_path / "was"), files=files)
    attempts = Attempts(10)
    attempts.add(done)
    (track,) = attempts.tracks(tmp_path / "now")
    assert track.stems == {"bass": (tmp_path / "now/x - bass.wav",)}
    assert track.missing == ("drums",)


def test_attempts_at_one_track_are_one_track(tmp_path: Path) -> None:
    """The last attempt at a source is shown, with the last files; it mentions the others."""
    (tmp_path / "a - bass.wav").touch()
    path = str(tmp_path / "a - bass.wav")
    files = (StemFile(stem="bass", format="wav", path=path, size=0, sha256=""),)
    attempts = Attempts(10)
    for number, values in enumerate(
        [
            {"state": JobState.FAILED, "error": "first"},
            {"state": JobState.COMPLETED, "files": files},
            {"state": JobState.PROCESSING},
            {"state": JobState.FAILED, "stems": ("drums",)},
        ]
    ):  # a file that was changed has another fingerprint
        attempts.add(record("a", id=str(number), fingerprint=str(number), **values))
    going, failed = attempts.tracks(tmp_path)
    assert (going.outcome, failed.outcome) == (TrackStatus.UNFINISHED, TrackStatus.FAILED)
    assert [each.id for each in going.earlier] == ["0", "1"]
    assert list(going.stems) == ["bass"]
    assert going.anchor != failed.anchor


def test_tracks_of_one_name_are_told_apart(tmp_path: Path) -> None:
    """Two songs of one title have their folders in it; one that was tried twice does not."""
    attempts = Attempts(10)
    for number, name in enumerate(("a/1/intro.flac", "a/2/intro.flac", "a/2/b.flac", "a/2/b.flac")):
        attempts.add(record(str(number), source=f"/{name}"))
    titles = [track.title for track in attempts.tracks(tmp_path)]
    assert titles == [str(Path("1/intro.flac")), str(Path("2/intro.flac")), "b"]


@pytest.mark.anyio
async def test_a_page_shows_the_last_tracks_and_the_sums_of_all(tmp_path: Path) -> None:
    """What is left out is said and counted, each track once, also if it is retried later."""
    jobs = [
        record(str(number), state=JobState.COMPLETED, cost=1.0, duration=60.0)
        for number in range(9)
    ]
    retried = record("0", id="again", state=JobState.FAILED, cost=None, credit_estimate=2.0)
    await with_journal(tmp_path, *jobs, retried)
    assert await report(Settings(out=tmp_path), last=4) == 0
    page = read(tmp_path)
    assert len(page.all("track")) == 4
    html = (tmp_path / "report.html").read_text("utf-8").partition("<main>")[0]
    assert dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", html)) == {
        "Tracks": "9", "Done": "8", "Failed": "1", "Credits charged": "9",
        "Credits only estimated": "2", "Audio": "8:00",
    }  # fmt: skip
    assert "The last 4 of 9 tracks are shown" in page.text


@pytest.mark.anyio
async def test_the_report_tells_what_the_journal_knows(tmp_path: Path) -> None:
    """Costs are summed, failures grouped by reason whatever the track, and all text is text."""
    reason = "The vendor gave {} up <img src=x onerror=alert(1)>."
    gone = StemFile(stem="hi_hat", format="wav", path="/gone.wav", size=1, sha256="")
    await with_journal(
        tmp_path,
        record("a", state=JobState.FAILED, error=reason.format("a"), cost=1.5, created_at=1e9),
        record("b", state=JobState.FAILED, error=reason.format("b"), credit_estimate=2.0),
        record("c", state=JobState.FAILED, error="Another reason."),
        record("d", state=JobState.PROCESSING, label=HOSTILE, task_id="the-task", cost=0.75),
        record("e", state=JobState.COMPLETED, duration=61.0, files=(gone,)),
    )
    assert await report(Settings(out=tmp_path)) == 0
    page = read(tmp_path)
    html = (tmp_path / "report.html").read_text("utf-8").partition("<main>")[0]
    assert dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", html)) == {
        "Tracks": "5", "Done": "1", "Failed": "3", "Unfinished": "1", "Credits charged": "2.25",
        "Credits only estimated": "2", "Audio": "1:01",
    }  # fmt: skip
    assert "2 tracks" in page.text
    assert page.text.count("The vendor gave … up <img src=x onerror=alert(1)>.") == 1
    assert [each.get("data-reason") for each in page.all("track")] == ["0", "0", "1", None, None]
    assert HOSTILE in page.text
    assert "the-task" in page.text
    assert "Hi hatno longer here" in page.text
    assert not page.all("play")
    assert [tag for tag, _ in page.elements].count("script") == 1
    assert "img" not in {tag for tag, _ in page.elements}
    assert sorted(path.name for path in tmp_path.iterdir()) == [JOURNAL, "report.html"]


@pytest.mark.anyio
async def test_what_cannot_be_reported_is_wrong_usage(tmp_path: Path) -> None:
    """No directory, or nothing in it: it says so and writes nothing."""
    with pytest.raises(UsageError, match="no such directory"):
        await report(Settings(out=tmp_path / "nowhere"))
    with pytest.raises(UsageError, match="no tracks"):
        await report(Settings(out=tmp_path))
    (tmp_path / "x - bass.wav").touch()
    (tmp_path / "report.html").mkdir()
    with pytest.raises(UsageError, match="cannot be written"):
        await report(Settings(out=tmp_path))
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.anyio
async def test_the_command_says_where_the_report_is(open_vendor: Any, song: Path) -> None:
    """After a batch `report` writes the page of its tracks, good and bad, and prints its path."""
    async with open_vendor(separate=True, seconds=0.1) as (_, shell):
        tracks = [song, shell.track("broken.wav")]
        extracted = await shell.run("extract", *tracks, "--out", "o", "-s", "bass", "-s", "drums")
        assert extracted.code == 1
        ended = await shell.run("report", "o")
    assert (ended.code, ended.out) == (0, f"{Path('o/report.html')}\n")
    page = read(shell.directory / "o")
    # Both are in flight at once: either may be first in the journal.
    assert sorted(each["data-outcome"] for each in page.all("track")) == ["done", "failed"]
    drawn = [each for each in page.all("wave") if each.get("data-wave")]
    assert len(drawn) == 3
    assert "The audio could not be decoded" in page.text
    assert "credits" in page.text


@pytest.mark.anyio
async def test_a_missing_extra_is_one_clear_line(shell: Any, tmp_path: Path) -> None:
    """Without soundfile `report` says what to install, writes nothing, and ends with 2."""
    missing = tmp_path / "missing"
    missing.mkdir()
    (missing / "soundfile.py").write_text("raise ModuleNotFoundError(name='soundfile')")
    ended = await shell.run("report", ".", PYTHONPATH=str(missing))
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.count("\n") == 1
    assert 'pip install "musicgpt-async[report]"' in ended.err


def test_hundreds_of_tracks_make_a_small_page(tmp_path: Path) -> None:
    """A track with a song and four stems takes less than 12 kB; no audio is in the page."""
    stem_files(tmp_path, "0", seconds=1)
    files = list(tmp_path.glob("0*"))
    for number in range(1, 200):
        for path in files:
            os.link(path, tmp_path / path.name.replace("0", str(number), 1))
    assert anyio.run(report, Settings(out=tmp_path)) == 0
    page = read(tmp_path)
    assert len(page.all("track")) == 200
    assert len(page.all("wave")) == 1000
    assert "audio" not in {tag for tag, _ in page.elements}
    assert (tmp_path / "report.html").stat().st_size < 200 * 12_000 + 50_000
