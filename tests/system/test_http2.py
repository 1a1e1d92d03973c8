"""HTTP/2 over TLS, for batches that ask for it: libcurl 7.88.1 at it against nginx, and against an
origin that breaks off in every way that HTTP/2 has. What is not a request's fault costs it no
attempt."""
import hashlib
import struct
import threading

import pytest

from harness import SLOWER, eventually, size
from origin import HOSTS, content
from test_submit import echoed
from toxic_h2 import (DATA, HTTP_1_1_REQUIRED, INTERNAL_ERROR, PING, REFUSED_STREAM, SETTINGS, ToxicH2)

SIZES = [0, 1, 1 << 10, 16 << 10, 100 << 10, 1 << 20]


@pytest.fixture(scope="module")
def module_h2(module_services, session_origin):
    return module_services("--ca-file", session_origin.ca_file, "--max-per-host", 100)


@pytest.fixture
def service(module_h2):
    yield module_h2
    module_h2.alive()
    module_h2.no_reports()


@pytest.fixture
def toxic_h2(session_origin):
    """toxic_h2(behaviour, …): an origin for this test alone."""
    servers = []

    def start(behaviour, **more):
        servers.append(ToxicH2(behaviour, session_origin.dir / "tls", **more))
        return servers[-1]
    yield start
    for server in servers:
        server.stop()


def run(service, urls=None, **more):
    return service.run(urls, http_version="2", **more)


def all_good(results, version="2"):
    for r in results:
        assert (r["status"], r["attempts"]) == ("succeeded", 1), r
        assert version is None or r["http_version"] == version, r


def connections(hits):
    return len({h.connection for h in hits})


# ---- against nginx ----

def test_only_a_batch_that_asks_gets_it_and_only_over_tls(service, origin):
    assert run(service, [origin.h2("/bytes/10")])[0]["http_version"] == "2"
    assert service.run([origin.h2("/bytes/10")])[0]["http_version"] == "1.1"
    assert run(service, [origin.url("/bytes/10")])[0]["http_version"] == "1.1"
    assert run(service, [origin.https("/bytes/10")])[0]["http_version"] == "1.1"
    protocols = [h.protocol for h in origin.hits(4)]
    assert protocols == ["HTTP/2.0", "HTTP/1.1", "HTTP/1.1", "HTTP/1.1"]


def test_a_certificate_is_verified_as_ever(service, origin):
    result = run(service, [origin.h2("/bytes/10", host=HOSTS[20])])[0]
    assert result["error"]["code"] in ("tls", "connect"), result


@pytest.mark.parametrize("kind", ["plain", "few", "goaway"])
def test_bodies_of_many_sizes_are_whole(service, origin, kind):
    """A few streams a connection, or a GOAWAY after every 40 requests: no request notices."""
    sizes = [s for s in SIZES[:-1] for _ in range(size(100, 10))] + SIZES[-1:] * size(10, 2)
    sizes = [s for i in range(7) for s in sizes[i::7]]
    results = run(service, [origin.h2(f"/bytes/{s}?t={i}", kind) for i, s in enumerate(sizes)],
                  include="headers")
    all_good(results)
    for i, (s, r) in enumerate(zip(sizes, results)):
        assert r["body_bytes"] == s
        want = hashlib.sha256(content(s, str(i))).digest()
        assert hashlib.sha256(service.body(r)).digest() == want, (i, s)
    assert {h.protocol for h in origin.hits(len(sizes))} == {"HTTP/2.0"}


def test_many_streams_share_one_connection(service, origin):
    results = run(service, [origin.h2(f"/delay/0.2?t={i}") for i in range(200)],
                  limits={"max_per_host": 100})
    all_good(results)
    assert origin.peaks()[HOSTS[0]] == 100
    assert connections(origin.hits(200)) <= 2


def test_an_origin_of_few_streams_gets_more_connections(service, origin):
    all_good(run(service, [origin.h2(f"/delay/0.2?t={i}", "few") for i in range(60)],
                 limits={"max_per_host": 20}))
    assert origin.peaks()[HOSTS[0]] == 20
    assert 5 <= connections(origin.hits(60)) <= 12


