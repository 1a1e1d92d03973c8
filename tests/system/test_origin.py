"""The test's own tools: an origin that counted wrong would prove nothing."""
import concurrent.futures
import http.client
import json
import socket
import ssl
import base64
import threading

import pytest

from origin import HOSTS, TLS, content


def fetch(origin, path, host=HOSTS[0], method="GET", body=None, headers=None):
    conn = http.client.HTTPConnection(host, origin.port, timeout=20)
    try:
        conn.request(method, path, body, headers or {})
        response = conn.getresponse()
        return response.status, response.getheaders(), response.read()
    finally:
        conn.close()


def test_content_is_the_same_in_lua_and_in_python(origin):
    for n in (0, 1, 10, 11, 12, 4096, 100000):
        assert fetch(origin, f"/bytes/{n}?t=abc")[2] == content(n, "abc")


def test_echo_gives_back_method_header_and_body(origin):
    body = bytes(range(256))
    doc = json.loads(fetch(origin, "/echo?x=1", method="PUT", body=body, headers={"X-A": "b"})[2])
    assert doc["method"] == "PUT" and doc["uri"] == "/echo?x=1"
    assert base64.b64decode(doc["body"]) == body
    assert b"\r\nX-A: b\r\n" in base64.b64decode(doc["head"])


def test_flaky_fails_as_often_as_asked(origin):
    assert [fetch(origin, "/flaky/2/self")[0] for _ in range(4)] == [503, 503, 200, 200]


def test_the_log_has_every_request_once(origin):
    for i in range(20):
        fetch(origin, f"/status/200?t={i}", host=HOSTS[i])
    hits = origin.hits(20)
    # nginx logs after it has answered, and has several workers: in no strict order
    assert sorted((h.uri, h.host) for h in hits) == sorted((f"/status/200?t={i}", HOSTS[i])
                                                           for i in range(20))


def test_the_peak_is_reached_when_requests_overlap(origin):
    barrier = threading.Barrier(12)

    def one(i):
        barrier.wait()
        fetch(origin, "/delay/0.5", host=HOSTS[i % 3])

    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        list(pool.map(one, range(12)))
    assert origin.peaks() == {"*": 12, **{h: 4 for h in HOSTS[:3]}}
    assert origin.active() == 0


@pytest.mark.parametrize("path", ["/status/200", "/status/204", "/bytes/3000", "/gzip/3000",
                                  "/redirect/1", "/echo", "/headers/5"])
def test_the_peak_is_never_more_than_the_client_has_in_flight(origin, path):
    """Four clients, each of which starts its next request the moment it has the last one's answer,
    over new and kept connections, which the two workers share."""
    def client(n):
        conn = http.client.HTTPConnection(HOSTS[0], origin.port, timeout=20)
        for i in range(150):
            if n % 2:
                conn.close()
            conn.request("HEAD" if i % 10 == 9 else "GET", path)
            conn.getresponse().read()
        conn.close()

    threads = [threading.Thread(target=client, args=(n,)) for n in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert 1 <= origin.peaks()[HOSTS[0]] <= 4
    assert origin.arrivals() == 600


def test_a_client_that_gives_up_is_counted_out(origin):
    with socket.create_connection((HOSTS[0], origin.port)) as sock:
        sock.sendall(b"GET /delay/30 HTTP/1.1\r\nHost: x\r\n\r\n")
        while origin.active() != 1:
            pass
    origin.reset()  # waits until nothing is in flight
    assert origin.active() == 0


def test_only_the_good_certificates_are_good(origin):
    context = ssl.create_default_context(cafile=origin.ca_file)
    for address, kind in TLS.items():
        with socket.create_connection((address, origin.tls_port)) as sock:
            if kind == "good":
                context.wrap_socket(sock, server_hostname=address).close()
            else:
                with pytest.raises(ssl.SSLCertVerificationError):
                    context.wrap_socket(sock, server_hostname=address)


def test_the_toxic_origin_counts_and_misbehaves(toxic):
    with socket.create_connection((toxic.host, toxic.port)) as sock:
        sock.sendall(b"GET /short HTTP/1.1\r\nHost: x\r\n\r\n")
        data = b""
        while more := sock.recv(65536):
            data += more
    assert data.endswith(b"y" * 600) and b"Content-Length: 1000" in data
    assert toxic.hits["/short"] >= 1
