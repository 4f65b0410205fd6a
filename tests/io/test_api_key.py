from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from musicgpt_async import ConfigurationError, MusicGPTSession
from musicgpt_async._io.api_key import KEY_FILE_VARIABLE, KEY_VARIABLE, find_key

# A keyring of its own: no machine that runs tests has one.
BACKEND = """
from keyring.backend import KeyringBackend

class Backend(KeyringBackend):
    priority = 1

    def get_password(self, service, username):
        return "keyring-key" if (service, username) == ("musicgpt-async", "api-key") else None

    def set_password(self, service, username, password):
        raise NotImplementedError
"""


def test_the_variable_goes_before_the_file(tmp_path: Path) -> None:
    """The key is the variable's, else the content of the file, without its line end."""
    (tmp_path / "key").write_text("file-key\n")
    named = {KEY_FILE_VARIABLE: str(tmp_path / "key")}
    assert find_key(named).key == "file-key"
    assert find_key({**named, KEY_VARIABLE: " own-key "}).key == "own-key"
    assert find_key({}).key == ""


@pytest.mark.parametrize(("content", "reason"), [(None, "No such file"), (b" \n", "is empty")])
def test_a_file_without_a_key_is_an_error(
    tmp_path: Path, content: bytes | None, reason: str
) -> None:
    """It is named, with what is wrong with it; no other source of the key is tried."""
    path = tmp_path / "key"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=reason) as caught:
        find_key({KEY_FILE_VARIABLE: str(path)}, keyring=True)
    assert str(path) in str(caught.value)


def test_a_session_takes_the_key_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`MUSICGPT_API_KEY_FILE` is enough for a session, as a container's secrets are files."""
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    with pytest.raises(ConfigurationError, match=KEY_FILE_VARIABLE):
        MusicGPTSession()
    (tmp_path / "key").write_text("file-key")
    monkeypatch.setenv(KEY_FILE_VARIABLE, str(tmp_path / "key"))
    MusicGPTSession()


def test_the_command_asks_the_keyring_last(tmp_path: Path) -> None:
    """With the extra `keyring` the key of the system's keyring is used if nothing else is set."""
    pytest.importorskip("keyring")
    (tmp_path / "stored.py").write_text(BACKEND)
    script = (
        "from musicgpt_async._io.api_key import find_key\n"
        "print(find_key(keyring=True).key, find_key().key or None)"
    )
    environment = {
        "PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)]),
        "PYTHON_KEYRING_BACKEND": "stored.Backend",
    }
    ended = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert ended.stdout.split() == ["keyring-key", "None"]