def test_streams_count_against_every_limit(start, origin):
    service = start("--ca-file", origin.ca_file, "--max-parallel", 12, "--max-per-host", 5)
    urls = [origin.h2(f"/delay/0.05?t={i}", host=HOSTS[i % 4]) for i in range(80)]
    all_good(run(service, urls))
    peaks = origin.peaks()
    assert peaks["*"] == 12 and max(peaks[h] for h in HOSTS[:4]) == 5, peaks
    origin.reset()
    all_good(run(service, urls, limits={"max_per_host": 2, "max_parallel": 7}))
    peaks = origin.peaks()
    assert peaks["*"] == 7 and max(peaks[h] for h in HOSTS[:4]) == 2, peaks


def test_redirects_and_retries_count_too(start, origin):
    service = start("--ca-file", origin.ca_file, "--max-per-host", 3)
    results = run(service, [origin.h2(f"/redirect/3?t={i}") for i in range(30)])
    all_good(results)
    assert {len(r["redirects"]) for r in results} == {3}
    results = run(service, [origin.h2(f"/flaky/1/h2-{i}") for i in range(10)],
                  defaults={"max_attempts": 3})
    assert {(r["status"], r["attempts"]) for r in results} == {("succeeded", 2)}
    assert origin.peaks()[HOSTS[0]] <= 3


def test_methods_and_bodies(service, origin):
    head = run(service, requests=[{"url": origin.h2("/bytes/1000"), "method": "HEAD"}])[0]
    all_good([head])
    assert head["body_bytes"] == 0
    body = "grüße\n" * 20000
    requests = [{"url": origin.h2("/echo"), "method": m, "body": body, "headers": {"X-One": "1"}}
                for m in ("PUT", "DELETE", "POST", "PATCH")]
    results = run(service, requests=requests)
    all_good(results, None)
    for r, request in zip(results, requests):
        method, fields, got = echoed(r)
        assert (method, got) == (request["method"], body.encode())
        assert fields["x-one"] == ["1"]
    # What must not be sent twice goes by HTTP/1.1: see fetch_h2.c.
    assert [r["http_version"] for r in results] == ["2", "2", "1.1", "1.1"]


def test_a_stream_that_is_too_slow_ends_alone(service, origin):
    slow = [{"url": origin.h2(f"/slow-body/{60 * SLOWER}?t={i}"), "timeout_ms": 400 * SLOWER}
            for i in range(5)]
    quick = [{"url": origin.h2(f"/bytes/20000?t={i}")} for i in range(200)]
    results = run(service, requests=slow + quick)
    for r in results[:5]:
        assert r["error"]["code"] == "timeout" and r["truncated"], r
    all_good(results[5:])
    assert connections(origin.hits(200)) <= 2


def test_a_body_that_is_too_large_ends_its_stream_alone(service, origin):
    results = run(service, requests=[
        {"url": origin.h2(f"/bytes/{1 << 20}?t={i}"), **({"max_body_bytes": 1000} if i % 2 else {})}
        for i in range(20)])
    all_good(results[::2])
    assert {r["error"]["code"] for r in results[1::2]} == {"too_large"}
    assert connections(origin.hits(20)) <= 2


def test_cancel_in_the_middle_leaves_the_others_alone(service, origin):
    first = service.submit([origin.h2(f"/delay/20?t={i}") for i in range(300)], http_version="2",
                           limits={"max_per_host": 50})
    second = service.submit([origin.h2(f"/delay/0.01?u={i}") for i in range(100)],
                            http_version="2")
    eventually(lambda: origin.arrivals() > 50)
    service.post(f"/v1/batches/{first['id']}/cancel").expect(200, 202)
    all_good(service.finish(second))
    counts = service.wait(first["id"])["request_counts"]
    assert counts["cancelled"] == 300
    all_good(run(service, [origin.h2("/bytes/10")]))


# ---- against an origin that breaks off ----

def test_refused_streams_are_repeated_free_of_charge(service, toxic_h2):
    server = toxic_h2(lambda conn, stream, n:
                      conn.reset(stream, REFUSED_STREAM) if n % 5 == 0 else conn.answer(stream))
    all_good(run(service, [server.url(f"/{i}") for i in range(100)]))
    assert server.requests() > 100


