"""Every wrong request gets its exact status and a problem document that says where the fault is;
the service goes on answering, on the same connection where the body was read, and to others."""
import json
import threading
import urllib.parse

import pytest

from harness import JSON, NDJSON, TEXT, query

SERVICE_ARGS = ["--max-urls", "1000", "--max-submission-bytes", "1m", "--max-body-bytes", "1m"]
URL = "http://127.0.0.1:9/"


@pytest.fixture(autouse=True)
def still_answers(service):
    """On the connection used (the client opens a new one only if that was closed) and a new one."""
    total = len(service.get("/v1/batches?limit=1000").json()["data"])
    yield
    service.get("/healthz").expect(200)
    service.client().request("GET", "/healthz").expect(200)
    after = len(service.get("/v1/batches?limit=1000").json()["data"])
    assert after == total, "a refused submission left a batch behind"


def post(service, body, media=JSON, **settings):
    return service.post("/v1/batches" + query(**settings), body, {"Content-Type": media})


# ---- malformed JSON: 400, with the position ----

@pytest.mark.parametrize("body, position, line", [
    ('{"urls": ["http://a.example/",]}', 30, 1),
    ('{"urls": ["http://a.example/"]', 30, 1),
    ('{"urls": ["http://a.example/"]} x', 32, 1),
    ('{"urls": ["http://a.example/"]}{}', 31, 1),
    ('{\n "urls":\n  [nope]}', 14, 3),
    ('{"urls": [01]}', 11, 1),
    ('{"urls" ["http://a.example/"]}', 8, 1),
    ("{'urls': []}", 1, 1),
    ('{"urls": ["a\tb"]}', 12, 1),
    ('{"urls": ["a\nb"]}', 12, 1),
    ('{"urls": ["\\x"]}', 12, 1),
    ('{"urls": ["\\ud800"]}', None, 1),
    (b'{"urls": ["\xff"]}', 11, 1),
    (b'{"urls": ["\xc3\x28"]}', None, 1),
    (b'{"urls": ["http://a\x00"]}', 19, 1),
    ("", 0, 1),
    ("   ", None, 1),
    ("nonsense", None, 1),
    ('{"urls": ' + "[" * 100000, None, 1),
    ('{"metadata": ' + '{"a":' * 1000, None, 1),
])
def test_malformed_json_is_refused_with_its_position(service, body, position, line):
    doc = post(service, body).problem(400, "malformed-json", errors=[{"line": line}])
    if position is not None:
        assert abs(doc["errors"][0]["position"] - position) <= 1, doc
    else:
        assert doc["errors"][0]["position"] >= 0


def test_malformed_ndjson_is_refused_with_its_line(service):
    body = f'"{URL}"\n\n"{URL}"\n{{"url": "{URL}",}}\n"{URL}"\n'
    post(service, body, NDJSON).problem(400, "malformed-json", errors=[{"line": 4}])
    post(service, f'"{URL}"\n"{URL}" "{URL}"\n', NDJSON).problem(
        400, "malformed-json", errors=[{"line": 2}])
    post(service, f'"{URL}"\nhttp://a.example/\n', NDJSON).problem(
        400, "malformed-json", errors=[{"line": 2}])


# ---- fields: 422, with pointer and the nearest name ----

@pytest.mark.parametrize("doc, pointer, detail", [
    ({"urls": [URL], "limit": {}}, "/limit", 'unknown field "limit"; did you mean "limits"\\?'),
    ({"requests": [{"url": URL, "timeout": 1}]}, "/requests/0/timeout",
     'unknown field "timeout"; did you mean "timeout_ms"\\?'),
    ({"requests": [{"url": URL}, {"url": URL, "Method": "GET"}]}, "/requests/1/Method",
     'did you mean "method"\\?'),
    ({"urls": [URL], "limits": {"max_parrallel": 1}}, "/limits/max_parrallel", '"max_parallel"'),
    ({"urls": [URL], "defaults": {"header": {}}}, "/defaults/header", '"headers"'),
    ({"urls": [URL], "defaults": {"url": URL}}, "/defaults/url", "unknown field"),
    ({"urls": [URL], "zzz": 1}, "/zzz", 'unknown field "zzz"$'),
    # Of later versions: unknown as yet.
    ({"urls": [URL], "max_per_host": 1}, "/max_per_host", 'did you mean "limits.max_per_host"?'),
    ({"urls": [URL], "max_attempts": 1}, "/max_attempts",
     'did you mean "retry.max_attempts" or "defaults.max_attempts"?'),
    ({"urls": [URL], "dedupe": True}, "/dedupe", "unknown field"),
    ({"urls": [URL], "webhook": {}}, "/webhook", "unknown field"),
    ({"urls": [URL], "limits": {"priority": 1}}, "/limits/priority",
     'did you mean "priority" of the whole batch?'),
])
def test_unknown_fields_are_refused_with_the_nearest_name(service, doc, pointer, detail):
    post(service, doc).problem(422, "invalid-field", errors=[{"pointer": pointer,
                                                              "detail": detail}])


