from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import anyio
import attrs
import numpy as np
import pytest
import soundfile

from musicgpt_async import JobState, Journal
from musicgpt_async.cli.report import report
from musicgpt_async.cli.report.card import url
from musicgpt_async.cli.report.markup import element
from musicgpt_async.cli.report.tracks import Outcome, of_files, of_records
from musicgpt_async.cli.report.waves import BLOCK, PARTS, Wave
from musicgpt_async.cli.running import JOURNAL
from musicgpt_async.cli.usage import UsageError
from musicgpt_async.emulator.separation import separate
from musicgpt_async.emulator.song import compose
from musicgpt_async.models import JobRecord, StemFile

# Seconds after which something hangs.
HANG = 60
HOSTILE = "<script>document.title='hacked'</script> \"#1\" 100%25? ünï 夜"
# File names on Linux may hold all but the slash.
HOSTILE_FILE = HOSTILE.replace("/", "\N{DIVISION SLASH}")
STEMS = ("vocals", "drums", "bass", "instrumental")


@attrs.define
class Parsed(HTMLParser):
    """What an HTML file holds: its elements with their attributes, and its text."""

    elements: list[tuple[str, dict[str, str | None]]] = attrs.field(factory=list)
    text: str = ""

    def __attrs_pre_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        """Keep an element."""
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        """Keep text."""
        self.text += data

    def all(self, class_: str) -> list[Mapping[str, str | None]]:
        """The attributes of all elements of a class."""
        return [found for _, found in self.elements if class_ in (found.get("class") or "").split()]


def read(directory: Path) -> Parsed:
    """Read a directory's report."""
    parsed = Parsed()
    parsed.feed((directory / "report.html").read_text("utf-8"))
    return parsed


def stem_files(directory: Path, track: str, *, seconds: float, song: str | None = None) -> None:
    """Compose a song and split it for real."""
    path = compose(directory / (song or f"{track}.flac"), seconds=seconds)
    separate(path, {stem: directory / f"{track} - {stem}.wav" for stem in STEMS})


def record(name: str, **values: Any) -> JobRecord:
    """Make a record of a job."""
    return JobRecord(
        **{"id": name, "fingerprint": name, "source": f"/nowhere/{name}.wav", **values}
    )


async def with_journal(directory: Path, *records: JobRecord) -> None:
    """Write a journal."""
    async with Journal(directory / JOURNAL) as journal:
        for each in records:
            await journal.enter(each, force=True)


