"""Promise 6: SIGHUP rereads what may change while the service runs."""
import shutil
import signal
import subprocess
import time

import pytest

import harness
from harness import SLOWER, eventually
from origin import HOSTS


def make_authority(file):
    """One that the origin is not certified by."""
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt",
                    "ec_paramgen_curve:P-256", "-nodes", "-keyout", "/dev/null", "-out", file,
                    "-subj", "/CN=other", "-days", "2"], check=True, capture_output=True)


@pytest.fixture
def reloadable(start, tmp_path):
    """start_with(text, *args): a service whose options are in a file; rewrite(text) reloads it."""
    file = tmp_path / "batchfetch.conf"

    class Reloadable:
        def start(self, text, *args):
            file.write_text(text)
            self.service = start("--config", file, *args)
            return self.service

        def rewrite(self, text, said=' reloaded '):
            before = len(self.service.stderr())
            file.write_text(text)
            self.service.process.send_signal(signal.SIGHUP)
            eventually(lambda: said in self.service.stderr()[before:], what=said)
            return self.service.stderr()[before:]
    return Reloadable()


def test_promise_6_a_host_s_limit_changes_while_a_batch_runs(reloadable, origin):
    service = reloadable.start("max-per-host = 3\n")
    batch = service.submit([origin.url(f"/delay/0.2?{i}") for i in range(400)])
    eventually(lambda: origin.active() == 3)
    said = reloadable.rewrite("max-per-host = 40\n")
    assert 'setting_changed option=max-per-host' in said
    eventually(lambda: origin.active() > 30)
    assert origin.peaks()["*"] <= 40
    reloadable.rewrite("max-per-host = 2\n")
    eventually(lambda: origin.active() == 2)
    time.sleep(0.5)
    assert origin.active() <= 2
    reloadable.rewrite("max-per-host = 100\n")
    service.finish(batch)


def test_promise_6_the_limit_of_all_and_the_rate_change_while_a_batch_runs(reloadable, origin):
    service = reloadable.start("max-parallel = 4\n", "--fetchers", 2)
    batch = service.submit([origin.url(f"/delay/0.1?{i}", HOSTS[i % 10]) for i in range(1500)])
    eventually(lambda: origin.active() == 4)
    assert origin.peaks()["*"] <= 4
    reloadable.rewrite("max-parallel = 60\n")
    eventually(lambda: origin.active() > 50)
    assert origin.peaks()["*"] <= 60
    reloadable.rewrite("max-parallel = 3\n")
    eventually(lambda: origin.active() <= 3)
    time.sleep(0.3)
    assert origin.active() <= 3
    reloadable.rewrite("max-parallel = 60\nrate-per-host = 1\n")
    time.sleep(1.2)  # what was started before ends
    arrived = origin.arrivals()
    time.sleep(1)
    assert origin.arrivals() - arrived <= 30, "10 hosts, each one a second"
    reloadable.rewrite("max-parallel = 200\nrate-per-host = none\nmax-per-host = 100\n")
    service.finish(batch)


def test_promise_6_log_level_and_timeouts_change_and_the_rest_is_named(reloadable, origin):
    service = reloadable.start("log-level = warn\nmax-urls = 50\n")
    service.run([origin.url("/bytes/1")])
    assert " batch_ended " not in service.stderr()
    said = reloadable.rewrite("log-level = info\nmax-urls = 60\ntimeout-ms = 300\n")
    assert "setting_needs_restart option=max-urls" in said
    assert "option=log-level" in said and "option=timeout-ms" in said
    result = service.one(origin.url("/delay/5"))
    assert result["error"]["code"] == "timeout"
    assert " batch_ended " in service.stderr()
    service.post("/v1/batches", {"urls": ["http://127.0.0.1/"] * 55}).expect(413, 422)


@pytest.mark.parametrize("text, said", [
    ("max-per-host = many\n", "max-per-host"), ("nonsense = 1\n", "nonsense"), ("???\n", "line=1"),
    ("max-per-host = 5\nlog-level = loud\n", "log-level")])
def test_promise_6_a_file_with_an_error_changes_nothing(reloadable, origin, text, said):
    service = reloadable.start("max-per-host = 3\n")
    log = reloadable.rewrite(text, said=" reload_failed ")
    assert said in log and "setting_changed" not in log
    assert b'batchfetch_health{cause="reload_failed"} 1' in service.get("/metrics", keep=1 << 20).body
    service.get("/readyz").expect(200)
    batch = service.submit([origin.url(f"/delay/0.1?{i}") for i in range(20)])
    eventually(lambda: origin.active() == 3)
    service.finish(batch)
    assert origin.peaks()["*"] == 3
    reloadable.rewrite("max-per-host = 3\n")
    eventually(lambda: b'batchfetch_health{cause="reload_failed"} 0'
               in service.get("/metrics", keep=1 << 20).body)


def test_promise_6_certificates_are_read_again(reloadable, origin, tmp_path):
    """An authority that is trusted from now on; then a file that is none."""
    ca = tmp_path / "ca.pem"
    make_authority(ca)
    service = reloadable.start("", "--ca-file", ca)
    url = origin.https("/bytes/5")
    assert service.one(url)["error"]["code"] == "tls"
    shutil.copy(origin.ca_file, ca)
    reloadable.rewrite("")
    assert service.one(url)["status"] == "succeeded"
    ca.write_text("none")
    reloadable.rewrite("", said=" reload_failed ")
    assert service.one(url)["status"] == "succeeded"


def test_promise_6_reloads_without_pause_disturb_nothing(reloadable, origin):
    service = reloadable.start("max-per-host = 5\n")
    batch = service.submit([origin.url(f"/bytes/9?{i}", HOSTS[i % 20]) for i in
                            range(harness.size(5000, 500))])
    rounds = 0
    while service.batch(batch["id"])["status"] != "completed" and rounds < 300:
        service.process.send_signal(signal.SIGHUP)
        time.sleep(0.002 * SLOWER)
        rounds += 1
    results = service.finish(batch)
    assert all(r["status"] == "succeeded" for r in results)