def test_a_goaway_repeats_what_was_not_served(service, toxic_h2):
    served = []

    def behave(conn, stream, n):
        if n <= 20:
            served.append(stream)
            conn.answer(stream)
        if n == 20:
            conn.goaway(stream)  # the later ones are never answered
    server = toxic_h2(behave)
    all_good(run(service, [server.url(f"/{i}") for i in range(200)], limits={"max_per_host": 50}))
    assert len(served) == 200, "something was served twice"


def test_connections_that_die_cost_nobody_an_attempt(service, toxic_h2):
    def behave(conn, stream, n):
        if conn.number >= 2:
            conn.answer(stream)
        elif n == 20:
            conn.close()
    server = toxic_h2(behave)
    all_good(run(service, [server.url(f"/{i}") for i in range(100)]))
    assert len(server.conns) < 20, "each stream opened a connection of its own"


def test_an_origin_whose_http2_always_dies_is_asked_by_http1(service, toxic_h2):
    server = toxic_h2(lambda conn, stream, n: conn.close())
    all_good(run(service, [server.url(f"/{i}") for i in range(50)]), "1.1")
    assert server.h1_requests == 50


def test_http_1_1_required(service, toxic_h2):
    server = toxic_h2(lambda conn, stream, n: conn.reset(stream, HTTP_1_1_REQUIRED))
    all_good(run(service, [server.url(f"/{i}") for i in range(30)]), "1.1")


def test_what_breaks_off_within_an_answer_is_charged(service, toxic_h2):
    def behave(conn, stream, n):
        if n % 10 == 3:
            conn.head(stream, 1000 if n % 20 == 3 else None)
            conn.data(stream, b"x" * 500, end=False)
            conn.reset(stream, INTERNAL_ERROR)
        else:
            conn.answer(stream)
    server = toxic_h2(behave)
    results = run(service, [server.url(f"/{i}") for i in range(60)])
    failed = [r for r in results if r["status"] == "failed"]
    assert len(failed) == 6 and len(server.conns) == 1
    for r in failed:
        assert r["error"]["code"] == "protocol" and r["attempts"] == 1, r


def test_a_body_cut_by_the_end_of_its_connection_is_no_success(service, toxic_h2):
    def behave(conn, stream, n):
        if conn.number:
            conn.answer(stream)
        elif n in (3, 4):
            conn.head(stream, 1000 if n == 3 else None)
            conn.data(stream, b"x" * 500, end=False)
        elif n == 10:  # not before the client has seen the heads, which nothing tells
            threading.Timer(0.3 * SLOWER, conn.close).start()
    server = toxic_h2(behave)
    results = run(service, [server.url(f"/{i}") for i in range(40)])
    failed = [r for r in results if r["status"] == "failed"]
    assert {(r["error"]["code"], r["truncated"]) for r in failed} == {("protocol", True)}
    assert len(failed) == 2
    all_good([r for r in results if r["status"] != "failed"])


@pytest.mark.parametrize("how", ["bad-frame", "goaway-error", "goaway"])
def test_a_broken_connection_makes_no_body_whole(service, toxic_h2, how):
    """libcurl calls all of its responses complete: what has no length is asked for by HTTP/1.1."""
    def behave(conn, stream, n):
        conn.head(stream)
        conn.data(stream, b"x" * 500, end=n > 10)  # from then on: whole, and without a length
        if n == 12:
            def end():
                if how == "bad-frame":
                    conn.frame(DATA, 0, 0, b"data on stream 0")
                else:
                    conn.goaway(stream, INTERNAL_ERROR if how == "goaway-error" else 0)
                    conn.close()
            threading.Timer(0.3 * SLOWER, end).start()  # the client has seen the bodies by then
    server = toxic_h2(behave, h1=b"y" * 700)
    results = run(service, [server.url(f"/{i}") for i in range(12)])
    for r in results:
        assert r["attempts"] == 1
        if r["status"] == "failed":  # told by libcurl
            assert (r["error"]["code"], r["truncated"]) == ("protocol", True), r
        else:
            assert r["body"] == "y" * 700 if r["http_version"] == "1.1" else "x" * 500, r
    assert sum(r["http_version"] == "2" and r["status"] == "succeeded" for r in results) == 2
    assert how != "bad-frame" or server.h1_requests == 10


