"""The report in a real browser, moved as its reader would."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
from factories.reports import HANG, HOSTILE_FILE, stem_files

from musicgpt_async.cli.report import report
from musicgpt_async.cli.settings import Settings
from musicgpt_async.emulator.audio.song import compose


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
        """Return whether everything plays."""
        sounds = self.sounds()
        return bool(sounds) and not any(each["paused"] for each in sounds.values())

    def play(self, number: int = 0) -> Any:
        """Press a track's button and wait until it plays."""
        track = self.track(number)
        track.find_element("css selector", ".play").click()
        self.until(self.is_playing)
        return track

    def status(self) -> str:
        """Return the last announcement for screen readers."""
        return str(self.driver.execute_script("return document.getElementById('status').innerText"))

    def complaints(self) -> list[str]:
        """Return the console's messages since the last call."""
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
    anyio.run(report, Settings(out=directory))
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
    waveform = track.find_elements("css selector", ".wave")[2]
    ActionChains(browser.driver).move_to_element(waveform).click().perform()
    assert float(slider.get_property("value")) == pytest.approx(12.5, abs=0.2)
    assert slider.get_attribute("aria-valuetext") == "0:12 of 0:25"
    browser.play(A_SONG)
    assert all(each["at"] >= 12 for each in browser.sounds().values())
    ActionChains(browser.driver).move_to_element_with_offset(
        waveform, -waveform.size["width"] // 2 + 2, 0
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


def test_tracks_are_ordered_as_asked(browser: Browser) -> None:
    """By length the longest track comes first; the order of work is there again afterwards."""
    from selenium.webdriver.support.select import Select  # noqa: PLC0415 - see Browser.keys

    titles = "return [...document.querySelectorAll('.track h2')].map((each) => each.textContent)"
    made = browser.driver.execute_script(titles)
    select = Select(browser.all(".tools select")[0])
    lengths = "return [...document.querySelectorAll('.track')].map((a) => a.dataset.seconds * 1)"
    for value, script, key in (("name", titles, str.lower), ("length", lengths, lambda s: -s)):
        select.select_by_value(value)
        found = browser.driver.execute_script(script)
        assert found == sorted(found, key=key)
    select.select_by_value("")
    assert browser.driver.execute_script(titles) == made


def test_a_link_opens_a_player_at_its_time(browser: Browser) -> None:
    """The copied link names a track and a second; opened anew, the player is at that position."""
    track = browser.track(A_SONG)
    browser.until(lambda: track.find_elements("css selector", ".axis span"))
    axis = track.find_elements("css selector", ".axis span")
    assert axis[0].get_attribute("textContent") == "0:00"
    assert len(axis) > 2
    browser.play(A_SONG)
    browser.keys(" ")
    browser.keys(*("\ue014" * 2))  # ten seconds on
    track.find_element("css selector", ".share").click()
    url = browser.driver.current_url
    assert "#track-" in url
    seconds = int(url.rpartition("@")[2])
    assert seconds >= 10
    browser.driver.get("about:blank")
    browser.driver.get(url)
    browser.until(lambda: browser.all(".track.active"))
    shown = browser.all(".track.active .time b")[0].get_attribute("textContent")
    assert shown == f"0:{seconds:02}"
    browser.driver.get(f"{url.partition('#')[0]}#track-000000000000")
    browser.until(browser.all("#missing")[0].is_displayed)


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
    """At 390 pixels nothing overflows, and text contrasts with its background."""
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
    """The contrast of two colours, as WCAG defines it."""
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_a_file_that_went_away_is_said_and_the_others_play(driver: Any, tmp_path: Path) -> None:
    """A stem deleted since is marked; the rest of the track plays on without it."""
    stem_files(tmp_path, "x", seconds=5)
    anyio.run(report, Settings(out=tmp_path))
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
