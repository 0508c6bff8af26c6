"""The lock of a folder: one holder at a time; dead holders are superseded."""

import errno
import io
import json
import os
import pathlib
import subprocess
import sys
import threading
import time

import pytest

from train_jax.output import lock
from train_jax.storage import store

ELSEWHERE = {"pid": 17, "start": "1", "host": "colab-7", "machine": "another one"}


def write(folder, number=1, **changes):
    holder = lock._this_process() | changes
    (folder / f"lock.{number}").write_text(json.dumps(holder))


@pytest.fixture
def no_watch(monkeypatch):
    """Do not wait whether a lock is renewed."""
    monkeypatch.setattr(lock, "RENEW_SECONDS", 0.0)


def test_a_lock_keeps_others_out_until_it_is_closed(tmp_path):
    folder = tmp_path / "a" / "run"
    held = lock.acquire(folder)
    message = f"is in use by process {os.getpid()} on host "
    for refuse in (lock.acquire, lock.check_free):
        with pytest.raises(lock.InUseError, match=message):
            refuse(folder)
    held.check()
    held.close()
    assert list(folder.iterdir()) == []
    lock.check_free(folder)
    lock.acquire(folder).close()


def test_a_folder_that_is_not_there_is_free(tmp_path):
    lock.check_free(tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("changes", [{"pid": 2**22 + 1}, {"start": "0"}])
def test_the_lock_of_a_process_that_has_ended_is_dead_at_once(tmp_path, changes):
    write(tmp_path, **changes)  # no such process, or another one that has its number
    with_number = lock.acquire(tmp_path)
    assert with_number.path.name == "lock.2"
    assert [path.name for path in tmp_path.iterdir()] == ["lock.2"]
    with_number.close()


def test_the_lock_of_a_zombie_process_is_dead(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    while lock._start_time(process.pid) is not None:  # until it is a zombie
        time.sleep(0.01)
    write(tmp_path, pid=process.pid)
    lock.check_free(tmp_path)
    process.wait()


@pytest.mark.parametrize("sign", [1, -1])
def test_lock_of_another_machine_is_valid_while_renewed(tmp_path, capsys, sign):
    recently = time.time() - sign * (lock.LEASE_SECONDS - 30)
    write(tmp_path, **ELSEWHERE, renewed=recently)
    with pytest.raises(lock.InUseError) as caught:
        lock.acquire(tmp_path)
    assert str(caught.value) == (
        f"'{tmp_path}' is in use by process 17 on host colab-7; if that machine is "
        "lost, start again in 30 s"
    )
    write(tmp_path, **ELSEWHERE, renewed=time.time() - sign * (lock.LEASE_SECONDS + 1))
    waits = []
    lock.acquire(tmp_path, waits.append).close()
    assert waits == [2 * lock.RENEW_SECONDS]
    assert capsys.readouterr().err == (
        "waiting 40 s for a sign of life of process 17 on host colab-7, which held "
        f"'{tmp_path}'\n"
    )


def test_lock_of_a_machine_with_a_wrong_clock_is_valid_if_renewed(tmp_path):
    long_ago = time.time() - 2 * lock.LEASE_SECONDS
    write(tmp_path, **ELSEWHERE, renewed=long_ago)

    def renew(_):
        write(tmp_path, **ELSEWHERE, renewed=long_ago + lock.RENEW_SECONDS)

    with pytest.raises(lock.InUseError, match="process 17 on host colab-7"):
        lock.acquire(tmp_path, renew)
    assert [path.name for path in tmp_path.iterdir()] == ["lock.1"]


@pytest.mark.parametrize("text", ["", "{", "[1]"])
def test_an_unreadable_lock_expires(tmp_path, no_watch, text):
    (tmp_path / "lock.3").write_text(text)
    with pytest.raises(lock.InUseError, match="process unknown on host unknown"):
        lock.acquire(tmp_path)
    old = time.time() - lock.LEASE_SECONDS - 1
    os.utime(tmp_path / "lock.3", (old, old))
    held = lock.acquire(tmp_path)
    assert held.path.name == "lock.4"
    held.close()


def test_a_holder_whose_lock_was_superseded_notices(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "RENEW_SECONDS", 0.01)
    held = lock.acquire(tmp_path)
    write(tmp_path, number=2, **ELSEWHERE)
    time.sleep(0.05)  # a renewal may be under way
    before = held.path.read_text()
    with pytest.raises(
        lock.LostError, match=r"^process 17 on host colab-7 has taken over "
    ):
        held.check()
    time.sleep(0.1)
    assert held.path.read_text() == before
    held.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lock.1", "lock.2"]


def test_a_lock_of_another_process_with_the_same_name(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "RENEW_SECONDS", 0.01)
    held = lock.acquire(tmp_path)
    write(tmp_path, **ELSEWHERE)  # taken over, released, and taken by a third one
    text = held.path.read_text()
    with pytest.raises(lock.LostError, match="process 17 on host colab-7 has taken"):
        held.check()
    time.sleep(0.1)
    held.close()
    assert held.path.read_text() == text
    held.path.unlink()
    with pytest.raises(lock.LostError, match="its lock was deleted"):
        held.check()


def test_a_living_lock_of_a_lower_number_is_respected(tmp_path, monkeypatch):
    write(tmp_path, start="0")
    create = store.create_file

    def create_late(path, content):
        # Meanwhile another one has taken lock.2 and released it, and a third lock.1.
        write(tmp_path, **ELSEWHERE)
        return create(path, content)

    monkeypatch.setattr(store, "create_file", create_late)
    with pytest.raises(lock.InUseError, match="process 17 on host colab-7"):
        lock.acquire(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["lock.1"]


def test_a_lock_that_cannot_be_written_is_not_left(tmp_path, monkeypatch):
    class FullDisk(io.BytesIO):
        def write(self, *_):
            raise OSError(errno.ENOSPC, "No space left on device")

    real_open = pathlib.Path.open

    def open_there(path, mode="r", **how):
        file = real_open(path, mode, **how)
        if mode != "xb":
            return file
        file.close()
        return FullDisk()

    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "open", open_there)
        with pytest.raises(OSError, match="No space left"):
            lock.acquire(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_lock_of_a_process_with_unknown_start_expires(tmp_path, monkeypatch):
    write(tmp_path)
    monkeypatch.setattr(lock, "_start_time", lambda _: lock._UNKNOWN)
    with pytest.raises(lock.InUseError, match="if that machine is lost, start again"):
        lock.acquire(tmp_path)


def test_a_lock_is_renewed(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "RENEW_SECONDS", 0.01)
    held = lock.acquire(tmp_path)
    first = lock._read(held.path)["renewed"]
    end = time.monotonic() + 60  # only so that a failure ends
    while lock._read(held.path).get("renewed", first) == first:
        assert time.monotonic() < end
        time.sleep(0.01)
    held.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("is_stale", [False, True])
def test_only_one_of_many_threads_gets_the_lock(tmp_path, is_stale):
    count = 8
    for _ in range(20):
        if is_stale:
            write(tmp_path, number=3, start="0")
        barrier, results = threading.Barrier(count), []

        def compete(barrier=barrier, results=results):
            barrier.wait()
            try:
                held = lock.acquire(tmp_path)
            except lock.InUseError:
                held = None
            results.append(held)

        threads = [threading.Thread(target=compete) for _ in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        (held,) = [each for each in results if each is not None]
        held.check()
        held.close()
        assert list(tmp_path.iterdir()) == []