@pytest.mark.parametrize("doc, pointer", [
    ({"urls": "x"}, "/urls"),
    ({"urls": [URL, 5]}, "/urls/1"),
    ({"urls": [None]}, "/urls/0"),
    ({"urls": [[URL]]}, "/urls/0"),
    ({"requests": {}}, "/requests"),
    ({"requests": [URL]}, "/requests/0"),
    ({"requests": [{}]}, "/requests/0/url"),
    ({"requests": [{"url": 5}]}, "/requests/0/url"),
    ({"requests": [{"url": URL, "timeout_ms": "5"}]}, "/requests/0/timeout_ms"),
    ({"requests": [{"url": URL, "timeout_ms": 1.5}]}, "/requests/0/timeout_ms"),
    ({"requests": [{"url": URL, "timeout_ms": 0}]}, "/requests/0/timeout_ms"),
    ({"requests": [{"url": URL, "timeout_ms": 3600001}]}, "/requests/0/timeout_ms"),
    ({"requests": [{"url": URL, "timeout_ms": -1}]}, "/requests/0/timeout_ms"),
    ({"requests": [{"url": URL, "timeout_ms": 1e300}]}, "/requests/0/timeout_ms"),
    ({"requests": [{"url": URL, "timeout_ms": True}]}, "/requests/0/timeout_ms"),
    ({"requests": [{"url": URL, "timeout_ms": None}]}, "/requests/0/timeout_ms"),
    ({"requests": [{"url": URL, "connect_timeout_ms": 600001}]}, "/requests/0/connect_timeout_ms"),
    ({"requests": [{"url": URL, "max_attempts": 0}]}, "/requests/0/max_attempts"),
    ({"requests": [{"url": URL, "max_attempts": 21}]}, "/requests/0/max_attempts"),
    ({"requests": [{"url": URL, "max_body_bytes": -1}]}, "/requests/0/max_body_bytes"),
    ({"requests": [{"url": URL, "max_body_bytes": 1048577}]}, "/requests/0/max_body_bytes"),
    ({"requests": [{"url": URL, "method": "get"}]}, "/requests/0/method"),
    ({"requests": [{"url": URL, "method": "TRACE"}]}, "/requests/0/method"),
    ({"requests": [{"url": URL, "method": "CONNECT"}]}, "/requests/0/method"),
    ({"requests": [{"url": URL, "method": 1}]}, "/requests/0/method"),
    ({"requests": [{"url": URL, "body": "x"}]}, "/requests/0/body"),
    ({"requests": [{"url": URL, "method": "HEAD", "body": "x"}]}, "/requests/0/body"),
    ({"requests": [{"url": URL, "method": "OPTIONS", "body_base64": "eA=="}]},
     "/requests/0/body_base64"),
    ({"requests": [{"url": URL, "method": "POST", "body": 5}]}, "/requests/0/body"),
    ({"requests": [{"url": URL, "method": "POST", "body_base64": "%%%"}]},
     "/requests/0/body_base64"),
    ({"requests": [{"url": URL, "custom_id": ""}]}, "/requests/0/custom_id"),
    ({"requests": [{"url": URL, "custom_id": "x" * 257}]}, "/requests/0/custom_id"),
    ({"requests": [{"url": URL, "custom_id": 7}]}, "/requests/0/custom_id"),
    ({"requests": [{"url": URL, "headers": []}]}, "/requests/0/headers"),
    ({"requests": [{"url": URL, "headers": {"X-A": 1}}]}, "/requests/0/headers/X-A"),
    ({"requests": [{"url": URL, "headers": {"a b": "1"}}]}, "/requests/0/headers/a b"),
    ({"requests": [{"url": URL, "headers": {"": "1"}}]}, "/requests/0/headers/"),
    ({"requests": [{"url": URL, "headers": {"X/A": "a\r\nX-B: b"}}]}, "/requests/0/headers/X~1A"),
    ({"requests": [{"url": URL, "headers": {"X-A": "a\r\nX-B: b"}}]}, "/requests/0/headers/X-A"),
    ({"requests": [{"url": URL, "headers": {f"X-{i}": "v" for i in range(101)}}]},
     "/requests/0/headers"),
    ({"requests": [{"url": URL, "headers": {"X-A": "v" * 33000}}]}, "/requests/0/headers/X-A"),
    ({"urls": [URL], "limits": 5}, "/limits"),
    ({"urls": [URL], "limits": {"max_parallel": 0}}, "/limits/max_parallel"),
    ({"urls": [URL], "limits": {"max_per_host": 1000001}}, "/limits/max_per_host"),
    ({"urls": [URL], "limits": {"max_per_host": "auto"}}, "/limits/max_per_host"),
    ({"urls": [URL], "max_redirects": 51}, "/max_redirects"),
    ({"urls": [URL], "max_redirects": "1"}, "/max_redirects"),
    ({"urls": [URL], "limits": {"rate_per_host": 0}}, "/limits/rate_per_host"),
    ({"urls": [URL], "limits": {"rate_per_host": 1e7}}, "/limits/rate_per_host"),
    ({"urls": [URL], "priority": 10}, "/priority"),
    ({"requests": [{"url": URL, "priority": 1}]}, "/requests/0/priority"),
    ({"urls": [URL], "http_version": 2}, "/http_version"),
    ({"urls": [URL], "retry": 3}, "/retry"),
    ({"urls": [URL], "retry": {"attempts": 3}}, "/retry/attempts"),
    ({"urls": [URL], "retry": {"max_attempts": 21}}, "/retry/max_attempts"),
    ({"urls": [URL], "retry": {"min_backoff_ms": 2, "max_backoff_ms": 1}},
     "/retry/max_backoff_ms"),
    ({"urls": [URL], "retry": {"max_retry_after_ms": 86400001}}, "/retry/max_retry_after_ms"),
    ({"urls": [URL], "retry": {"on_status": [429, 200]}}, "/retry/on_status/1"),
    ({"urls": [URL], "retry": {"on_status": [429, 429]}}, "/retry/on_status/1"),
    ({"urls": [URL], "retry": {"non_idempotent": "yes"}}, "/retry/non_idempotent"),
    ({"urls": [URL], "ignore_invalid_urls": "yes"}, "/ignore_invalid_urls"),
    ({"urls": [URL], "name": ""}, "/name"),
    ({"urls": [URL], "name": "x" * 257}, "/name"),
    ({"urls": [URL], "metadata": []}, "/metadata"),
    ({"urls": [URL], "metadata": {"a": 1}}, "/metadata/a"),
    ({"urls": [URL], "metadata": {"a": "x" * 1025}}, "/metadata/a"),
    ({"urls": [URL], "metadata": {"": "x"}}, "/metadata/"),
    ({"urls": [URL], "metadata": {f"k{i}": "v" for i in range(51)}}, "/metadata"),
    ({"urls": [URL], "defaults": {"max_attempts": "2"}}, "/defaults/max_attempts"),
])
def test_wrong_values_are_refused_with_their_pointer(service, doc, pointer):
    post(service, doc).problem(422, "invalid-field", errors=[{"pointer": pointer}])


