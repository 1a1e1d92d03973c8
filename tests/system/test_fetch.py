"""What is fetched and kept: methods, headers, bodies, encodings, redirects."""
import base64
import json

import pytest

from harness import TEXT
from origin import DEAD_HOST, HOSTS, content
from test_submit import echoed

SERVICE_ARGS = ["--user-agent", "tester/1"]


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_each_method_arrives_as_it_is(service, origin, method):
    result = service.one(origin.url("/echo"), method=method)
    got, fields, body = echoed(result)
    assert got == method and body == b""
    assert fields["user-agent"] == ["tester/1"]


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_bodies_arrive_byte_by_byte(service, origin, method):
    raw = bytes(range(256)) * 10
    result = service.one(origin.url("/echo"), method=method,
                         body_base64=base64.b64encode(raw).decode())
    assert echoed(result)[::2] == (method, raw)
    result = service.one(origin.url("/echo"), method=method, body="grüße\n")
    assert echoed(result)[2] == "grüße\n".encode()
    result = service.one(origin.url("/echo"), method=method, body="")
    method_, fields, body = echoed(result)
    assert body == b"" and fields["content-length"] == ["0"]


def test_head_has_headers_and_no_body(service, origin):
    result = service.one(origin.url("/bytes/1234"), method="HEAD")
    assert result["status"] == "succeeded" and result["body_bytes"] == 0
    assert result["headers"]["content-length"] == ["1234"]
    assert origin.hits(1)[0].method == "HEAD"


def test_request_headers_replace_ours_and_no_others_are_added(service, origin):
    result = service.one(origin.url("/echo"), headers={
        "User-Agent": "mine", "Accept": "text/x", "X-Empty": "", "x-Case": "  a  b\tc ",
        "Cookie": "a=b", "Authorization": "Bearer t", "Referer": "http://x.example/"})
    fields = echoed(result)[1]
    assert fields["user-agent"] == ["mine"] and fields["accept"] == ["text/x"]
    assert fields["x-empty"] == [""] and fields["x-case"] == ["a  b\tc"]
    assert fields["cookie"] == ["a=b"] and fields["authorization"] == ["Bearer t"]
    fields = echoed(service.one(origin.url("/echo")))[1]
    assert set(fields) <= {"host", "user-agent", "accept", "accept-encoding"}, fields
    assert fields["host"] == [f"127.0.0.1:{origin.port}"]


def test_a_post_has_no_type_that_nobody_gave(service, origin):
    fields = echoed(service.one(origin.url("/echo"), method="POST", body="x"))[1]
    assert "content-type" not in fields and "expect" not in fields, fields


def test_statuses_below_400_succeed_and_the_others_keep_their_body(service, origin):
    codes = [200, 201, 204, 206, 304, 400, 401, 403, 404, 407, 410, 418, 429, 451, 500, 502, 503,
             504, 599, 999]
    results = service.run([origin.url(f"/status/{c}") for c in codes])
    for code, r in zip(codes, results):
        assert r["http_status"] == code and r["http_version"] == "1.1" and r["attempts"] == 1
        if code < 400:
            assert r["status"] == "succeeded" and r["error"] is None
        else:
            assert r["status"] == "failed" and r["error"]["code"] == "http_status"
            assert r["error"]["retryable"] == (code in (408, 425, 429, 500, 502, 503, 504))
            assert r["body"] == f"status {code}"


def test_bodies_are_stored_exactly(service, origin):
    sizes = [0, 1, 4095, 4096, 16384, 65537, 1000000, 3 << 20]
    results = service.run([origin.url(f"/bytes/{n}?t=size{n}") for n in sizes], include="headers")
    for n, r in zip(sizes, results):
        assert r["body_bytes"] == n and not r["truncated"]
        assert service.body(r) == content(n, f"size{n}")


def test_bodies_of_many_hosts_are_not_mixed_up(service, origin):
    urls = [origin.url(f"/bytes/{300 + i}?t=mix{i}", HOSTS[i % 50]) for i in range(400)]
    for i, r in enumerate(service.run(urls)):
        assert r["body"].encode() == content(300 + i, f"mix{i}")


def test_binary_bodies_come_in_base64(service, origin, toxic):
    result = service.one(toxic.url("/encoded/identity"))
    assert "body" in result
    pixel = service.one(origin.url("/echo"), method="POST", body_base64="/w==", headers={})
    assert echoed(pixel)[2] == b"\xff"


@pytest.mark.parametrize("coding", ["gzip", "deflate", "raw-deflate", "identity"])
def test_encoded_bodies_are_decoded(service, toxic, coding):
    result = service.one(toxic.url(f"/encoded/{coding}"))
    assert result["status"] == "succeeded", result
    assert result["body"].startswith("the quick brown fox")
    assert result["body_bytes"] == len(result["body"]) == 880


def test_gzip_of_nginx_is_asked_for_and_decoded(service, origin):
    result = service.one(origin.url("/gzip/50000?t=zip"))
    assert result["headers"]["content-encoding"] == ["gzip"]
    assert result["body"].encode() == content(50000, "zip")
    assert result["body_bytes"] == 50000