@pytest.mark.parametrize("channels", [1, 2, 6])
def test_a_wave_is_what_the_samples_say(tmp_path: Path, channels: int) -> None:
    """Read block by block, each part's peak and level are those of all samples at once."""
    samples = np.random.default_rng(1).uniform(-1, 1, (2 * BLOCK + 12_345, channels))
    samples[: BLOCK // 2] *= 0.1
    soundfile.write(tmp_path / "a.wav", samples, 8000, "FLOAT")
    wave = Wave.of(tmp_path / "a.wav")
    assert wave is not None
    assert wave.seconds == len(samples) / 8000
    edges = [-(-part * len(samples) // PARTS) for part in range(PARTS + 1)]
    parts = [samples[a:b] for a, b in pairwise(edges)]
    assert wave.peaks == pytest.approx([np.abs(part).max() for part in parts], rel=1e-4)
    assert wave.levels == pytest.approx([np.sqrt((part**2).mean()) for part in parts], rel=1e-3)


@pytest.mark.parametrize("frames", [1, 7, PARTS - 1, PARTS + 1])
def test_short_files_have_fewer_parts(tmp_path: Path, frames: int) -> None:
    """No part is without a sample, and each takes two characters, the loudest the last digit."""
    soundfile.write(tmp_path / "a.wav", np.full(frames, 0.25), 8000)
    wave = Wave.of(tmp_path / "a.wav")
    assert wave is not None
    assert wave.written(0.25) == "_" * (2 * min(frames, PARTS))


def test_a_steady_tone_in_an_mp3_has_no_holes(tmp_path: Path) -> None:
    """An MP3 longer than a block of other kinds is drawn as steadily as it sounds."""
    moments = np.arange(3 * BLOCK) / 44100
    tone = 0.5 * np.sin(2 * np.pi * 330 * moments)
    soundfile.write(tmp_path / "tone.mp3", tone, 44100, format="MP3")
    wave = Wave.of(tmp_path / "tone.mp3")
    assert wave is not None
    assert wave.levels[5:-5].min() > 0.9 * wave.levels.max()


def test_what_is_no_audio_has_no_wave(tmp_path: Path) -> None:
    """Noise, nothing, silence without samples and a missing file are None; NaN is silence."""
    (tmp_path / "noise.wav").write_bytes(b"noise" * 100)
    (tmp_path / "nothing.wav").touch()
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 8000)
    for name in ("noise.wav", "nothing.wav", "empty.wav", "missing.wav"):
        assert Wave.of(tmp_path / name) is None
    soundfile.write(tmp_path / "nan.wav", np.full(PARTS, np.nan), 8000, "FLOAT")
    wave = Wave.of(tmp_path / "nan.wav")
    assert wave is not None
    assert set(wave.written(1)) == {"A"}


def test_everything_is_escaped_but_markup() -> None:
    """Text and attributes are escaped, what turns text around is replaced, joiners stay."""
    assert element("p", "<b>", element("i", "&"), class_='"') == (
        '<p class="&quot;">&lt;b&gt;<i>&amp;</i></p>'
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
    """Stems lie beside their song or in its folder; what is named otherwise is no stem."""
    for name in (
        "a - b.flac", "a - b - bass.wav", "a - b - bass.mp3", "a - b - vocals.wav",
        "a - b - bass (2).wav", "c/drums.mp3", "Artist - Song.mp3", "drums.wav", ".x/bass.wav",
    ):  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    tracks = {track.title: track for track in of_files(tmp_path)}
    assert set(tracks) == {"a - b", "a - b (2)", "c"}
    assert tracks["a - b"].song == tmp_path / "a - b.flac"
    assert list(tracks["a - b"].stems) == ["vocals", "bass"]
    assert [path.suffix for path in tracks["a - b"].stems["bass"]] == [".wav", ".mp3"]
    assert tracks["c"].stems == {"drums": (tmp_path / "c/drums.mp3",)}


def test_a_moved_directory_is_found_again(tmp_path: Path) -> None:
    """Files are looked for where the journal lies now; what is nowhere is told as missing."""
    (tmp_path / "now").mkdir()
    (tmp_path / "now" / "x - bass.wav").touch()
    files = tuple(
        StemFile(stem=stem, format="wav", path=str(tmp_path / f"was/x - {stem}.wav"), size=1,
                 sha256="") for stem in ("bass", "drums")
    )  # fmt: skip
    done = record("x", state=JobState.COMPLETED, directory=str(tmp_path / "was"), files=files)
    (track,) = of_records([done], tmp_path / "now")
    assert track.stems == {"bass": (tmp_path / "now/x - bass.wav",)}
    assert track.missing == ("drums",)


def test_attempts_at_one_track_are_one_track(tmp_path: Path) -> None:
    """Of attempts that left no files only the last one counts; it tells of the others."""
    attempts = [
        record("1", fingerprint="a", state=JobState.FAILED, error="first"),
        record("2", fingerprint="a", state=JobState.FAILED, error="second"),
        record("3", fingerprint="a", state=JobState.WAITING),
        record("4", fingerprint="b", state=JobState.FAILED),
    ]
    going, failed = of_records(attempts, tmp_path)
    assert (going.outcome, failed.outcome) == (Outcome.UNFINISHED, Outcome.FAILED)
    assert [each.error for each in going.earlier] == ["first", "second"]


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
        record("d", state=JobState.WAITING, label=HOSTILE, task_id="the-task", cost=0.75),
        record("e", state=JobState.COMPLETED, duration=61.0, files=(gone,)),
    )
    assert await report(tmp_path) == 0
    page = read(tmp_path)
    html = (tmp_path / "report.html").read_text("utf-8").partition("<main>")[0]
    assert dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", html)) == {
        "Tracks": "5", "Done": "1", "Failed": "3", "Unfinished": "1", "Credits charged": "2.25",
        "Credits only estimated": "2", "Music": "1:01",
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
        await report(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="no tracks"):
        await report(tmp_path)
    (tmp_path / "x - bass.wav").touch()
    (tmp_path / "report.html").mkdir()
    with pytest.raises(UsageError, match="cannot be written"):
        await report(tmp_path)
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
    # Both are on their way at once: either may stand in the journal first.
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
    assert 'pip install "musicgpt-async[emulator]"' in ended.err


def test_hundreds_of_tracks_make_a_small_page(tmp_path: Path) -> None:
    """A track with a song and four stems takes less than 12 kB; no audio is in the page."""
    stem_files(tmp_path, "0", seconds=1)
    files = list(tmp_path.glob("0*"))
    for number in range(1, 200):
        for path in files:
            os.link(path, tmp_path / path.name.replace("0", str(number), 1))
    assert anyio.run(report, tmp_path) == 0
    page = read(tmp_path)
    assert len(page.all("track")) == 200
    assert len(page.all("wave")) == 1000
    assert "audio" not in {tag for tag, _ in page.elements}
    assert (tmp_path / "report.html").stat().st_size < 200 * 12_000 + 50_000


class Browser:
    """A page in Chromium, asked and moved as its reader would."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, directory: Path) -> None:
        """Open a directory's report from the disk."""
        self.driver.get((directory / "report.html").as_uri())

    def all(self, selector: str) -> list[Any]:
        """Return elements."""
        found: list[Any] = self.driver.find_elements("css selector", selector)
        return found

    def track(self, number: int) -> Any:
        """Return a track, scrolled into view."""
        track = self.all(".track")[number]
        self.driver.execute_script("arguments[0].scrollIntoView()", track)
        return track

    def keys(self, *keys: str) -> None:
        """Press keys wherever the focus is."""
        from selenium.webdriver import ActionChains  # noqa: PLC0415 - skipped where it is missing

        ActionChains(self.driver).send_keys(*keys).perform()

    def sounds(self) -> dict[str, dict[str, Any]]:
        """Return the audio elements: name → what is known of them, all of one moment."""
        found: dict[str, dict[str, Any]] = self.driver.execute_script(
            "return Object.fromEntries([...document.querySelectorAll('audio')].map((a) => ["
            "a.parentElement.dataset.name, {at: a.currentTime, muted: a.muted, volume: a.volume, "
            "paused: a.paused, rate: a.playbackRate, error: a.error && a.error.message}]))"
        )
        return found

    def heard(self) -> set[str]:
        """Return the names of what is audible."""
        return {name for name, sound in self.sounds().items() if not sound["muted"]}

    def spread(self) -> float:
        """Return the seconds between the sound that is ahead and the one that is behind."""
        times = [sound["at"] for sound in self.sounds().values()]
        return float(max(times) - min(times))

    def until(self, condition: Callable[[], Any]) -> None:
        """Wait for something."""
        from selenium.webdriver.support.wait import WebDriverWait  # noqa: PLC0415 - see keys

        WebDriverWait(self.driver, HANG, 0.05).until(lambda _: condition())

    def is_playing(self) -> bool:
        """Tell whether everything plays."""
        sounds = self.sounds()
        return bool(sounds) and not any(each["paused"] for each in sounds.values())

    def play(self, number: int = 0) -> Any:
        """Press a track's button and wait until it plays."""
        track = self.track(number)
        track.find_element("css selector", ".play").click()
        self.until(self.is_playing)
        return track

    def status(self) -> str:
        """Return what a screen reader was told last."""
        return str(self.driver.execute_script("return document.getElementById('status').innerText"))

    def complaints(self) -> list[str]:
        """Return what the console has not told yet."""
        return [entry["message"] for entry in self.driver.get_log("browser")]


CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A real Chromium without a window."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    if not CHROMIUM or not DRIVER:
        pytest.skip("Chromium or its driver is missing; Debian: apt install chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for argument in (
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--window-size=1280,1000", f"--user-data-dir={tmp_path_factory.mktemp('profile')}",
    ):  # fmt: skip
        options.add_argument(argument)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of real songs with real stems, one of them with an evil name."""
    directory = tmp_path_factory.mktemp("out") / "100% #1? of 'our' stems"
    directory.mkdir()
    stem_files(directory, "A song", seconds=25)
    stem_files(directory, HOSTILE_FILE, seconds=3)
    for name in ("Third", "Fourth", "Fifth"):
        compose(directory / f"{name} - vocals.mp3", seconds=1)
    anyio.run(report, directory)
    return directory


@pytest.fixture
def browser(driver: Any, directory: Path) -> Iterator[Browser]:
    """The report, open; the console has nothing to say at the end."""
    browser = Browser(driver)
    browser.open(directory)
    yield browser
    assert browser.complaints() == []


A_SONG, EVIL = 1, 0


def test_stems_play_together(browser: Browser) -> None:
    """All stems advance together, and one that is pushed out of step is brought back into it."""
    assert browser.sounds() == {}
    track = browser.play(A_SONG)
    assert set(browser.sounds()) == {"Song", "Vocals", "Drums", "Bass", "Instrumental"}
    browser.until(lambda: min(each["at"] for each in browser.sounds().values()) > 1)
    browser.until(lambda: browser.spread() < 0.05)
    for number, push in ((1, 2.0), (3, 0.1), (4, 0.2)):
        browser.driver.execute_script(
            "document.querySelectorAll('audio')[arguments[0]].currentTime += arguments[1]",
            number,
            push,
        )
        browser.until(lambda: browser.spread() < 0.05)
    assert {each["error"] for each in browser.sounds().values()} == {None}
    track.find_element("css selector", ".play").click()
    browser.until(lambda: all(each["paused"] for each in browser.sounds().values()))
    assert browser.status().startswith("Paused at 0:")


def test_solo_and_mute_change_what_is_heard(browser: Browser) -> None:
    """What a part is heard in is not doubled; solo comes before mute; keys do as buttons do."""
    track = browser.play(A_SONG)
    assert browser.heard() == {"Vocals", "Instrumental"}
    buttons = {each.get_attribute("aria-label"): each for each in browser.all(".choice button")}
    solo = track.find_element("css selector", "[aria-label='Solo Drums']")
    assert buttons
    solo.click()
    assert browser.heard() == {"Drums"}
    assert solo.get_attribute("aria-pressed") == "true"
    assert browser.status() == "Drums: solo on"
    track.find_element("css selector", "[aria-label='Solo Vocals']").click()
    assert browser.heard() == {"Drums", "Vocals"}
    browser.keys("1")
    browser.keys("2")
    assert browser.heard() == {"Vocals", "Instrumental"}
    track.find_element("css selector", "[aria-label='Mute Vocals']").click()
    assert browser.heard() == {"Instrumental"}
    browser.keys("0")
    assert browser.heard() == {"Song"}
    assert {sound["volume"] for sound in browser.sounds().values()} == {1}
    assert browser.is_playing()


def test_a_click_on_a_waveform_moves_all(browser: Browser) -> None:
    """In the middle of any waveform is the middle of every sound, played or paused."""
    from selenium.webdriver import ActionChains  # noqa: PLC0415 - skipped where it is missing

    track = browser.track(A_SONG)
    slider = track.find_element("css selector", ".seek")
    wave = track.find_elements("css selector", ".wave")[2]
    ActionChains(browser.driver).move_to_element(wave).click().perform()
    assert float(slider.get_property("value")) == pytest.approx(12.5, abs=0.2)
    assert slider.get_attribute("aria-valuetext") == "0:12 of 0:25"
    browser.play(A_SONG)
    assert all(each["at"] >= 12 for each in browser.sounds().values())
    ActionChains(browser.driver).move_to_element_with_offset(
        wave, -wave.size["width"] // 2 + 2, 0
    ).click().perform()
    browser.until(lambda: browser.is_playing() and browser.spread() < 0.05)
    assert all(each["at"] < 12 for each in browser.sounds().values())


def test_keys_play_seek_and_move_on(browser: Browser) -> None:
    """Space, arrows, Home and N do what the page's foot says, and leave the search alone."""
    from selenium.webdriver import Keys  # noqa: PLC0415 - skipped where it is missing

    track = browser.track(A_SONG)
    slider = track.find_element("css selector", ".seek")
    browser.driver.execute_script("arguments[0].focus({focusVisible: true})", slider)
    assert track.find_element("css selector", ":focus-visible") == slider
    browser.keys(" ")
    browser.until(browser.is_playing)
    browser.keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    browser.until(
        lambda: browser.is_playing() and all(s["at"] > 10 for s in browser.sounds().values())
    )
    browser.keys(" ")
    browser.until(lambda: not browser.is_playing())
    at = float(slider.get_property("value"))
    assert at >= 10
    browser.keys(Keys.ARROW_LEFT)
    assert float(slider.get_property("value")) == pytest.approx(at - 5, abs=0.01)
    browser.keys(Keys.HOME)
    assert float(slider.get_property("value")) == 0
    browser.keys("n")
    focused = browser.driver.switch_to.active_element
    assert focused.get_attribute("aria-label") == "Play Fifth"
    browser.keys("/")
    browser.keys("1 n")
    assert browser.driver.switch_to.active_element.get_property("value") == "1 n"
    assert not browser.all(".solo[aria-pressed=true]")


def test_an_evil_name_is_only_a_name(browser: Browser) -> None:
    """It is shown, found by the search, and its files play; the page's title is its own."""
    assert browser.driver.title == "100% #1? of 'our' stems · stems"
    track = browser.track(EVIL)
    assert track.find_element("css selector", "h2").text == HOSTILE_FILE
    browser.play(EVIL)
    assert {each["error"] for each in browser.sounds().values()} == {None}
    assert len(browser.sounds()) == 5
    assert browser.driver.title == "100% #1? of 'our' stems · stems"


def test_one_track_has_players_at_a_time(browser: Browser) -> None:
    """Another track that is played takes the place of the first; at its end it can begin anew."""
    first = browser.play(A_SONG)
    second = browser.play(EVIL)
    assert len(browser.sounds()) == 5
    assert not first.find_elements("css selector", "audio")
    browser.until(lambda: browser.status() == "At the end")
    play = second.find_element("css selector", ".play")
    assert play.get_attribute("aria-label") == f"Play {HOSTILE_FILE}"
    assert float(second.find_element("css selector", ".seek").get_property("value")) == 0
    play.click()
    browser.until(browser.is_playing)


def test_searching_leaves_what_matches(browser: Browser) -> None:
    """All words have to be there, whatever their case; nothing found is said."""
    search = browser.all("[type=search]")[0]
    search.send_keys("SONG a")
    assert [each.text for each in browser.all(".track:not([hidden]) h2")] == ["A song"]
    assert browser.status() == "1 of 5 tracks shown"
    search.send_keys(" nowhere")
    assert browser.all("#none")[0].is_displayed()


def test_everything_has_a_name(browser: Browser) -> None:
    """Each control and each region has its role and name for a screen reader."""
    browser.track(A_SONG)
    tree = browser.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    controls = [
        (node["role"]["value"], node["name"]["value"])
        for node in tree
        if node.get("role", {}).get("value") in ("button", "slider", "searchbox", "link", "article")
    ]
    assert all(name for _, name in controls)
    for expected in (
        ("article", "A song"), ("button", "Play A song"), ("slider", "Position in A song"),
        ("button", "Solo Drums"), ("button", "Mute Song"), ("searchbox", "Search tracks"),
    ):  # fmt: skip
        assert expected in controls


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_in_both_schemes(browser: Browser, scheme: str) -> None:
    """At 390 pixels nothing sticks out, and text stands out from what is behind it."""
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    size = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        for number in range(5):
            outside = browser.driver.execute_script(
                "return [...arguments[0].querySelectorAll('*')]"
                ".filter((each) => each.getBoundingClientRect().right > 380)"
                ".map((each) => each.outerHTML)",
                browser.track(number),
            )
            assert outside == []
        assert browser.driver.execute_script("return document.documentElement.scrollWidth") == 390
        ink, page, soft = browser.driver.execute_script(
            "const at = getComputedStyle(document.body);"
            "return [at.color, at.backgroundColor,"
            " getComputedStyle(document.querySelector('.facts')).color]"
        )
        assert contrast(ink, page) > 12
        assert contrast(soft, page) > 4.5
        assert (luminance(page) > 0.5) == (scheme == "light")
    finally:
        browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
        browser.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_print_has_every_waveform_and_no_controls(browser: Browser) -> None:
    """Before it is printed all is drawn, seen before or not; what is to be pressed is left out."""
    low = {"width": 1280, "height": 200, "deviceScaleFactor": 1, "mobile": False}
    browser.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", low)
    browser.driver.refresh()
    try:
        browser.until(lambda: browser.all(".wave svg"))
        assert browser.all("[data-wave]")
        browser.driver.execute_cdp_cmd("Page.printToPDF", {})
        assert len(browser.all(".wave svg")) == len(browser.all(".wave")) == 13
        browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
        assert browser.all("h2")[0].is_displayed()
        for control in (".play", ".seek", ".solo", ".tools", ".hints"):
            assert not browser.all(control)[0].is_displayed()
    finally:
        browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
        browser.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_without_motion_the_playhead_still_tells_where_it_is(browser: Browser) -> None:
    """With reduced motion it moves in steps, and nothing is animated."""
    calm = {"features": [{"name": "prefers-reduced-motion", "value": "reduce"}]}
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", calm)
    try:
        track = browser.play(A_SONG)
        slider = track.find_element("css selector", ".seek")
        browser.until(lambda: float(slider.get_property("value")) > 1)
        assert browser.driver.execute_script("return document.getAnimations().length") == 0
    finally:
        browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def luminance(colour: str) -> float:
    """The relative luminance of ``rgb(…)``, as WCAG defines it."""
    parts = [int(each) / 255 for each in colour.strip("rgb()").split(",")]
    linear = [
        each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in parts
    ]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def contrast(one: str, other: str) -> float:
    """How much two colours stand out from each other, as WCAG defines it."""
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_a_file_that_went_away_is_said_and_the_others_play(driver: Any, tmp_path: Path) -> None:
    """A stem deleted since is marked; the rest of the track plays on without it."""
    stem_files(tmp_path, "x", seconds=5)
    anyio.run(report, tmp_path)
    (tmp_path / "x - bass.wav").unlink()
    browser = Browser(driver)
    browser.open(tmp_path)
    track = browser.track(0)
    track.find_element("css selector", ".play").click()
    browser.until(lambda: "Cannot be played" in track.text)
    browser.until(
        lambda: not any(each["paused"] for each in browser.sounds().values() if not each["error"])
    )
    assert [name for name, each in browser.sounds().items() if each["error"]] == ["Bass"]
    assert all("x%20-%20bass.wav" in each for each in browser.complaints())