@pytest.mark.parametrize("name", [
    "Host", "content-length", "Transfer-Encoding", "CONNECTION", "Keep-Alive", "Upgrade", "TE",
    "Trailer", "Expect", "Proxy-Authorization", "proxy-connection", "Metadata-Flavor",
    "X-aws-ec2-metadata-token", "x-aws-ec2-metadata-token-ttl-seconds"])
def test_headers_that_would_break_the_request_are_refused(service, name):
    post(service, {"requests": [{"url": URL, "headers": {name: "x"}}]}).problem(
        422, "invalid-field", errors=[{"pointer": f"/requests/0/headers/{name}"}])


@pytest.mark.parametrize("name", ["a\nb", "a\r\nb"])
def test_a_pointer_may_have_line_ends(service, name):
    post(service, {"requests": [{"url": URL, "headers": {name: "x"}}]}).problem(
        422, "invalid-field", errors=[{"pointer": f"/requests/0/headers/{name}"}])


@pytest.mark.parametrize("body", [
    '{"urls": ["%s"], "urls": ["%s"]}' % (URL, URL),
    '{"urls": ["%s"], "name": "a", "name": "b"}' % URL,
    '{"requests": [{"url": "%s", "url": "%s"}]}' % (URL, URL),
    '{"requests": [{"url": "%s", "headers": {"X-A": "1", "X-A": "2"}}]}' % URL,
    '{"urls": ["http://a.example\\u0000.b/"]}',
    '{"urls": ["%s"], "name": "a\\u0000"}' % URL,
])
def test_duplicate_members_and_nul_characters_are_refused(service, body):
    post(service, body).problem(422, "invalid-field")


