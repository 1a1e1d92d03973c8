"""Results: pages, orders, filters, NDJSON, single ones and bodies; during a run and after."""
import base64
import datetime
import json
import socket
import urllib.parse

import pytest

from harness import NDJSON, PROBLEM, SLOWER, check_complete, query, size
from origin import DEAD_HOST, HOSTS, content

N = 300


@pytest.fixture(scope="module")
def ended(module_service, session_origin):
    """A batch of 300 with every kind of result, in no order of completion that is the index's."""
    urls = []
    for i in range(N):
        path = ["/bytes/40?t=%d", "/status/404?%d", "/delay/0.0%d", "/redirect/1?%d",
                "/echo?%d"][i % 5] % (i if i % 5 != 2 else i % 10)
        urls.append({"url": session_origin.url(path, HOSTS[i % 7]), "custom_id": f"id-{i % 50}"})
    urls[7]["url"] = f"http://{DEAD_HOST}:9/"
    return module_service.wait(module_service.submit(requests=urls)["id"])


@pytest.mark.parametrize("limit", [2, 7, 100, 299, 300, 301, 10000])
@pytest.mark.parametrize("order", ["completion", "index"])
def test_pages_hold_every_result_once(service, ended, limit, order):
    results = [r for page in service.pages(ended["id"], limit=limit, order=order)
               for r in page["data"]]
    check_complete(ended, results)
    if order == "index":
        assert [r["index"] for r in results] == list(range(N))
    else:
        times = [datetime.datetime.fromisoformat(r["completed_at"]) for r in results]
        # Fetchers hand over what ended within a moment together: the order is that of storing.
        assert all(b - a > -datetime.timedelta(milliseconds=20 * SLOWER)
                   for a, b in zip(times, times[1:]))
        assert [r["index"] for r in results] != list(range(N))


def test_a_page_has_100_results_unless_asked_otherwise(service, ended):
    page = service.get(f"/v1/batches/{ended['id']}/results").json()
    assert len(page["data"]) == 100 and page["has_more"] and page["next"]


@pytest.mark.parametrize("status", ["succeeded", "failed", "cancelled"])
@pytest.mark.parametrize("order", ["completion", "index"])
def test_a_status_can_be_asked_for(service, ended, status, order):
    everything = service.results(ended["id"], order=order)
    some = service.results(ended["id"], order=order, status=status, limit=13)
    assert some == [r for r in everything if r["status"] == status]


def test_a_custom_id_can_be_asked_for(service, ended):
    some = service.results(ended["id"], custom_id="id-3", order="index")
    assert [r["index"] for r in some] == [3, 53, 103, 153, 203, 253]
    assert service.results(ended["id"], custom_id="id-3", status="failed") == []
    assert service.results(ended["id"], custom_id="none") == []


def test_headers_and_bodies_come_only_when_asked_for(service, ended):
    plain = service.results(ended["id"], order="index")
    assert not any({"headers", "body", "body_base64"} & set(r) for r in plain)
    for include in ("headers", "body", "body,headers"):
        for r, more in zip(plain, service.results(ended["id"], order="index", include=include)):
            extra = set(more) - set(r)
            assert {k: more[k] for k in r} == r
            expected = set()
            if "headers" in include:
                expected.add("headers")
            if "body" in include and r["body_url"]:
                expected.add("body")
            assert extra == expected, (extra, r)


@pytest.mark.parametrize("params", [
    {}, {"order": "index"}, {"status": "failed"}, {"include": "body,headers"}, {"limit": 42},
    {"custom_id": "id-9"}])
def test_ndjson_equals_the_pages(service, ended, params):
    answer = service.get(f"/v1/batches/{ended['id']}/results" + query(**params),
                         {"Accept": NDJSON}).expect(200)
    pages = service.results(ended["id"], **dict(params, limit=1000))
    assert answer.ndjson() == pages[:params.get("limit", len(pages))]
    assert answer.header("Transfer-Encoding") == "chunked"


def test_ndjson_goes_on_after_a_cursor(service, ended):
    path = f"/v1/batches/{ended['id']}/results"
    page = service.get(path + "?limit=120").json()
    rest = service.get(path + query(after=page["next"]), {"Accept": NDJSON}).ndjson()
    check_complete(ended, page["data"] + rest)


