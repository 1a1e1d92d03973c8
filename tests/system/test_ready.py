"""/readyz: whether the service takes new work, and if not, why. /healthz: whether it lives."""
import pathlib
import signal
import subprocess
import threading

import pytest

from harness import SANITIZED, eventually
from test_descriptors import squeeze


def causes(answer):
    return {c["cause"]: c for c in answer.json()["causes"]}


def test_a_service_that_has_started_is_ready(service):
    answer = service.get("/readyz").expect(200)
    assert answer.json() == {"status": "ready", "causes": []}
    assert service.get("/healthz").expect(200).json() == {"status": "ok"}
    assert b"\nbatchfetch_ready 1\n" in service.get("/metrics", keep=1 << 20).body


def test_a_service_that_stops_lives_but_is_not_ready(start, origin):
    """Something keeps the service from being gone at once: an answer that nobody reads."""
    service = start()
    batch = service.submit([origin.url("/bytes/8000000")])
    service.wait(batch["id"])
    probe = service.client()
    probe.request("GET", "/readyz").expect(200)
    with service.connect() as slow:
        slow.sendall(b"GET /v1/batches/%s/results/0/body HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n\r\n"
                     % (batch["id"].encode(), service.address[1]))
        assert slow.recv(1) == b"H"
        service.process.send_signal(signal.SIGTERM)
        eventually(lambda: probe.request("GET", "/readyz").status == 503)
        answer = probe.request("GET", "/readyz").expect(503)
        assert answer.json()["type"] == "/problems/not-ready"
        assert set(causes(answer)) == {"draining"}
        assert int(answer.header("Retry-After")) >= 1
        assert answer.header("Connection") == "close"
        probe.request("GET", "/healthz").expect(200)
        text = probe.request("GET", "/metrics", keep=1 << 20).expect(200).body
        assert b"\nbatchfetch_ready 0\n" in text
        assert b'\nbatchfetch_health{cause="draining"} 1\n' in text
        # at first, while it drains, all can still be read
        eventually(lambda: probe.request("GET", "/v1/batches").status == 503)
        probe.request("GET", "/v1/batches").problem(503, "busy", "shutting down")
    assert service.process.wait(30) == 0
    service._gone()


@pytest.mark.skipif(SANITIZED, reason="a traced sanitizer build is too slow to tell stuck from slow")
def test_a_stuck_keeper_is_no_ready_service(start, origin):
    """The disk takes six seconds to sync: nothing is accepted meanwhile. When it is over, all is
    well again."""
    service = start()
    tracer = subprocess.Popen(
        ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=fdatasync", "-e",
         "inject=fdatasync:delay_enter=6s:when=1", "-p", str(service.process.pid)],
        stderr=subprocess.PIPE)
    try:
        tasks = pathlib.Path(f"/proc/{service.process.pid}/task")
        eventually(lambda: all(f"TracerPid:\t{tracer.pid}\n" in (t / "status").read_text()
                               for t in tasks.iterdir()), what="strace")
        answers = []
        post = threading.Thread(target=lambda: answers.append(
            service.client().request("POST", "/v1/batches", {"urls": [origin.url("/bytes/1")]})))
        post.start()
        eventually(lambda: service.get("/readyz").status == 503, seconds=20)
        stuck = causes(service.get("/readyz").expect(503))["stuck"]
        assert stuck["detail"].startswith("the keeper has been at one thing for "), stuck
        service.get("/healthz").expect(200)
        post.join(60)
        assert answers[0].status == 202
        eventually(lambda: service.get("/readyz").status == 200)
        service.wait(answers[0].json()["id"])
    finally:
        tracer.terminate()
        tracer.wait()


def test_no_descriptors_are_named_though_the_service_is_ready(start, origin):
    service = start("--fetchers", 1)
    service.get("/readyz").expect(200)
    before = service.get("/metrics", keep=1 << 20).body
    assert b'\nbatchfetch_backpressure_total{cause="descriptors"} 0\n' in before
    squeeze(service, 0)
    batch = service.submit([origin.url(f"/bytes/3?{i}") for i in range(5)])
    eventually(lambda: "descriptors" in causes(service.get("/readyz").expect(200)))
    squeeze(service, 50)
    service.finish(batch)
    eventually(lambda: not causes(service.get("/readyz").expect(200)))
    after = service.get("/metrics", keep=1 << 20).body
    assert b'\nbatchfetch_backpressure_total{cause="descriptors"} 0\n' not in after