@pytest.mark.parametrize("doc", [
    {"urls": [URL], "requests": [{"url": URL}]}, {"name": "neither"}, {}])
def test_exactly_one_of_urls_and_requests_must_be_there(service, doc):
    post(service, doc).problem(422, "invalid-field")


@pytest.mark.parametrize("body", ["[]", '["http://a.example/"]', "5", '"x"', "null"])
def test_the_document_must_be_an_object(service, body):
    post(service, body).problem(422, "invalid-field")


def test_fields_of_a_request_object_in_ndjson_name_line_and_pointer(service):
    body = f'"{URL}"\n{{"url": "{URL}", "timeout": 5}}\n'
    post(service, body, NDJSON).problem(
        422, "invalid-field", errors=[{"line": 2, "pointer": "/timeout",
                                       "detail": 'did you mean "timeout_ms"'}])
    post(service, f'"{URL}"\n\n5\n', NDJSON).problem(422, "invalid-field", errors=[{"line": 3}])


def test_several_wrong_fields_are_all_named(service):
    doc = {"requests": [{"url": URL, "timeout": 1}, {"url": URL, "method": "get"}], "nam": "x"}
    problem = post(service, doc).problem(422, "invalid-field")
    assert {e["pointer"] for e in problem["errors"]} == {"/requests/0/timeout",
                                                         "/requests/1/method", "/nam"}


# ---- URLs ----

BAD_URLS = [
    "", " ", "nonsense", "/path", "//host/", "http:", "http://", "http:///path", "ftp://a.example/",
    "file:///etc/passwd", "gopher://a.example/", "javascript:alert(1)", "data:,x",
    "http://a.example:99999/", "http://a.example:x/", "http://user@a.example/",
    "http://user:pw@a.example/", "http://a.example\\@b.example/", "http://a b.example/",
    "http://a.example/a b", "http://a.example/\u0007", "http://[::1/", "http://[::g]/",
    "http://a.example/" + "x" * 8192, "http://" + "a" * 300 + ".example/", "http://%00/",
    "http://a..b/", "http://[fe80::1%25lo]/"]


@pytest.mark.parametrize("url", BAD_URLS, ids=lambda u: repr(u)[:40])
def test_a_url_that_cannot_be_fetched_is_refused_with_its_index(service, url):
    doc = post(service, {"urls": [URL, URL, url]}).problem(
        422, "invalid-url", errors=[{"pointer": "/urls/2"}])
    assert len(doc["errors"]) == 1
    post(service, {"requests": [{"url": url}]}).problem(
        422, "invalid-url", errors=[{"pointer": "/requests/0/url"}])


def test_a_bad_url_in_text_and_ndjson_is_named_by_line(service):
    post(service, f"# list\n{URL}\n\nnonsense\n{URL}\nalso bad\n", TEXT).problem(
        422, "invalid-url", detail="2", errors=[{"line": 4}, {"line": 6}])
    post(service, f'"{URL}"\n\n"nonsense"\n{{"url": "bad"}}\n', NDJSON).problem(
        422, "invalid-url", errors=[{"line": 3}, {"line": 4, "pointer": "/url"}])


def test_the_first_hundred_bad_urls_are_listed_and_all_are_counted(service):
    doc = post(service, {"urls": ["bad"] * 250 + [URL]}).problem(422, "invalid-url", detail="250")
    assert [e["pointer"] for e in doc["errors"]] == [f"/urls/{i}" for i in range(100)]


def test_only_bad_urls_are_forgiven_by_ignore_invalid_urls(service):
    doc = {"requests": [{"url": "bad", "timeout": 1}], "ignore_invalid_urls": True}
    post(service, doc).problem(
        422, "invalid-field", errors=[{"pointer": "/requests/0/timeout"}])


