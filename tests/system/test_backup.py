"""batchfetch backup (promise 5): a copy taken while the service works is whole, another service can be
started on it, and the service is not harmed by it."""
import os
import pathlib
import signal
import sqlite3
import subprocess
import threading
import time

import pytest

import harness
from harness import check_complete, eventually, size
from origin import HOSTS, content


def command(service, *args):
    return [harness.BINARY, "backup", "--data", service.data, *map(str, args)]


def backup(service, *args, status=0):
    done = subprocess.run(command(service, *args), env=service.env, capture_output=True, text=True,
                          timeout=60 * harness.SLOWER)
    assert done.returncode == status, done
    assert not harness.REPORTS.search(done.stderr), done.stderr
    return done


def second(service, file):
    """A service on the copy."""
    other = harness.Service(harness.temp_dir("service"), *service.args[2:], allow_net=None)
    other.data.mkdir()
    os.rename(file, other.data / "batchfetch.db")
    return other


def items(service, path):
    """Of a list, all pages of it."""
    pages, found = harness.unrecorded(service, path), []
    page = next(pages)
    while True:
        found += page["data"]
        if not page["has_more"]:
            return found
        page = pages.send(f"{path}&after={page['next']}")


def results_of(service, batch_id):
    return sorted(items(service, f"/v1/batches/{batch_id}/results?limit=1000&include=body"),
                  key=lambda r: r["index"])


def comparable(results):
    return [(r["index"], r["url"], r["status"], r["http_status"], r["completed_at"], r["body"])
            for r in results]


@pytest.mark.slow
def test_promise_5_a_backup_under_full_load(start, origin):
    """All that was answered with 202 before it began is in it, goes on, and ends the same."""
    service = start("--max-per-host", 50)
    bulky = service.submit([origin.url(f"/bytes/30000?t=k{i}") for i in range(size(100))])
    service.wait(bulky["id"])
    accepted, stop, failures = [], threading.Event(), []

    def submit(k):
        client, n = service.client(), 0
        while not stop.is_set():
            urls = [origin.url(f"/bytes/200?t=l{k}-{n}-{i}", HOSTS[i % 9]) for i in range(100)]
            answer = client.request("POST", "/v1/batches", {"urls": urls, "name": f"{k}-{n}"})
            if answer.status != 202:
                failures.append(answer)
                return
            accepted.append(answer.json()["id"])
            n += 1

    def read():
        for _ in harness.unrecorded(service,
                                    f"/v1/batches/{bulky['id']}/results?limit=100&include=body"):
            if stop.is_set():
                break

    paused = service.submit([origin.url(f"/delay/0.1?b{i}") for i in range(500)])
    service.post(f"/v1/batches/{paused['id']}/pause").expect(200)
    threads = [threading.Thread(target=submit, args=(k,)) for k in range(2)]
    threads.append(threading.Thread(target=read))
    for t in threads:
        t.start()
    eventually(lambda: len(accepted) >= 10, 30)
    copies = []
    for n in range(2):  # the second one after some more
        before = list(accepted)
        file = service.dir / f"copy-{n}.db"
        done = backup(service, file)
        copies.append((file, before))
        assert f"{file}: {file.stat().st_size} bytes of " in done.stdout and done.stderr == ""
        assert file.stat().st_mode & 0o777 == 0o600
        assert not list(service.dir.glob("*.part*"))
    stop.set()
    for t in threads:
        t.join()
    assert not failures, failures
    for batch_id in accepted[-20:]:
        service.wait(batch_id)
    for file, before in copies:
        assert len(before) >= 10
        other = second(service, file)
        check = subprocess.run([harness.BINARY, "--check", "--data", other.data, *other.args],
                               env=other.env, capture_output=True, text=True)
        assert check.returncode == 0, check.stderr
        try:
            other.start()
            there = {b["id"] for b in items(other, "/v1/batches?limit=1000")}
            assert there >= {bulky["id"], paused["id"], *before}
            for batch_id in [bulky["id"], *before[:5], *before[-10:]]:
                at, results = other.wait(batch_id), results_of(other, batch_id)
                check_complete(at, results)
                service.wait(batch_id)
                assert [r["url"] for r in results] == \
                    [r["url"] for r in results_of(service, batch_id)]
                for r in results:
                    assert r["status"] == "succeeded", r
                    token = r["url"].partition("t=")[2]
                    assert r["body"].encode() == content(len(r["body"]), token)
            assert comparable(results_of(other, bulky["id"])) == \
                comparable(results_of(service, bulky["id"]))
            assert other.batch(paused["id"])["status"] == "paused"
            other.post(f"/v1/batches/{paused['id']}/resume").expect(200)
            eventually(lambda: other.batch(paused["id"])["request_counts"]["succeeded"] > 60)
            other.delete(f"/v1/batches/{paused['id']}").expect(204)
            other.stop()
        finally:
            if other.process is not None:
                other.kill()
    service.delete(f"/v1/batches/{paused['id']}").expect(204)