def test_response_headers_are_kept_with_repeats_and_odd_bytes(service, origin, toxic):
    result = service.one(toxic.url("/odd-headers"))
    headers = result["headers"]
    assert headers["x-same"] == ["one", "two", "three"]
    assert headers["x-latin"] == ["café"] and headers["x-utf8"] == ["café"]
    assert headers["x-empty"] == [""] and headers["x-quote"] == ['"\\<>']
    assert result["content_type"] == "text/html"
    result = service.one(origin.url("/headers/50"))
    assert result["headers"]["set-cookie"] == ["a=1; Path=/", "b=2", "a=3"]
    assert result["headers"]["x-header-50"] == ["value 50"]


def test_cookies_are_never_sent_back(service, origin):
    service.run([origin.url("/headers/1")] * 3, limits={"max_parallel": 1})
    fields = echoed(service.one(origin.url("/echo")))[1]
    assert "cookie" not in fields


def test_timing_says_where_the_time_went(service, origin):
    result = service.one(origin.url("/delay/0.3"))
    timing = result["timing"]
    assert 280 <= timing["first_byte_ms"] <= timing["total_ms"]
    assert timing["tls_ms"] == 0 and timing["retry_wait_ms"] == 0
    slow = service.one(origin.url("/slow-body/10"))
    assert slow["timing"]["transfer_ms"] >= 150
    assert slow["remote_ip"] == "127.0.0.1"


def test_time_in_line_is_told_apart_from_time_of_fetching(service, origin):
    results = service.run([origin.url("/delay/0.2")] * 4, limits={"max_parallel": 1})
    waits = sorted(r["timing"]["limit_wait_ms"] + r["timing"]["queued_ms"] for r in results)
    assert waits[0] < 200 and waits[3] >= 550
    assert all(190 <= r["timing"]["first_byte_ms"] < 1000 for r in results)


def test_connections_are_used_again(service, origin):
    service.run([origin.url(f"/bytes/10?t={i}") for i in range(100)], limits={"max_parallel": 2})
    connections = {h.connection for h in origin.hits(100)}
    assert len(connections) <= 10, "almost no connection was used twice"


# ---- redirects ----

def test_redirects_are_followed_and_listed(service, origin):
    result = service.one(origin.url("/redirect/3"))
    assert result["status"] == "succeeded" and result["http_status"] == 200
    assert [(r["status"], r["url"]) for r in result["redirects"]] == [
        (302, origin.url("/redirect/2")), (302, origin.url("/redirect/1")),
        (302, origin.url("/echo"))]
    assert result["final_url"] == origin.url("/echo")
    assert result["url"] == origin.url("/redirect/3") and result["attempts"] == 1


@pytest.mark.parametrize("status, method, then", [
    (301, "GET", "GET"), (301, "POST", "GET"), (301, "PUT", "PUT"), (301, "HEAD", "HEAD"),
    (302, "POST", "GET"), (302, "PATCH", "PATCH"), (302, "DELETE", "DELETE"),
    (303, "POST", "GET"), (303, "PUT", "GET"), (303, "DELETE", "GET"), (303, "HEAD", "HEAD"),
    (307, "POST", "POST"), (307, "PUT", "PUT"), (307, "GET", "GET"),
    (308, "POST", "POST"), (308, "PATCH", "PATCH")])
def test_methods_change_with_redirects_as_the_fetch_standard_says(service, origin, status, method,
                                                                  then):
    request = {"method": method, "headers": {"Content-Type": "text/x", "X-Keep": "k"}}
    if method in ("POST", "PUT", "PATCH", "DELETE"):
        request["body"] = "payload"
    result = service.one(origin.url(f"/redirect/1?status={status}"), **request)
    assert result["status"] == "succeeded", result
    assert origin.hits(2)[1].method == then
    if then == "HEAD":
        return
    got, fields, body = echoed(result)
    assert got == then and fields["x-keep"] == ["k"]
    if then == method and "body" in request:
        assert body == b"payload" and fields["content-type"] == ["text/x"]
    elif then != method:
        assert body == b"" and "content-type" not in fields and "content-length" not in fields


def test_secrets_go_only_to_the_origin_they_were_given_for(service, origin, toxic):
    """Any field may be a credential, so only a few that never are go on to another origin."""
    secret = {"Authorization": "Bearer s3cret", "Cookie": "sid=s3cret", "X-Api-Key": "s3cret",
              "Accept-Language": "de"}
    same = service.one(origin.url("/redirect/1"), headers=secret)
    fields = echoed(same)[1]
    assert fields["authorization"] == ["Bearer s3cret"] and fields["cookie"] == ["sid=s3cret"]
    assert fields["x-api-key"] == ["s3cret"]
    for target in (origin.url("/echo", HOSTS[1]), origin.url("/echo", "localhost")):
        other = service.one(origin.url(f"/redirect-to?url={target}"), headers=secret)
        fields = echoed(other)[1]
        assert not {"authorization", "cookie", "x-api-key"} & set(fields), fields
        assert fields["accept-language"] == ["de"]
    # Another port is another origin; and coming back does not bring them back.
    back = toxic.url("/to?url=" + origin.url("/echo"))
    result = service.one(origin.url(f"/redirect-to?url={back}"), headers=secret)
    assert len(result["redirects"]) == 2
    assert "authorization" not in echoed(result)[1]
    with toxic.lock:
        assert not any(b"s3cret" in r for r in toxic.requests)