# ---- empty, too many, too large ----

@pytest.mark.parametrize("body, media", [
    ({"urls": []}, JSON), ({"requests": []}, JSON), ("", TEXT), ("\n\n# nothing\n", TEXT),
    ("", NDJSON), ("\n\n", NDJSON)])
def test_an_empty_batch_is_refused(service, body, media):
    post(service, body, media).problem(422, "empty-batch")


def test_more_urls_than_allowed_are_refused(service):
    for media, body in ((JSON, json.dumps({"urls": [URL] * 1001})), (TEXT, (URL + "\n") * 1001),
                        (NDJSON, f'"{URL}"\n' * 1001)):
        post(service, body, media).problem(413, "too-large", detail="1000")


def test_a_body_that_is_too_large_by_its_length_is_refused_at_once(service):
    answers, closed = service.raw(
        b"POST /v1/batches HTTP/1.1\r\nHost: %s:%d\r\nContent-Type: text/plain\r\n"
        b"Content-Length: 2000000\r\n\r\n" % (service.address[0].encode(), service.address[1]))
    answers[0].problem(413, "too-large", detail="1048576")
    assert closed


def test_a_streamed_body_is_refused_as_soon_as_it_passes_the_limit(service):
    with service.connect() as sock:
        sock.sendall(b"POST /v1/batches HTTP/1.1\r\nHost: %s:%d\r\nContent-Type: text/plain\r\n"
                     b"Transfer-Encoding: chunked\r\n\r\n" % (service.address[0].encode(),
                                                              service.address[1]))
        line = b"# " + b"x" * 998 + b"\n"
        sent = 0
        sock.settimeout(0.001)
        early = b""
        # An answer must come although the upload has no end.
        for _ in range(20000):
            try:
                sock.sendall(b"%x\r\n%b\r\n" % (len(line), line))
                sent += len(line)
            except TimeoutError:
                pass
            except (BrokenPipeError, ConnectionResetError):
                break
            try:
                early = sock.recv(65536)
                break
            except TimeoutError:
                continue
            except ConnectionResetError:
                break
        assert early.startswith(b"HTTP/1.1 413 "), (early[:300], sent)
        assert b"/problems/too-large" in early


@pytest.mark.parametrize("media, line", [(TEXT, "http://a.example/" + "x" * 70000),
                                         (TEXT, "#" + "x" * 70000)])
def test_a_line_that_is_too_long_is_refused_with_its_number(service, media, line):
    post(service, URL + "\n" + line, media).problem(413, "too-large", errors=[{"line": 2}])


def test_settings_that_are_too_large_are_refused(service):
    post(service, '{"urls": ["%s"], "metadata": {%s}}' % (
        URL, ",".join(f'"k{i}": "{"v" * 900}"' for i in range(400)))).problem(413, "too-large")


# ---- method, path, type ----

@pytest.mark.parametrize("method, path, allow", [
    ("PUT", "/v1/batches", "GET, HEAD, POST, OPTIONS"),
    ("DELETE", "/v1/batches", "GET, HEAD, POST, OPTIONS"),
    ("PATCH", "/v1/batches/x", "GET, HEAD, DELETE, OPTIONS"),
    ("POST", "/v1/batches/x", "GET, HEAD, DELETE, OPTIONS"),
    ("GET", "/v1/batches/x/cancel", "POST, OPTIONS"),
    ("GET", "/v1/batches/x/pause", "POST, OPTIONS"),
    ("POST", "/v1/batches/x/results", "GET, HEAD, OPTIONS"),
    ("DELETE", "/v1/batches/x/results/0", "GET, HEAD, OPTIONS"),
    ("DELETE", "/v1/batches/x/results/0/body", "GET, HEAD, OPTIONS"),
    ("POST", "/healthz", "GET, HEAD, OPTIONS"),
    ("BREW", "/openapi.yaml", "GET, HEAD, OPTIONS"),
])
def test_a_wrong_method_is_refused_with_those_allowed(service, method, path, allow):
    answer = service.request(method, path)
    answer.problem(405, "method-not-allowed")
    assert set(answer.header("Allow").split(", ")) == set(allow.split(", "))


