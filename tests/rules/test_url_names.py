"""What a track is called that is given by its URL."""

from __future__ import annotations

import pytest

from musicgpt_async._io.sources import parse_source
from musicgpt_async._rules.filenames import name_in_url, title_of

ID = "dQw4w9WgXcQ"


@pytest.mark.parametrize(
    "url",
    [
        f"https://www.youtube.com/watch?v={ID}",
        f"https://youtube.com/watch?feature=share&v={ID}&t=42s",
        f"https://m.youtube.com/watch?v={ID}#t=1",
        f"https://music.youtube.com/watch?v={ID}&list=RDAMVM",
        f"https://youtu.be/{ID}?si=abc",
        f"https://www.youtube.com/shorts/{ID}",
        f"https://www.youtube.com/embed/{ID}",
        f"https://www.youtube.com/live/{ID}?feature=share",
        f"https://www.youtube-nocookie.com/embed/{ID}",
        f"HTTPS://WWW.YOUTUBE.COM/watch?v={ID}",
    ],
)
def test_a_youtube_url_names_its_track_by_the_video(url: str) -> None:
    """Not by "watch", which every video would be called."""
    assert name_in_url(url) == title_of(url) == f"YouTube {ID}"
    assert parse_source(url).title == f"YouTube {ID}"


@pytest.mark.parametrize(
    ("url", "name", "title"),
    [
        ("https://h/a/My%20song.mp3?x=1", "My song.mp3", "My song"),
        ("https://h/", "", ""),
        ("https://notyoutube.com/watch?v=dQw4w9WgXcQ", "watch", "watch"),
        ("https://youtube.com.evil.example/watch?v=dQw4w9WgXcQ", "watch", "watch"),
        ("https://www.youtube.com/watch?v=../../etc", "watch", "watch"),
        ("https://www.youtube.com/playlist?list=PL123456789", "YouTube PL123456789",
         "YouTube PL123456789"),
    ],
)  # fmt: skip
def test_other_urls_keep_the_name_of_their_file(url: str, name: str, title: str) -> None:
    """Another site's "watch" may be anything, and an id is one word."""
    assert (name_in_url(url), title_of(url)) == (name, title)


def test_a_path_has_its_own_name() -> None:
    """And what is not a URL has none."""
    assert title_of("/music/a.b.flac") == "a.b"
    assert title_of("https://[") == ""
