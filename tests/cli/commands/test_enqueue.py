"""Tracks as tasks in a real PostgreSQL, and what is said if there cannot be any."""

from __future__ import annotations

from typing import Any

import pytest
from factories.postgres_fixtures import POSTGRES
from factories.sessions import free_port

pytestmark = pytest.mark.anyio
# What a task queue's database is asked for is the same in all versions.
one_version = pytest.mark.parametrize("postgres_url", POSTGRES[-1:], indirect=True)


@one_version
async def test_a_list_keeps_its_options_and_keys(shell: Any, postgres_url: str) -> None:
    """Each row is a task with the row's options, the command's for the rest, and its key."""
    track = shell.track("song.wav")
    (shell.directory / "list.csv").write_text(
        "source,stems,label,key\nsong.wav,vocals,A song,order 7\nhttps://example.com/a.mp3,,,\n"
    )
    made = await shell.run(
        "enqueue", "--list", "list.csv", "-s", "drums", "--eco", "--json", "--site", "s",
        "--database", postgres_url,
    )  # fmt: skip
    assert made.code == 0, made.err
    assert made.err == "2 tasks enqueued: 1 in musicgpt, 1 in musicgpt@s.\n"
    song, url = made.tracks
    assert song == {
        "task": song["task"],
        "queue": "musicgpt@s",
        "source": str(track),
        "key": "order 7",
        "stems": ["vocals"],
        "eco_mode": True,
        "label": "A song",
    }
    assert (url["queue"], url["source"]) == ("musicgpt", "https://example.com/a.mp3")
    assert url["stems"] == ["drums"]
    assert len(url["key"]) > 32


@one_version
async def test_the_same_command_again_adds_what_is_new(shell: Any, postgres_url: str) -> None:
    """What waits is left alone; a new track and a changed one are added, and --force adds all."""
    command = ("enqueue", "in", "--database", postgres_url)
    for number in range(3):
        shell.track(f"in/{number}.wav")
    assert (await shell.run(*command)).err.startswith("3 tasks enqueued")
    assert "Nothing new to enqueue" in (await shell.run(*command)).err
    shell.track("in/new.wav")
    shell.track("in/0.wav", size=30_000)
    assert (await shell.run(*command)).err.startswith("2 tasks enqueued")
    assert (await shell.run(*command, "--force")).err.startswith("4 tasks enqueued")


@one_version
async def test_what_is_not_audio_is_left_out(shell: Any, postgres_url: str) -> None:
    """A page that is named like a song is reported with exit code 1; the others are enqueued."""
    shell.track("in/song.wav")
    (shell.directory / "in/page.wav").write_text("<!DOCTYPE html><html></html>")
    command = ("enqueue", "in", "--database", postgres_url)
    made = await shell.run(*command)
    assert made.code == 1
    assert "in/page.wav is left out: " in made.err
    assert "1 task enqueued" in made.err
    assert (await shell.run(*command, "--force", "-q")).code == 0


@one_version
async def test_thousands_of_tasks_take_several_batches(shell: Any, postgres_url: str) -> None:
    """As many tasks as tracks, each once, whatever the size of a batch is."""
    urls = [f"https://example.com/{number}.mp3" for number in range(2500)]
    (shell.directory / "urls.txt").write_text("\n".join(urls))
    made = await shell.run("enqueue", "--list", "urls.txt", "--json", "--database", postgres_url)
    assert made.code == 0, made.err
    assert sorted(each["source"] for each in made.tracks) == sorted(urls)
    assert len({each["task"] for each in made.tracks}) == len({each["key"] for each in made.tracks})
    assert len({each["task"] for each in made.tracks}) == 2500


@pytest.mark.parametrize("command", [("enqueue", "in"), ("worker",), ("jobs",)])
async def test_what_is_no_database_is_said_in_a_line(
    command: tuple[str, ...], open_vendor: Any
) -> None:
    """A wrong URL and a server that does not answer each are one line, without the password."""
    async with open_vendor() as (_, shell):
        shell.track("in/song.wav")
        wrong = await shell.run(*command, "--database", "mysql://me:secret@host/db")
        assert "--database takes a URL of PostgreSQL" in wrong.err
        server = f"postgresql://me:secret@127.0.0.1:{free_port()}/db"
        nobody = await shell.run(*command, "--database", server)
        assert "cannot be used: " in nobody.err
        assert (wrong.code, nobody.code) == (2, 1 if command == ("jobs",) else 2)
        for ended in (wrong, nobody):
            assert ended.err.count("\n") == 1, ended.err
            assert "secret" not in ended.err


@pytest.mark.parametrize("command", [("enqueue", "in"), ("worker",)])
async def test_without_the_extra_pip_is_named(command: tuple[str, ...], open_vendor: Any) -> None:
    """Where procrastinate is not installed one line says what to install."""
    async with open_vendor() as (_, shell):
        shell.track("in/song.wav")
        (shell.directory / "hidden").mkdir()
        (shell.directory / "hidden/procrastinate.py").write_text("raise ModuleNotFoundError")
        ended = await shell.run(
            *command,
            "--database",
            "postgresql://host/db",
            PYTHONPATH=str(shell.directory / "hidden"),
        )
        assert ended.code == 2
        assert ended.err == (
            "musicgpt-async: Tasks need packages that are not installed. "
            'Install them with: pip install "musicgpt-async[procrastinate]"\n'
        )