@pytest.mark.parametrize("path", [
    "/", "/v1", "/v1/", "/v1/batches/", "/v1/batches/x/", "/v1/batch", "/V1/batches",
    "/v1/batches/x/stop", "/v1/batches/x/results/", "/v1/batches/x/results/abc",
    "/v1/batches/x/results/-1", "/v1/batches/x/results/01", "/v1/batches/x/results/0/bodies",
    "/metric", "/v1/capacity", "/%2e%2e/healthz", "/healthz/", "//healthz",
    "/v1/batches/" + "x" * 3000])
def test_an_unknown_path_is_not_found(service, path):
    service.get(path).problem(404, "not-found")


@pytest.mark.parametrize("method, path", [
    ("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("POST", "/pause"), ("POST", "/resume"),
    ("POST", "/retry"), ("GET", "/results"), ("GET", "/results/0"),
    ("GET", "/results/0/body")])
@pytest.mark.parametrize("batch", ["batch_0000", "x", "%25", "'; drop table batch; --"])
def test_an_unknown_batch_is_not_found(service, method, path, batch):
    service.request(method, f"/v1/batches/{urllib.parse.quote(batch)}{path}").problem(
        404, "not-found")


@pytest.mark.parametrize("media, detail", [
    (None, None), ("application/xml", None), ("text/html", None),
    ("text/plain; charset=latin1", "utf-8"),
    ("application/json; charset=utf-16", "utf-8"), ("", None), ("json", None),
    ("application/x-www-form-urlencoded", "Content-Type: text/plain")])
def test_another_content_type_is_refused(service, media, detail):
    headers = {} if media is None else {"Content-Type": media}
    service.post("/v1/batches", b"http://a.example/", headers).problem(
        415, "unsupported-media-type", detail=detail)


def test_an_encoded_submission_is_refused(service):
    service.post("/v1/batches", b"x", {"Content-Type": TEXT, "Content-Encoding": "gzip"}).problem(
        415, "unsupported-media-type")


def test_options_and_head_work(service):
    answer = service.request("OPTIONS", "/v1/batches").expect(204)
    assert set(answer.header("Allow").split(", ")) == {"GET", "HEAD", "POST", "OPTIONS"}
    for path in ("/healthz", "/v1/batches", "/openapi.yaml", "/v1/batches/none"):
        head, get = service.request("HEAD", path), service.get(path)
        assert head.status == get.status and head.body == b""
        assert head.header("Content-Length") == get.header("Content-Length")


# ---- query parameters, cursors ----

@pytest.mark.parametrize("path, parameter", [
    ("/v1/batches?limt=1", "limt"), ("/v1/batches?limit=0", "limit"),
    ("/v1/batches?limit=1001", "limit"), ("/v1/batches?limit=x", "limit"),
    ("/v1/batches?limit=", "limit"), ("/v1/batches?limit=1&limit=1", "limit"),
    ("/v1/batches?status=done", "status"), ("/v1/batches?after=zzz", "after"),
    ("/v1/batches?after=", "after"), ("/healthz?x=1", "x"), ("/openapi.yaml?v=1", "v")])
def test_a_wrong_query_parameter_is_named(service, path, parameter):
    service.get(path).problem(422, "invalid-field", errors=[{"parameter": parameter}])


def test_the_nearest_parameter_is_named(service):
    service.get("/v1/batches?limits=1").problem(422, "invalid-field",
                                                errors=[{"detail": 'did you mean "limit"'}])


@pytest.mark.parametrize("settings, parameter", [
    ({"limits.max_parrallel": 1}, "limits.max_parrallel"),
    ({"defaults.timeout_ms": "x"}, "defaults.timeout_ms"),
    ({"defaults.method": "get"}, "defaults.method"), ({"max_redirects": 99}, "max_redirects"),
    ({"ignore_invalid_urls": "yes"}, "ignore_invalid_urls"), ({"urls": URL}, "urls"),
    ({"defaults.headers.Host": "x"}, "defaults.headers.Host"), ({"metadata.": "x"}, "metadata."),
    ({"limits.rate_per_host": "-1"}, "limits.rate_per_host"), ({"priority": 10}, "priority"),
    ({"http_version": 3}, "http_version"), ({"retry.on_status": "429,x"}, "retry.on_status"),
    ({"name": ""}, "name"), ({"defaults.body": "x"}, "defaults.body")])
def test_a_wrong_setting_in_the_query_is_named(service, settings, parameter):
    post(service, URL, TEXT, **settings).problem(422, "invalid-field",
                                                 errors=[{"parameter": parameter}])


def test_a_bare_url_in_ndjson_gets_a_hint(service):
    post(service, json.dumps(URL) + "\n" + URL, NDJSON).problem(
        400, "malformed-json", errors=[{"line": 2, "detail": "in quotation marks"}])


def test_json_takes_no_settings_from_the_query(service):
    post(service, {"urls": [URL]}, name="x").problem(422, "invalid-field",
                                                     errors=[{"parameter": "name"}])


@pytest.mark.parametrize("path", ["/v1/batches?limit=%", "/v1/batches?limit=%zz",
                                  "/v1/batches?after=%ff", "/v1/batches?after=%00",
                                  "/v1/batches/%zz", "/v1/batches/%00"])
def test_a_bad_percent_escape_is_refused(service, path):
    service.get(path).problem(400, "bad-request")


# ---- who asks ----

@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1:1", "127.0.0.2:PORT", "",
                                  "127.0.0.1:PORT.evil.example", "127.0.0.1", "localhost",
                                  "evil.example:PORT", "user@127.0.0.1:PORT"])
