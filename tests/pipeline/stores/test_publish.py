"""Atomic writes: whole or not at all, in the face of exceptions, races and kill -9."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.stores.publish import TEMPORARY, atomic_file, atomic_folder, write_if_changed, write_text


def leftovers(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if name.startswith(TEMPORARY)]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError), atomic_file(path) as file:
        file.write(b"half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_team_can_read_it(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "x")
    with atomic_folder(tmp_path / "f"):
        pass
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o644
    assert (tmp_path / "f").stat().st_mode & 0o777 == 0o755


def test_write_if_changed(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.txt"
    assert write_if_changed(path, "x")
    os.utime(path, ns=(1, 1))
    assert not write_if_changed(path, "x")
    assert path.stat().st_mtime_ns == 1
    assert write_if_changed(path, "y")
    assert path.read_text() == "y"


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "f") as folder:
        (folder / "part").write_text("x")
        assert not (tmp_path / "f").exists()
        raise RuntimeError
    assert os.listdir(tmp_path) == []


def test_the_first_of_two_writers_wins(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "f") as one:
        (one / "x").write_text("one")
        with atomic_folder(tmp_path / "f") as two:
            (two / "x").write_text("two")
    assert (tmp_path / "f" / "x").read_text() == "two"
    assert leftovers(tmp_path) == []


def test_processes_that_make_the_same_new_folders_at_the_same_moment(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from pipeline.stores.publish import atomic_folder\n"
        "root, name = Path(sys.argv[1]), sys.argv[2]\n"
        "for index in range(1000):\n"
        "    with atomic_folder(root / str(index) / name, root=root) as folder:\n"
        "        (folder / 'x').write_text(name)\n"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path), name], stderr=subprocess.PIPE, text=True)
        for name in "abcd"
    ]
    assert [process.communicate()[1] for process in processes] == ["", "", "", ""]
    assert all({name.name for name in (tmp_path / str(index)).iterdir()} == set("abcd") for index in range(1000))


def test_kill_leaves_nothing_visible(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from pipeline.stores.publish import atomic_file, atomic_folder\n"
        "root = Path(sys.argv[1])\n"
        "with atomic_file(root / 'a') as f, atomic_folder(root / 'd') as d:\n"
        "    f.write(b'half'); f.flush(); (d / 'half').write_text('x'); print('ready', flush=True); time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(0.05)
    assert len(leftovers(tmp_path)) == len(os.listdir(tmp_path)) == 2
