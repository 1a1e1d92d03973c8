"""Before anything is served: --check, a port that is taken, variables that mean nothing."""
import os
import socket
import sqlite3
import subprocess

import pytest

import harness


def run(*args, **env):
    clean = {k: v for k, v in os.environ.items() if not k.startswith("BATCHFETCH_")}
    return subprocess.run([harness.BINARY, *map(str, args)], capture_output=True, text=True,
                          env=clean | env, timeout=30 * harness.SLOWER)


def everything(folder):
    return sorted((str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in folder.rglob("*"))


def test_check_leaves_nothing_behind(tmp_path):
    data = tmp_path / "a" / "data"
    done = run("--check", "--data", data)
    assert done.returncode == 0 and done.stderr == ""
    assert f"data = {data}\n" in done.stdout
    assert everything(tmp_path) == []


def test_check_sees_the_database(start, origin):
    service = start()
    service.wait(service.submit([origin.url("/bytes/5")])["id"])
    assert run("--check", "--data", service.data).returncode == 0  # while it runs, too
    service.stop()
    before = everything(service.data)
    assert run("--check", "--data", service.data).returncode == 0
    assert everything(service.data) == before
    db = sqlite3.connect(service.data / "batchfetch.db")
    db.execute("PRAGMA user_version=1000")
    db.close()
    before = everything(service.data)
    done = run("--check", "--data", service.data)
    assert done.returncode == 3 and "version 1000" in done.stderr
    assert "max-urls = " in done.stdout
    assert everything(service.data) == before


def test_promise_5_a_newer_database_is_refused(start, origin):
    service = start()
    service.one(origin.url("/bytes/5"))
    service.stop()
    db = sqlite3.connect(service.data / "batchfetch.db")
    db.execute("PRAGMA user_version=1000")
    db.close()
    before = everything(service.data)
    done = run("--listen", "127.0.0.1:0", "--data", service.data)
    assert done.returncode == 3 and done.stdout == ""
    assert "the database has version 1000" in done.stderr
    assert "use a newer program" in done.stderr
    after = {entry for entry in everything(service.data) if entry[1] > 0}
    assert {e for e in after if not e[0].endswith("-shm")} <= set(before)


def test_promise_5_a_second_process_is_refused(start, origin):
    service = start()
    service.one(origin.url("/bytes/5"))
    before = [p for p in everything(service.data) if not p[0].endswith("-shm")]
    done = run("--listen", "127.0.0.1:0", "--data", service.data)
    assert done.returncode == 3 and done.stdout == ""
    assert f"{service.data} is in use by another process" in done.stderr
    assert [p for p in everything(service.data) if not p[0].endswith("-shm")] == before
    assert service.one(origin.url("/bytes/6"))["status"] == "succeeded"


def test_check_refuses_a_directory_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("x")
    done = run("--check", "--data", tmp_path / "file" / "data")
    assert done.returncode == 3
    assert done.stderr.startswith("batchfetch: --data: ") and "Not a directory" in done.stderr


def test_a_port_that_is_taken_is_known_before_the_database_is_touched(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run("--listen", f"127.0.0.1:{port}", "--data", tmp_path / "data")
    assert done.returncode == 3 and done.stdout == ""
    assert f"cannot listen on 127.0.0.1 port {port}: Address already in use" in done.stderr
    assert everything(tmp_path) == []


@pytest.mark.parametrize("name", ["BATCHFETCH_PORT", "BATCHFETCH_WORKERS"])
def test_an_unknown_variable_is_mentioned(tmp_path, name):
    done = run("--check", "--data", tmp_path, **{name: "8"})
    assert done.returncode == 0
    assert done.stderr == \
        f"batchfetch: environment: {name} is ignored: there is no such option\n"