def test_ndjson_over_http_10_ends_with_the_connection(service, ended):
    data = (f"GET /v1/batches/{ended['id']}/results HTTP/1.0\r\n"
            f"Host: {service.address[0]}:{service.address[1]}\r\nAccept: {NDJSON}\r\n\r\n")
    answers, closed = service.raw(data.encode())
    assert closed and answers[0].header("Transfer-Encoding") is None
    assert len(answers[0].body.splitlines()) == N


@pytest.mark.parametrize("accept, media", [
    ("*/*", "application/json"), ("application/json", "application/json"),
    ("application/*", "application/json"), ("text/html, */*;q=0.1", "application/json"),
    ("application/x-ndjson", NDJSON), ("application/x-ndjson, application/json;q=0.5", NDJSON),
    ("application/json;q=0.5, application/x-ndjson;q=0.9", NDJSON),
    ("application/json, application/x-ndjson;q=0.9", "application/json"),
    ("application/json;q=0, */*", NDJSON), ("text/html", None), ("application/json;q=0", None)])
def test_the_accept_field_chooses(service, ended, accept, media):
    answer = service.get(f"/v1/batches/{ended['id']}/results?limit=1", {"Accept": accept})
    if media is None:
        answer.problem(406, "not-acceptable")
    else:
        assert answer.expect(200).header("Content-Type") == media


@pytest.mark.parametrize("path", [
    "?limit=0", "?limit=10001", "?status=done", "?order=random", "?include=all", "?include=body,x",
    "?after=zzz", "?after=", "?after=AAAA", "?wait=1", "?limits=3", "?custom_id=a&custom_id=b"])
def test_wrong_parameters_are_named(service, ended, path):
    parameter = path[1:].split("=")[0]
    service.get(f"/v1/batches/{ended['id']}/results" + path).problem(
        422, "invalid-field", errors=[{"parameter": parameter}])


def test_a_cursor_is_good_for_its_batch_and_order_only(service, ended, origin):
    other = service.submit([origin.url("/bytes/1")] * 3)
    service.wait(other["id"])
    path = f"/v1/batches/{ended['id']}/results"
    cursor = service.get(path + "?limit=5").json()["next"]
    service.get(path + query(after=cursor)).expect(200)
    bad = [query(after=cursor, order="index"), query(after=cursor[:-1]), query(after=cursor + "A"),
           query(after=cursor[:5] + ("A" if cursor[5] != "A" else "B") + cursor[6:])]
    for params in bad:
        service.get(path + params).problem(422, "invalid-field", errors=[{"parameter": "after"}])
    service.get(f"/v1/batches/{other['id']}/results" + query(after=cursor)).problem(
        422, "invalid-field", errors=[{"parameter": "after"}])
    listed = service.get("/v1/batches?limit=1").json()["next"]
    service.get(path + query(after=listed)).problem(422, "invalid-field")


def test_a_cursor_at_the_end_goes_on_from_there(service, origin):
    batch = service.submit([origin.url("/delay/0.01?a"), origin.url("/delay/0.6?b")])
    path = f"/v1/batches/{batch['id']}/results"
    seen, after, polls = [], None, 0
    while len(seen) < 2:
        page = service.get(path + (query(after=after) if after else "")).expect(200).json()
        seen += [r["url"][-1] for r in page["data"]]
        if page["data"]:
            assert page["next"]
        after = page["next"] or after
        polls += 1
    assert seen == ["a", "b"]
    end = service.get(path + query(after=after)).json()
    assert end["data"] == [] and not end["has_more"]


@pytest.mark.parametrize("media", ["application/json", NDJSON])
def test_paging_while_running_repeats_and_skips_nothing(start, origin, media):
    service = start("--max-per-host", 20)
    total = size(2000)
    batch = service.submit([origin.url(f"/bytes/50?t={i}", HOSTS[i % 5]) for i in range(total)])
    path = f"/v1/batches/{batch['id']}/results"
    seen, after = [], None
    pages = 0
    while len(seen) < total:
        if media == NDJSON:
            # A reader of NDJSON goes on after the last page's cursor.
            page = service.get(path + query(limit=1000, **({"after": after} if after else {})))
            lines = service.get(path + query(limit=1000, **({"after": after} if after else {})),
                                {"Accept": NDJSON}).ndjson()
            page = page.json()
            assert lines[:len(page["data"])] == page["data"]
        else:
            page = service.get(path + query(limit=37, **({"after": after} if after else {}))).json()
        seen += page["data"]
        after = page["next"] or after
        pages += 1
    assert len(seen) == total
    check_complete(service.wait(batch["id"]), seen)
    assert seen == service.results(batch["id"])