def test_the_end_of_a_connection_after_whole_bodies_costs_a_request_more_at_most(service, toxic_h2):
    def behave(conn, stream, n):
        conn.head(stream)
        if n == 20:
            conn.goaway(stream)
        conn.data(stream, b"x" * 500)
    server = toxic_h2(behave, h1=b"x" * 500)
    results = run(service, [server.url(f"/{i}") for i in range(20)])
    all_good(results, None)
    assert all(r["body"] == "x" * 500 for r in results) and server.h1_requests <= 20


def test_stalled_streams_hold_up_nobody(service, toxic_h2):
    def behave(conn, stream, n):
        if n % 10 == 3:
            conn.head(stream, 1000)
            conn.data(stream, b"x" * 500, end=False)
        else:
            conn.answer(stream, bytes(5000))
    server = toxic_h2(behave)
    results = run(service, [server.url(f"/{i}") for i in range(100)],
                  defaults={"timeout_ms": 600 * SLOWER})
    late = [r for r in results if r["status"] == "failed"]
    assert len(late) == 10 and {r["error"]["code"] for r in late} == {"timeout"}
    assert len(server.conns) == 1
    run(service, [server.url()])  # libcurl keeps what it has to say until then
    eventually(lambda: len(server.resets) == 10, what="RST_STREAM for each")


def test_frames_on_an_idle_connection_do_not_spoil_it(service, toxic_h2):
    """Unlike HTTP/1, where bytes that nobody asked for may be taken for the next answer."""
    server = toxic_h2(lambda conn, stream, n: conn.answer(stream))
    all_good(run(service, [server.url()]))
    for value in (50, 60, 70):
        server.conns[0].frame(SETTINGS, 0, 0, struct.pack(">HI", 3, value))
        server.conns[0].frame(PING, 0, 0, b"12345678")
        all_good(run(service, [server.url()]))
    assert len(server.conns) == 1 and server.requests() == 4


def test_an_idle_connection_that_the_origin_ends_costs_nothing(service, toxic_h2):
    server = toxic_h2(lambda conn, stream, n: conn.answer(stream))
    for n in range(1, 4):
        all_good(run(service, [server.url()]))
        assert len(server.conns) == n
        server.conns[-1].goaway(1)
        if n % 2:
            server.conns[-1].close()
    assert server.requests() == 3


def test_a_body_that_nobody_waits_for_is_not_taken_for_ever(service, toxic_h2):
    """The stream was given up and no other one uses its connection: the origin is told by its
    end."""
    broke = threading.Event()

    def behave(conn, stream, n):
        def flood():
            try:
                conn.head(stream)
                while True:
                    conn.data(stream, bytes(16000), end=False)
            except OSError:
                broke.set()
        threading.Thread(target=flood, daemon=True).start()
    server = toxic_h2(behave)
    result = run(service, requests=[{"url": server.url(), "max_body_bytes": 100000}])[0]
    assert result["error"]["code"] == "too_large"
    assert broke.wait(10 * SLOWER)


def test_a_burst_waits_for_the_first_connection_within_its_own_time(service, toxic_h2):
    """The origin takes the TCP connection and stays silent: nobody waits for longer than its own
    connect timeout, though one opens and the others wait for it."""
    server = toxic_h2(lambda conn, stream, n: conn.answer(stream))
    server.silent = threading.Event()
    results = run(service, [server.url(f"/{i}") for i in range(30)],
                  defaults={"connect_timeout_ms": 500 * SLOWER, "timeout_ms": 20000})
    server.silent.set()
    for r in results:
        assert r["error"]["code"] == "timeout", r
        spent = r["timing"]["connect_ms"] + r["timing"]["tls_ms"]
        assert 400 * SLOWER < spent < 900 * SLOWER, r
