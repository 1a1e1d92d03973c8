"""Raw bytes: messages whose framing could be read in two ways are refused and the connection is
closed; nothing that a client sends takes the service away from others."""
import json
import socket
import threading
import time

import pytest

from harness import eventually


@pytest.fixture(autouse=True)
def still_answers(service):
    yield
    service.client().request("GET", "/healthz").expect(200)


def message(service, line, *fields, body=b"", host=True):
    lines = [line]
    if host:
        lines.append("Host: %s:%d" % service.address)
    lines.extend(fields)
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


POST = "POST /v1/batches HTTP/1.1"
TEXT = "Content-Type: text/plain"


@pytest.mark.parametrize("fields, body", [
    (["Content-Length: 5", "Content-Length: 6"], b"# abcd"),
    (["Content-Length: 5", "Content-Length: 5"], b"# abc"),
    (["Content-Length: 5, 5"], b"# abc"),
    (["Content-Length: 5", "Transfer-Encoding: chunked"], b"0\r\n\r\n"),
    (["Transfer-Encoding: chunked", "Content-Length: 5"], b"0\r\n\r\n"),
    (["Content-Length: +5"], b"# abc"),
    (["Content-Length: 0x5"], b"# abc"),
    (["Content-Length: -5"], b"# abc"),
    (["Content-Length: 5 5"], b"# abc"),
    (["Content-Length: "], b""),
    (["Content-Length: 99999999999999999999999"], b"# abc"),
    (["Transfer-Encoding: gzip, chunked"], b"0\r\n\r\n"),
    (["Transfer-Encoding: identity"], b"# abc"),
    (["Transfer-Encoding: chunked", "Transfer-Encoding: chunked"], b"0\r\n\r\n"),
    (["Transfer-Encoding: xchunked"], b"0\r\n\r\n"),
])
def test_ambiguous_framing_is_refused_and_the_connection_closed(service, fields, body):
    # What follows must never be read as a request of its own.
    smuggled = message(service, "GET /healthz HTTP/1.1")
    answers, closed = service.raw(message(service, POST, TEXT, *fields, body=body) + smuggled,
                                  [("POST", "/v1/batches"), ("GET", "/healthz")])
    assert len(answers) <= 1 and closed, answers
    # The library itself refuses a few of these, with an answer of its own; the status is the same.
    assert answers and answers[0].status in (400, 413), answers
    if answers[0].header("Content-Type") == "application/problem+json":
        answers[0].problem(answers[0].status,
                           {400: "bad-request", 413: "too-large"}[answers[0].status])


def test_http_10_with_transfer_encoding_is_refused(service):
    answers, closed = service.raw(message(service, "POST /v1/batches HTTP/1.0", TEXT,
                                          "Transfer-Encoding: chunked", body=b"0\r\n\r\n"))
    answers[0].problem(400, "bad-request")
    assert closed


def test_http_10_is_answered_and_closed(service):
    answers, closed = service.raw(message(service, "GET /healthz HTTP/1.0"))
    assert answers[0].status == 200 and closed


@pytest.mark.parametrize("fields, host", [([], False), (["Host: other"], True)])
def test_the_host_must_be_there_exactly_once(service, fields, host):
    answers, _ = service.raw(message(service, "GET /healthz HTTP/1.1", *fields, host=host))
    assert answers[0].status in (400, 421), answers


@pytest.mark.parametrize("data", [
    b"GET /healthz\r\n\r\n", b"GARBAGE\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET /healthz HTTP/9.9\r\nHost: x\r\n\r\n",
    b"GET / HTTP/1.1\r\nno colon here\r\n\r\n",
    b"GET /a\x00b HTTP/1.1\r\nHost: x\r\n\r\n", b"GET /\x01 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\nHost : x\r\n\r\n", b"GET /healthz HTTP/1.1\r\n Host: x\r\n\r\n",
    b"A" * 100000, b"GET /" + b"a" * 200000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\n" + b"X-A: b\r\n" * 50000 + b"\r\n",
    b"GET /healthz HTTP/1.1\r\nX-A: " + b"b" * 200000 + b"\r\n\r\n"],
    ids=lambda d: repr(d[:30]))