def test_order_of_index_while_running_shows_what_is_there(service, origin):
    batch = service.submit([origin.url("/delay/3"), origin.url("/bytes/1"), origin.url("/bytes/2")])
    path = f"/v1/batches/{batch['id']}/results?order=index"
    while True:
        page = service.get(path).json()["data"]
        if len(page) == 2:
            break
    assert [r["index"] for r in page] == [1, 2]
    service.delete(f"/v1/batches/{batch['id']}").expect(204)


# ---- one result and its body ----

def test_one_result_is_that_of_the_pages_with_headers(service, ended):
    for r in service.results(ended["id"], order="index", include="headers")[:10]:
        one = service.get(f"/v1/batches/{ended['id']}/results/{r['index']}").expect(200).json()
        assert one == r
        one = service.get(f"/v1/batches/{ended['id']}/results/{r['index']}?include=body").json()
        assert ("body" in one) == (r["body_url"] is not None)


def test_a_result_that_is_not_there_yet_is_told_from_one_that_never_will(service, origin):
    batch = service.submit([origin.url("/delay/5")])
    base = f"/v1/batches/{batch['id']}/results"
    service.get(base + "/0").problem(404, "result-not-ready")
    service.get(base + "/0/body").problem(404, "result-not-ready")
    for index in ("1", "99999999999", "9223372036854775807", "99999999999999999999"):
        service.get(f"{base}/{index}").problem(404, "not-found")
        service.get(f"{base}/{index}/body").problem(404, "not-found")
    service.delete(f"/v1/batches/{batch['id']}").expect(204)


@pytest.fixture(scope="module")
def big(module_service, session_origin):
    """A body of 200,000 bytes."""
    batch = module_service.submit([session_origin.url("/bytes/200000?t=range")])
    module_service.wait(batch["id"])
    return f"/v1/batches/{batch['id']}/results/0/body", content(200000, "range"), batch["id"]


def test_a_body_is_served_inert(service, big):
    path, data, batch_id = big
    answer = service.get(path).expect(200)
    assert answer.body == data
    expected = {
        "Content-Type": "application/octet-stream", "Content-Length": "200000",
        "Content-Disposition": 'attachment; filename="0"', "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "sandbox; default-src 'none'",
        "Cross-Origin-Resource-Policy": "same-origin", "Referrer-Policy": "no-referrer",
        "Accept-Ranges": "bytes", "ETag": f'"{batch_id}-0"', "Cache-Control": "private, no-cache"}
    assert {n: answer.header(n) for n in expected} == expected
    assert answer.header("X-Batchfetch-Content-Type") is None
    head = service.request("HEAD", path).expect(200)
    assert head.body == b"" and head.header("Content-Length") == "200000"


@pytest.mark.parametrize("field, first, last", [
    ("bytes=0-0", 0, 0), ("bytes=0-99", 0, 99), ("bytes=199999-", 199999, 199999),
    ("bytes=100000-999999999", 100000, 199999), ("bytes=-1", 199999, 199999),
    ("bytes=-999999999", 0, 199999), ("bytes=65535-65537", 65535, 65537),
    ("BYTES=5-6", 5, 6)])
def test_a_range_is_served(service, big, field, first, last):
    path, data, _ = big
    answer = service.get(path, {"Range": field}).expect(206)
    assert answer.body == data[first:last + 1]
    assert answer.header("Content-Range") == f"bytes {first}-{last}/200000"
    assert answer.header("Content-Length") == str(last - first + 1)


@pytest.mark.parametrize("field", ["bytes=200000-", "bytes=200000-200001", "bytes=-0",
                                   "bytes=99999999999999999999-"])
def test_a_range_beyond_the_body_is_refused(service, big, field):
    answer = service.get(big[0], {"Range": field}).expect(416)
    assert answer.json() == {
        "type": "/problems/range-not-satisfiable", "title": "Range not satisfiable", "status": 416,
        "detail": "the body has 200000 bytes",
        "errors": [{"header": "Range", "detail": "no part of it lies within the body"}]}
    head = service.request("HEAD", big[0], headers={"Range": field}).expect(416)
    assert head.body == b""
    for each in (answer, head):
        expected = {
            "Content-Type": PROBLEM, "Content-Length": str(len(answer.body)),
            "Content-Range": "bytes */200000", "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff"}
        # The body's own header fields are not those of the problem.
        own = ("Date", "Connection", "X-Request-Id")
        assert {n: v for n, v in each.headers if n not in own} == expected


