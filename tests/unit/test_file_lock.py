"""One holder at a time, also while the lock's file comes and goes."""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path

import pytest
from ansible_collections.kloros.llm.plugins.module_utils.file_lock import file_lock


def test_the_file_goes_with_its_holder(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with file_lock(path) as descriptor:
        assert path.stat().st_ino == os.fstat(descriptor).st_ino
    assert not path.exists()
    with pytest.raises(RuntimeError), file_lock(path):
        raise RuntimeError
    assert not path.exists()


@pytest.mark.parametrize("successor", [False, True])
def test_a_lock_whose_name_has_gone_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, successor: bool
) -> None:
    path = tmp_path / "lock"
    flock = fcntl.flock
    calls: list[int] = []

    def flock_after_the_holder_left(descriptor: int, operation: int) -> None:
        calls.append(descriptor)
        if len(calls) == 1:
            path.unlink()
            if successor:
                path.touch()
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock_after_the_holder_left)
    with file_lock(path, sleep=lambda _: None) as descriptor:
        assert path.stat().st_ino == os.fstat(descriptor).st_ino
    assert len(calls) == 2


def test_many_holders_one_after_the_other(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    inside: list[int] = []
    most: list[int] = []

    def work(number: int) -> None:
        for _ in range(50):
            with file_lock(path, sleep=lambda _: None):
                inside.append(number)
                most.append(len(inside))
                inside.remove(number)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert most == [1] * 200


def test_waiting_is_told_once(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    told: list[str] = []
    with file_lock(path) as held:
        naps: list[float] = []

        def nap(seconds: float) -> None:
            naps.append(seconds)
            if len(naps) == 3:
                fcntl.flock(held, fcntl.LOCK_UN)

        with file_lock(path, lambda: told.append("waits"), nap):
            pass
    assert (told, len(naps)) == (["waits"], 3)