def test_a_host_that_is_not_ours_is_refused(service, host):
    host = host.replace("PORT", str(service.address[1]))
    answer = service.get("/healthz", {"Host": host})
    if host == "":
        assert answer.status in (400, 421)
    else:
        answer.problem(421, "misdirected")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST", "[::1]"])
def test_our_own_names_are_accepted(service, host):
    service.get("/healthz", {"Host": f"{host}:{service.address[1]}"}).expect(200)


@pytest.mark.parametrize("headers", [
    {"Origin": "http://evil.example"}, {"Origin": "null"}, {"Origin": "https://127.0.0.1:PORT"},
    {"Origin": "http://127.0.0.1"}, {"Origin": "http://127.0.0.1:PORT.evil.example"},
    {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}, {"Origin": ""}])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_other_web_pages_are_refused(service, headers, method):
    headers = {n: v.replace("PORT", str(service.address[1])) for n, v in headers.items()}
    if method == "GET":
        service.get("/v1/batches", headers).problem(403, "forbidden-origin")
    else:
        service.post("/v1/batches", URL, {"Content-Type": TEXT, **headers}).problem(
            403, "forbidden-origin")


@pytest.mark.parametrize("headers", [
    {"Origin": "http://127.0.0.1:PORT"}, {"Origin": "http://localhost:PORT"},
    {"Sec-Fetch-Site": "same-origin"}, {"Sec-Fetch-Site": "none"}])
def test_our_own_pages_are_accepted(service, headers):
    headers = {n: v.replace("PORT", str(service.address[1])) for n, v in headers.items()}
    service.get("/v1/batches", headers).expect(200)


# ---- side by side ----

def test_wrong_requests_do_not_disturb_others(service):
    """Good requests beside a storm of wrong ones, each on its own connection."""
    stop = threading.Event()
    errors = []

    def wrong(n):
        client = service.client()
        bodies = ['{"urls": [', '{"urls": ["bad"]}', "nonsense", '{"urls": []}']
        while not stop.is_set():
            try:
                status = client.request("POST", "/v1/batches", bodies[n % 4],
                                        {"Content-Type": JSON}).status
                if status not in (400, 422):
                    errors.append(status)
            except OSError as e:
                errors.append(e)

    threads = [threading.Thread(target=wrong, args=(n,)) for n in range(4)]
    for t in threads:
        t.start()
    try:
        client = service.client()
        for _ in range(200):
            client.request("GET", "/healthz").expect(200)
    finally:
        stop.set()
        for t in threads:
            t.join()
    assert not errors, errors[:5]


def test_a_refused_submission_leaves_the_connection_usable(service):
    client = service.client()
    client.request("GET", "/healthz").expect(200)
    sock = client.conn.sock
    for body in ('{"urls": [', '{"urls": ["bad"]}', '{"urls": [], "x": 1}'):
        client.request("POST", "/v1/batches", body, {"Content-Type": JSON}).expect(400, 422)
        client.request("GET", "/v1/batches/none").expect(404)
    assert client.conn is not None and client.conn.sock is sock, "the connection was closed"


def test_a_query_of_very_many_parameters_is_refused_at_once(service):
    """The library goes silent at some 900 of them."""
    query = "&".join(f"a{i}=1" for i in range(1500))
    service.get(f"/v1/batches?{query}").problem(400, "bad-request", detail=r"256 query parameters")
    service.get("/healthz").expect(200)