@pytest.mark.parametrize("field", ["bytes=0-1,5-6", "items=0-1", "bytes=5-2", "bytes=x", "bytes"])
def test_other_ranges_get_the_whole(service, big, field):
    assert service.get(big[0], {"Range": field}).expect(200).body == big[1]


def test_the_etag_of_a_body_saves_a_transfer(service, big):
    etag = service.get(big[0]).header("ETag")
    assert not etag.startswith("W/")
    answer = service.get(big[0], {"If-None-Match": etag}).expect(304)
    assert answer.body == b"" and answer.header("ETag") == etag
    service.get(big[0], {"If-None-Match": '"other"'}).expect(200)


@pytest.mark.parametrize("given, served", [
    ("text/plain", "text/plain"), ("text/plain; charset=utf-8", "text/plain; charset=utf-8"),
    ("application/json", "application/json"), ("image/png", "image/png"),
    ("IMAGE/JPEG", "image/jpeg"),
    ("text/html", "application/octet-stream"), ("image/svg+xml", "application/octet-stream"),
    ("text/javascript", "application/octet-stream"),
    ("application/xml", "application/octet-stream"),
    ("text/plain2", "application/octet-stream"), ("nonsense", "application/octet-stream")])
def test_only_harmless_types_are_served_as_themselves(service, origin, given, served):
    result = service.one(origin.url("/type?type=" + urllib.parse.quote(given)))
    assert result["content_type"] == given
    answer = service.get(result["body_url"]).expect(200)
    assert answer.header("Content-Type") == served
    assert answer.body == b"<script>alert(1)</script>"


def test_an_empty_body_is_a_body(service, origin):
    result = service.one(origin.url("/bytes/0"))
    answer = service.get(result["body_url"]).expect(200)
    assert answer.body == b"" and answer.header("Content-Length") == "0"
    answer = service.get(result["body_url"], {"Range": "bytes=0-"})
    assert answer.problem(416, "range-not-satisfiable", "^the body has 0 bytes$")
    assert answer.header("Content-Range") == "bytes */0"


def test_a_large_body_read_slowly_arrives_whole(service, big):
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.settimeout(10 * SLOWER)
    sock.connect(service.address)
    with sock:
        sock.sendall(f"GET {big[0]} HTTP/1.0\r\nHost: {service.address[0]}:{service.address[1]}"
                     "\r\n\r\n".encode())
        data = b""
        while more := sock.recv(3000):
            data += more
    assert data.split(b"\r\n\r\n", 1)[1] == big[1]


def test_custom_ids_come_back_as_they_were(service, origin):
    ids = ["a", "ü" * 100, "\"\\/\b\f\n\r\t\u0001", "<script>", "' OR 1=1 --", "%00%0a", "日本語",
           " x ", "\u2028", "\U0001f600", "a" * 256]
    requests = [{"url": origin.url("/bytes/1"), "custom_id": i} for i in ids]
    batch = service.submit(requests=requests)
    assert [r["custom_id"] for r in service.finish(batch)] == ids
    for i, custom_id in enumerate(ids):
        found = service.get(f"/v1/batches/{batch['id']}/results?custom_id=" +
                            urllib.parse.quote(custom_id, safe=""))
        assert [r["index"] for r in found.expect(200).json()["data"]] == [i]


def test_a_binary_body_comes_as_base64_and_a_text_as_text(service, origin, toxic):
    urls = [toxic.url("/encoded/identity"), origin.url("/text?t=x"), toxic.url("/binary")]
    text, umlaut, binary = service.run(urls)
    assert text["body"].startswith("the quick") and umlaut["body"] == "grüße x"
    assert "body" not in binary
    assert base64.b64decode(binary["body_base64"]) == service.body(binary) == bytes(range(256))


def test_a_page_of_large_bodies_is_bounded_and_complete(service, origin):
    """30 MB of bodies: a page stops at some 8 MiB although its limit is not reached."""
    batch = service.submit([origin.url(f"/bytes/1000000?t={i}") for i in range(30)])
    service.wait(batch["id"])
    pages = list(service.pages(batch["id"], limit=1000, include="body"))
    assert len(pages) > 1
    results = [r for p in pages for r in p["data"]]
    check_complete(service.batch(batch["id"]), results)
    for r in results:
        assert len(r["body"]) == 1000000
    lines = service.get(f"/v1/batches/{batch['id']}/results?include=body",
                        {"Accept": NDJSON}).body.splitlines()
    assert [json.loads(line)["index"] for line in lines] == [r["index"] for r in results]