def test_promise_5_a_backup_of_a_stopped_service(start, origin):
    service = start()
    batch = service.submit([origin.url(f"/bytes/1000?t=s{i}") for i in range(50)])
    service.wait(batch["id"])
    results = service.results(batch["id"], include="body")
    service.kill()  # so that part of it is in the log only
    target = service.dir / "backups"
    target.mkdir()
    backup(service, target)  # a directory of its own, which can be opened as it is
    assert [p.name for p in target.iterdir()] == ["batchfetch.db"]
    other = second(service, target / "batchfetch.db").start()
    try:
        assert other.results(batch["id"], include="body") == results
    finally:
        other.stop()
    service.start()
    assert service.results(batch["id"], include="body") == results


def test_promise_5_what_it_refuses(start, origin, tmp_path):
    service = start()
    service.one(origin.url("/bytes/1"))
    file = tmp_path / "copy"
    file.write_text("mine")
    assert "File exists" in backup(service, file, status=1).stderr
    assert file.read_text() == "mine"
    dangling = tmp_path / "dangling"
    dangling.symlink_to(tmp_path / "nowhere")
    assert "File exists" in backup(service, dangling, status=1).stderr
    assert "No such file" in backup(service, tmp_path / "no" / "copy", status=1).stderr
    assert "FILE is missing" in backup(service, status=2).stderr
    assert "unexpected argument" in backup(service, tmp_path / "a", "b", status=2).stderr
    empty = tmp_path / "empty"
    empty.mkdir()
    bad = harness.Service(tmp_path)
    bad.data = empty
    assert "No such file" in backup(bad, tmp_path / "c", status=1).stderr
    (empty / "batchfetch.db").write_bytes(b"x" * 5000)
    assert "not a database" in backup(bad, tmp_path / "c", status=1).stderr
    (empty / "batchfetch.db").unlink()
    sqlite3.connect(empty / "batchfetch.db").execute("CREATE TABLE t(a)")
    assert "not one of batchfetch's" in backup(bad, tmp_path / "c", status=1).stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["copy", "dangling", "empty"]


def wal_bytes(service):
    path = pathlib.Path(service.data, "batchfetch.db-wal")
    return path.stat().st_size if path.exists() else 0


def begun(service, file, *args):
    """A backup that has begun to copy, and then stands still."""
    process = subprocess.Popen(command(service, file, *args), env=service.env,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 20
    while not [p for p in file.parent.glob(file.name + ".part-*") if p.stat().st_size > 0]:
        assert process.poll() is None and time.monotonic() < end, process.communicate()
    process.send_signal(signal.SIGSTOP)
    return process


@pytest.mark.slow
def test_promise_5_a_backup_that_takes_too_long_gives_up(start, origin):
    """Meanwhile the service goes on; afterwards its log gets short again."""
    service = start()
    batch = service.submit([origin.url(f"/bytes/4000000?t=g{i}") for i in range(size(30, 15))],
                           defaults={"max_body_bytes": 5000000})
    service.wait(batch["id"])
    file = service.dir / "copy"
    process = begun(service, file, "--backup-max-log", "2m")
    log = wal_bytes(service)
    while wal_bytes(service) < log + 4000000:
        done = service.submit([origin.url(f"/bytes/10000?t=h{i}") for i in range(200)])
        assert service.wait(done["id"])["status"] == "completed"
    process.send_signal(signal.SIGCONT)
    _, stderr = process.communicate(timeout=30 * harness.SLOWER)
    assert process.returncode == 1 and "it grew too large" in stderr, stderr
    assert not list(service.dir.glob("copy*"))
    # One that is told to stop leaves nothing either.
    process = begun(service, file)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGCONT)
    _, stderr = process.communicate(timeout=30 * harness.SLOWER)
    assert process.returncode == 1 and "stopped" in stderr, stderr
    assert not list(service.dir.glob("copy*"))
    backup(service, file)
    assert len(service.results(batch["id"])) == size(30, 15)