def test_max_redirects_bounds_the_hops(service, origin):
    ok = service.one(origin.url("/redirect/10"))
    assert ok["status"] == "succeeded" and len(ok["redirects"]) == 10
    many = service.one(origin.url("/redirect/11"))
    assert many["status"] == "failed" and many["error"]["code"] == "too_many_redirects"
    assert many["http_status"] == 302 and len(many["redirects"]) == 10
    one = service.one(origin.url("/redirect/2"), max_redirects=1)
    assert one["error"]["code"] == "too_many_redirects" and len(one["redirects"]) == 1


def test_without_redirects_the_redirect_is_the_result(service, origin):
    result = service.one(origin.url("/redirect/2"), max_redirects=0)
    assert result["status"] == "succeeded" and result["http_status"] == 302
    assert result["redirects"] == [] and result["headers"]["location"] == ["/redirect/1"]
    assert result["body"] == "to /redirect/1"


def test_loops_end(service, origin):
    result = service.one(origin.url("/loop"))
    assert result["error"]["code"] == "too_many_redirects"
    assert len(origin.hits(11)) == 11


@pytest.mark.parametrize("location, final", [
    ("/echo?a=b#frag", "/echo?a=b"), ("echo", "/x/echo"), ("../echo", "/echo"),
    ("?q=1", "/x/y?q=1"),
    ("//127.0.0.1:PORT/echo", "/echo"), ("HTTP://127.0.0.1:PORT/echo", "/echo"),
    ("./a/../../echo", "/echo")])
def test_locations_are_resolved_against_their_url(service, origin, toxic, location, final):
    location = location.replace("PORT", str(toxic.port)).encode().hex()
    # The path of the redirect itself: /to-raw/HEX, so relative ones land beside it.
    result = service.one(toxic.url(f"/to-raw/{location}"), max_redirects=1)
    assert result["redirects"][0]["status"] == 302, result
    got = result["redirects"][0]["url"]
    final = final.replace("/x/y", f"/to-raw/{location}").replace("/x/", "/to-raw/")
    assert got.split("#")[0] == toxic.url(final), got


@pytest.mark.parametrize("location, code", [
    (b"file:///etc/passwd", "invalid_url"), (b"gopher://127.0.0.1/", "invalid_url"),
    (b"data:text/plain,x", "invalid_url"), (b"javascript:alert(1)", "invalid_url"),
    (b"http://", "invalid_url"), (b"http://user:pw@127.0.0.1/", "invalid_url"),
    (b"http:\\\\127.0.0.1\\", "invalid_url"), (b"http://a b/", "invalid_url"),
    (b"http://127.0.0.1:99999/", "invalid_url"), (b"/" + b"x" * 20000, "invalid_url")],
    ids=lambda v: repr(v)[:30])
def test_redirects_to_what_cannot_be_fetched_fail(service, toxic, location, code):
    result = service.one(toxic.url(f"/to-raw/{location.hex()}") if len(location) < 1000 else
                         toxic.url("/to-long"))
    assert result["status"] == "failed" and result["error"]["code"] == code, result
    assert result["http_status"] == 302


def test_a_redirect_without_location_is_the_result(service, toxic):
    result = service.one(toxic.url("/no-location"))
    assert result["http_status"] == 302 and result["status"] == "succeeded"
    assert result["body"] == "where to?"


def test_a_redirect_to_a_dead_port_is_a_connect_error(service, origin):
    result = service.one(origin.url(f"/redirect-to?url=http://{DEAD_HOST}:9/"))
    assert result["error"]["code"] == "connect" and len(result["redirects"]) == 1
    assert result["final_url"] == f"http://{DEAD_HOST}:9/"


def test_all_is_the_same_over_text_with_defaults(service, origin):
    answer = service.post("/v1/batches?defaults.method=HEAD", origin.url("/bytes/5"),
                          {"Content-Type": TEXT}).expect(202)
    service.finish(json.loads(answer.body))
    assert origin.hits(1)[0].method == "HEAD"


def test_head_of_something_large_is_no_failure(service, origin):
    """Link checkers ask HEAD for files that they would not fetch."""
    result = service.one(origin.url("/bytes/20000000"), method="HEAD")
    assert result["status"] == "succeeded" and result["http_status"] == 200, result
    assert result["headers"]["content-length"] == ["20000000"] and result["body_bytes"] == 0
    too_large = service.one(origin.url("/bytes/20000000"))
    assert too_large["error"]["code"] == "too_large" and too_large["truncated"]