def test_garbage_gets_an_error_or_a_closed_connection(service, data):
    answers, closed = service.raw(data, shutdown=True)
    assert all(400 <= a.status < 600 for a in answers), answers
    assert closed


@pytest.mark.parametrize("data", [
    b"\r\n\r\n\r\n\r\n", b"\x00\x01\x02\x03\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"GET /healthz HTT"],
    ids=lambda d: repr(d[:30]))
def test_bytes_that_are_no_request_yet_hold_up_nobody(service, data):
    """They may be the beginning of one, so the connection may stay until its time is up."""
    socks = [service.connect() for _ in range(20)]
    try:
        for sock in socks:
            sock.sendall(data)
        for _ in range(20):
            service.client().request("GET", "/healthz").expect(200)
        for sock in socks:
            sock.setblocking(False)
            try:
                assert not sock.recv(4096).startswith(b"HTTP/1.1 2")
            except (BlockingIOError, ConnectionResetError):
                pass
    finally:
        for sock in socks:
            sock.close()


@pytest.mark.parametrize("path", ["/healthz?a=\x01", "/v1/batches?limit=\x7f", "/v1\x01/batches"])
def test_control_characters_in_the_target_are_refused(service, path):
    answers, _ = service.raw(message(service, f"GET {path} HTTP/1.1"))
    assert answers[0].status == 400, answers


def test_a_nul_byte_in_the_target_is_refused(service):
    answers, closed = service.raw(message(service, "GET /healthz\0/x HTTP/1.1"))
    assert (answers and answers[0].status == 400) or (not answers and closed), answers


@pytest.mark.parametrize("chunks", [
    b"zz\r\nabc\r\n0\r\n\r\n", b"fffffffffffffffff\r\nabc", b"-1\r\nabc\r\n0\r\n\r\n",
    b"5\r\nabcdefgh\r\n0\r\n\r\n", b"\r\n\r\n", b"0x5\r\nabcde\r\n0\r\n\r\n"])
def test_bad_chunks_make_no_batch(service, chunks):
    before = len(service.get("/v1/batches?limit=1000").json()["data"])
    answers, closed = service.raw(message(service, POST, TEXT, "Transfer-Encoding: chunked",
                                          body=chunks), shutdown=True)
    assert all(a.status in (400, 413) for a in answers) and closed, answers
    assert len(service.get("/v1/batches?limit=1000").json()["data"]) == before


@pytest.mark.parametrize("head, body", [
    (["Content-Length: 1000"], b"http://127.0.0.1:9/\n" * 3),
    (["Transfer-Encoding: chunked"], b"14\r\nhttp://127.0.0.1:9/\n\r\n"),
])
def test_a_submission_cut_off_makes_no_batch(service, head, body):
    before = len(service.get("/v1/batches?limit=1000").json()["data"])
    with service.connect() as sock:
        sock.sendall(message(service, POST, TEXT, *head, body=body))
        # The next request on another connection is answered behind this one's bytes.
        service.client().request("GET", "/healthz").expect(200)
    for _ in range(3):
        service.client().request("GET", "/healthz").expect(200)
    assert len(service.get("/v1/batches?limit=1000").json()["data"]) == before


def test_pipelined_requests_are_answered_in_order(service):
    paths = ["/healthz", "/v1/batches/none", "/v1/batches?limit=1", "/nowhere"] * 25
    data = b"".join(message(service, f"GET {p} HTTP/1.1") for p in paths)
    answers, _ = service.raw(data, [("GET", path) for path in paths])
    assert [a.status for a in answers] == [200, 404, 200, 404] * 25


def test_pipelined_requests_behind_a_submission_wait_for_it(service, origin):
    body = (origin.url("/bytes/1") + "\n").encode()
    data = message(service, POST, TEXT, f"Content-Length: {len(body)}", body=body) + \
        message(service, "GET /v1/batches?limit=1 HTTP/1.1")
    answers, _ = service.raw(data, [("POST", "/v1/batches"), ("GET", "/v1/batches?limit=1")])
    assert [a.status for a in answers] == [202, 200]
    assert json.loads(answers[1].body)["data"][0]["id"] == json.loads(answers[0].body)["id"]


def test_expect_100_continue_is_answered(service, origin):
    body = (origin.url("/bytes/1") + "\n").encode()
    with service.connect() as sock:
        sock.sendall(message(service, POST, TEXT, f"Content-Length: {len(body)}",
                             "Expect: 100-continue"))
        data = b""
        while b"\r\n\r\n" not in data:
            data += sock.recv(4096)
        assert data.startswith(b"HTTP/1.1 100 ")
        sock.sendall(body)
        data = data.split(b"\r\n\r\n", 1)[1]
        while b"\r\n\r\n" not in data:
            data += sock.recv(4096)
        assert data.startswith(b"HTTP/1.1 202 ")


def test_slow_clients_do_not_hold_up_others(service, origin):
    """100 connections that never finish their request, and one that uploads without reading."""
    slow = []
    try:
        for i in range(100):
            sock = service.connect()
            sock.sendall(message(service, POST, TEXT, "Content-Length: 1000")[:20 + i])
            slow.append(sock)
        client = service.client()
        start = time.monotonic()
        for _ in range(50):
            client.request("GET", "/healthz").expect(200)
        assert time.monotonic() - start < 5
        assert service.one(origin.url("/bytes/1"))["status"] == "succeeded"
    finally:
        for sock in slow:
            sock.close()


def test_clients_that_hang_up_at_any_point_leave_nothing_behind(service, origin):
    """Cuts a submission and a read at every length, most of them with a reset."""
    batch = service.submit([origin.url("/bytes/1000")] * 20)
    service.wait(batch["id"])
    body = b"http://127.0.0.1:9/\n" * 5
    post = message(service, POST, TEXT, f"Content-Length: {len(body) + 1}", body=body)
    get = message(service, f"GET /v1/batches/{batch['id']}/results HTTP/1.1")
    before = len(service.get("/v1/batches?limit=1000").json()["data"])
    for data in (post, get):
        for n in range(1, len(data), 5):
            sock = service.connect()
            if n % 3:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            sock.sendall(data[:n])
            sock.close()
    assert len(service.get("/v1/batches?limit=1000").json()["data"]) == before


def test_an_answer_nobody_reads_does_not_hold_up_others(service, origin):
    batch = service.submit([origin.url("/bytes/500000")] * 20)
    service.wait(batch["id"])
    stuck = []
    try:
        for _ in range(5):
            sock = service.connect()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.sendall(message(service, f"GET /v1/batches/{batch['id']}/results?include=body "
                                 "HTTP/1.1", "Accept: application/x-ndjson"))
            stuck.append(sock)
        for _ in range(20):
            service.client().request("GET", "/healthz").expect(200)
        assert len(service.results(batch["id"])) == 20
    finally:
        for sock in stuck:
            sock.close()


def test_an_unneeded_body_is_ignored_up_to_a_bound(service, origin):
    batch = service.submit([origin.url("/delay/20")] * 2)
    path = f"/v1/batches/{batch['id']}/cancel"
    service.post(path, b"x" * (65536 + 1)).problem(413, "too-large")
    service.client().request("POST", path, iter([b"x" * 40000, b"y" * 40000])).problem(
        413, "too-large")
    assert service.batch(batch["id"])["status"] in ("queued", "in_progress")
    service.post(path, b"x" * 65536).expect(202)
    service.wait(batch["id"])


def test_a_hundred_clients_at_once_are_all_served(service, origin):
    errors = []

    def client(n):
        try:
            while (answer := service.post("/v1/batches", {"urls": [
                    origin.url(f"/bytes/10?t={n}")]})).status == 503:
                # So many at once may be asked to come again, and are told when.
                answer.problem(503, "busy")
                time.sleep(min(1, int(answer.header("Retry-After"))))
            result, = service.finish(answer.expect(202).json(), include="body")
            assert result["body"].startswith(f"{n}|")
        except AssertionError as e:
            errors.append(e)

    threads = [threading.Thread(target=client, args=(n,)) for n in range(100)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not errors, errors[:3]
    eventually(lambda: origin.active() == 0)
