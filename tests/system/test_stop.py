"""Promise 6: a clean stop. SIGTERM starts nothing more and lets what is in flight finish; nothing is
fetched twice for it."""
import collections
import signal
import threading
import time

import pytest

from harness import SLOWER, check_complete, eventually, size
from origin import HOSTS


def term(service, sig=signal.SIGTERM):
    service.process.send_signal(sig)
    return time.monotonic()


def gone(service, within):
    """Waits for exit 0; -> monotonic time."""
    assert service.process.wait(within * SLOWER) == 0, service.stderr()[-3000:]
    at = time.monotonic()
    service._gone()
    service.no_reports()
    return at


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_promise_6_nothing_is_fetched_twice_because_of_a_clean_stop(start, origin, sig):
    """Redirects over hosts, retries and slow answers are under way at each of several stops."""
    service = start("--max-per-host", 20, "--fetchers", 2, "--drain-timeout", "20s")
    n = size(3000, 400)
    urls, want = origin.mixed(n, f"s{sig}.")
    batch = service.submit(urls, retry={"max_attempts": 3, "min_backoff_ms": 20,
                                        "max_backoff_ms": 60})
    for stop in range(4):
        eventually(lambda done=n * (stop + 1) // 6: service.batch(batch["id"])["request_counts"][
            "succeeded"] >= done)
        term(service, sig)
        gone(service, 20)
        service.start()
    results = service.finish(batch)
    assert all(r["status"] == "succeeded" for r in results)
    assert {r["attempts"] for r in results} == {1, 2}
    hits = collections.Counter(h.uri for h in origin.hits(want.total()))
    assert hits == want, str({uri: (hits[uri], want[uri]) for uri in set(hits) | set(want)
                              if hits[uri] != want[uri]})[:500]


def test_promise_6_transfers_in_flight_finish_and_the_api_answers_meanwhile(start, origin):
    service = start("--max-per-host", 3, "--drain-timeout", "20s")
    batch = service.submit([origin.url(f"/delay/1.5?{i}") for i in range(9)])
    eventually(lambda: origin.active() == 3)
    began = term(service)
    eventually(lambda: service.client().request("GET", "/readyz").status == 503)
    refused = service.client().request("POST", "/v1/batches", {"urls": [origin.url("/bytes/1")]})
    refused.problem(503, "busy", "shutting down")
    assert int(refused.header("Retry-After")) > 0 and refused.header("Connection") == "close"
    now = service.client().request("GET", f"/v1/batches/{batch['id']}").expect(200).json()
    assert now["status"] == "in_progress" and now["request_counts"]["in_flight"] == 3
    service.client().request("GET", f"/v1/batches/{batch['id']}/results").expect(200)
    waiting = []
    poll = threading.Thread(target=lambda: waiting.append(service.client().request(
        "GET", f"/v1/batches/{batch['id']}?wait=60")))
    poll.start()
    took = gone(service, 15) - began
    poll.join()
    assert waiting[0].status == 200, "a long poll is answered when the service ends"
    assert 1 < took < 5 * SLOWER
    service.start()
    assert service.batch(batch["id"])["request_counts"]["succeeded"] == 3
    check_complete(service.wait(batch["id"]), service.results(batch["id"]))
    assert set(collections.Counter(h.uri for h in origin.hits(9)).values()) == {1}


def test_promise_6_a_second_signal_hurries(start, origin):
    service = start("--drain-timeout", "1h")
    batch = service.submit([origin.url(f"/delay/8?{i}", HOSTS[i % 10]) for i in range(100)] +
                           [origin.url("/bytes/3")])
    eventually(lambda: service.batch(batch["id"])["request_counts"]["succeeded"] == 1)
    eventually(lambda: origin.active() == 100)
    term(service)
    eventually(lambda: service.client().request("GET", "/readyz").status == 503)
    assert service.process.poll() is None
    began = term(service)
    assert gone(service, 10) - began < 1 * SLOWER
    service.start()
    counts = service.batch(batch["id"])["request_counts"]
    assert counts["succeeded"] == 1 and counts["total"] == 101
    service.delete(f"/v1/batches/{batch['id']}").expect(204)


def test_promise_6_the_drain_timeout_ends_what_does_not_finish(start, origin):
    """It is fetched again, and no attempt of it is spent."""
    service = start("--drain-timeout", "1s")
    batch = service.submit([origin.url("/delay/3?cut")], defaults={"max_attempts": 1})
    eventually(lambda: origin.active() == 1)
    began = term(service)
    took = gone(service, 10) - began
    assert 0.9 < took < 3 * SLOWER
    service.start()
    [result] = service.finish(batch)
    assert result["status"] == "succeeded" and result["attempts"] == 1


def test_promise_6_an_upload_under_way_is_accepted_or_told(start, origin):
    """One that ends within the drain is a batch; one that doesn't gets an answer, and is none."""
    service = start("--drain-timeout", "2s")

    def begin(name):
        sock = service.connect()
        sock.sendall(f"POST /v1/batches?name={name} HTTP/1.1\r\n"
                     f"Host: 127.0.0.1:{service.address[1]}\r\n"
                     "Content-Type: text/plain\r\nContent-Length: 1000\r\n\r\n".encode() +
                     b"http://127.0.0.1:9/\n" * 10)
        return sock

    quick, slow = begin("quick"), begin("slow")
    time.sleep(0.2)
    began = term(service)
    eventually(lambda: service.client().request("GET", "/readyz").status == 503)
    quick.sendall(b"http://127.0.0.1:9/\n" * 40)
    assert quick.recv(100).startswith(b"HTTP/1.1 202 ")
    answer = slow.recv(100)
    assert answer.startswith(b"HTTP/1.1 503 ") or answer == b"", answer
    gone(service, 10)
    assert time.monotonic() - began < 8 * SLOWER
    quick.close()
    slow.close()
    service.start()
    assert [b["name"] for b in service.get("/v1/batches").json()["data"]] == ["quick"]


def test_promise_6_it_ends_soon_with_very_much_to_do(start, origin):
    """A million URLs queued, a thousand in flight that never end, others waiting for a retry."""
    service = start("--max-per-host", 100, "--drain-timeout", "1s")
    service.submit([origin.url(f"/delay/9?{i}", HOSTS[i % 10]) for i in range(size(5000, 500))])
    service.submit([origin.url(f"/status/503?{i}", HOSTS[10]) for i in range(100)],
                   retry={"max_attempts": 5, "min_backoff_ms": 60000, "max_backoff_ms": 90000})
    n = size(1000000, 20000)
    body = "".join(f"http://127.0.0.{i % 200 + 20}:9/{i}\n" for i in range(n)).encode()
    service.post("/v1/batches", body, {"Content-Type": "text/plain"}).expect(202)
    eventually(lambda: origin.active() >= 50)
    began = term(service)
    took = gone(service, 10) - began
    assert took < 3 * SLOWER, took
