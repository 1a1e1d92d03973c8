"""Promise 7, row 33: origins that break HTTP/2. Each ends in a clear result, in time, and disturbs
no other one."""
import struct

import pytest

from harness import SANITIZED, SLOWER
from toxic_h2 import (CONTINUATION, DATA, GOAWAY, HEADERS, INTERNAL_ERROR, PING, PROTOCOL_ERROR,
                      REFUSED_STREAM, RST_STREAM, SETTINGS, ToxicH2)

WINDOW_UPDATE, PUSH_PROMISE, PRIORITY = 8, 5, 2
OK = b"\x88"  # :status 200
T = 1500
BOUND = 64 << 20  # bytes of a flood


def literal(name, value):
    """A header field as a literal without indexing (RFC 7541 6.2.2), lengths of up to 126."""
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


def flood(kind, flags, stream_too, payload):
    def behave(conn, stream, n):
        for _ in range(BOUND // (len(payload) + 9)):
            conn.frame(kind, flags, stream if stream_too else 0, payload)
    return behave


def continuations(conn, stream, n):
    conn.frame(HEADERS, 0, stream, OK)
    for _ in range(BOUND // 1000):
        conn.frame(CONTINUATION, 0, stream, literal(b"x-flood", b"x" * 100) * 9)


def frames(*list_of):
    def behave(conn, stream, n):
        for kind, flags, payload in list_of:
            conn.frame(kind, flags, stream, payload)
    return behave


def head(*fields, end=False):
    return HEADERS, 4 | end, OK + b"".join(literal(*f) for f in fields)


def then(*parts):
    def behave(conn, stream, n):
        for part in parts:
            part(conn, stream, n)
    return behave


def at_conn(kind, flags, payload):
    return lambda conn, stream, n: conn.frame(kind, flags, 0, payload)


BODY = (DATA, 1, b"h2")
GOOD = frames(head(), BODY)
# name: (behaviour, outcome). "h1": the request is repeated by HTTP/1.1, which is answered.
CASES = {
    "silent": (lambda conn, stream, n: None, "timeout"),
    "head-only": (frames(head()), "timeout"),
    "continuation-flood": (continuations, "failed or h1"),
    "continuation-of-nothing": (frames((CONTINUATION, 4, OK)), "failed or h1"),
    "data-flood": (flood(DATA, 0, True, bytes(16000)), "failed or h1"),
    "settings-flood": (flood(SETTINGS, 0, False, b""), "failed or h1"),
    "ping-flood": (flood(PING, 0, False, b"12345678"), "failed or h1"),
    "reset-flood": (lambda conn, stream, n: [conn.reset(stream, INTERNAL_ERROR)
                                             for _ in range(10000)], "failed or h1"),
    "priority-flood": (flood(PRIORITY, 0, True, b"\0\0\0\0\1"), "failed or h1"),
    "unknown-frames": (then(*[at_conn(200, 0, b"x" * 100)] * 1000, GOOD), "h2"),
    "empty-data-flood": (then(frames(head()), flood(DATA, 0, True, b"")), "failed or h1"),
    "goaway": (lambda conn, stream, n: conn.goaway(0), "h1"),
    "goaway-after": (then(GOOD, at_conn(GOAWAY, 0, struct.pack(">II", 2**31 - 1, 0))), "either"),
    "goaway-error": (lambda conn, stream, n: conn.goaway(0, PROTOCOL_ERROR), "failed or h1"),
    "refused": (lambda conn, stream, n: conn.reset(stream, REFUSED_STREAM), "h1"),
    "reset": (lambda conn, stream, n: conn.reset(stream, INTERNAL_ERROR), "failed"),
    "reset-in-body": (then(frames(head(), (DATA, 0, b"part")),
                           lambda conn, stream, n: conn.reset(stream, INTERNAL_ERROR)), "failed"),
    "closes": (lambda conn, stream, n: conn.close(), "h1"),
    "window-0": (then(at_conn(SETTINGS, 0, struct.pack(">HI", 4, 0)), GOOD), "h2"),
    "window-overflow": (then(at_conn(WINDOW_UPDATE, 0, struct.pack(">I", 2**31 - 1)), GOOD),
                        "any"),
    "window-update-0": (then(at_conn(WINDOW_UPDATE, 0, struct.pack(">I", 0)), GOOD), "any"),
    "max-streams-0": (then(at_conn(SETTINGS, 0, struct.pack(">HI", 3, 0)), GOOD), "h2"),
    "frame-too-large": (frames(head(), (DATA, 1, bytes(20000))), "failed or h1"),
    "data-first": (frames(BODY), "failed or h1"),
    "data-on-stream-0": (then(frames(head()), at_conn(DATA, 0, b"x")), "failed or h1"),
    "data-after-end": (frames(head(), BODY, BODY), "any"),
    "data-beyond-length": (frames(head((b"content-length", b"1")), BODY), "failed or h1"),
    "data-below-length": (frames(head((b"content-length", b"9")), BODY), "failed or h1"),
    "padding": (frames(head(), (DATA, 9, b"\xffh2")), "failed or h1"),
    "hpack-garbage": (frames((HEADERS, 5, b"\xff" * 50)), "failed or h1"),
    "hpack-index": (frames((HEADERS, 5, b"\xfe")), "failed or h1"),
    "no-status": (frames((HEADERS, 5, literal(b"x-a", b"b"))), "failed or h1"),
    "two-statuses": (frames((HEADERS, 5, OK + OK)), "failed or h1"),
    "bad-status": (frames((HEADERS, 5, literal(b":status", b"2x0"))), "failed or h1"),
    "upper-case": (frames(head((b"X-A", b"b")), BODY), "any"),
    "crlf-in-value": (frames(head((b"x-a", b"b\r\nx-evil: c")), BODY), "any"),
    "connection-field": (frames(head((b"transfer-encoding", b"chunked")), BODY), "any"),
    "push": (frames((PUSH_PROMISE, 4, struct.pack(">I", 2) + b"\x82\x86\x84")), "failed or h1"),
    "garbage": (lambda conn, stream, n: conn.sock.sendall(b"\xff" * 99999), "failed or h1"),
    "http1": (lambda conn, stream, n: conn.sock.sendall(b"HTTP/1.1 200 OK\r\n\r\n" * 99),
              "failed or h1"),
}


@pytest.fixture(scope="module")
def module_service(module_services, session_origin):
    return module_services("--ca-file", session_origin.ca_file, "--max-per-host", 100)


def kind_of(result):
    if result["status"] == "succeeded":
        return "h2" if result["http_version"] == "2" else "h1"
    return "timeout" if result["error"]["code"] == "timeout" else result["error"]["code"]


ALLOWED = {"failed": {"protocol"}, "failed or h1": {"protocol", "h1", "too_large", "timeout"},
           "either": {"h1", "h2"}, "any": {"h1", "h2", "protocol", "timeout"}}


# A host is asked over one connection at a time until it answers, whatever the port, so these must
# not wait for one another; and the certificate is for ten addresses.
GROUPS = [list(CASES)[i:i + 9] for i in range(0, len(CASES), 9)]


@pytest.mark.parametrize("names", GROUPS, ids=lambda names: names[0])
def test_promise_7_origins_that_break_http2(service, session_origin, names):
    """In one batch with good URLs, which notice nothing."""
    tls = session_origin.dir / "tls"
    servers = [ToxicH2(CASES[name][0], tls, host=f"127.0.0.{2 + i}") for i, name in enumerate(names)]
    good = ToxicH2(lambda conn, stream, n: conn.answer(stream), tls)
    try:
        before = service.status_kb("VmRSS")
        toxic = [{"url": server.url(), "max_body_bytes": 100_000} for server in servers]
        results = service.run(requests=toxic + [{"url": good.url(f"/{i}")} for i in range(50)],
                              http_version="2", defaults={"timeout_ms": T * SLOWER})
        found = []
        for name, r in zip(names, results):
            want = CASES[name][1]
            if kind_of(r) not in ALLOWED.get(want, {want}) or r["attempts"] != 1:
                found.append(f"{name}: {kind_of(r)}, {r['error']}, wanted {want}")
            if r["status"] == "succeeded" and r["body"] not in ("h1", "h2"):
                found.append(f"{name}: {r['body']}")
            assert "x-evil" not in (r.get("headers") or {}), r
        for r in results[len(names):]:
            if r["status"] != "succeeded" or r["body"] != "h2":
                found.append(f"a good one: {r['error']}")
        assert not found, "\n".join(found)
        assert SANITIZED or service.status_kb("VmRSS") - before < 24 * 1024
    finally:
        for server in [*servers, good]:
            server.stop()
