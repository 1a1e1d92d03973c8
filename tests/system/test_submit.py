"""Submission: the three types, every setting, and what comes back."""
import base64
import json
import re

import pytest

from harness import JSON, NDJSON, TEXT, query

BATCH_MEMBERS = {
    "id", "object", "status", "request_counts", "progress", "rate_per_s", "eta_s",
    "bytes_received", "created_at", "started_at", "ended_at", "expires_at", "limits",
    "max_redirects", "priority", "http_version", "retry", "retry_of", "name", "metadata", "results_url"}
POLICY = {"max_attempts": 3, "min_backoff_ms": 500, "max_backoff_ms": 30000,
          "max_retry_after_ms": 60000, "on_status": [408, 425, 429, 500, 502, 503, 504],
          "non_idempotent": False}
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


def send(service, body, media, **settings):
    answer = service.post("/v1/batches" + query(**settings), body, {"Content-Type": media})
    return answer.expect(202).json()


def echoed(result):
    """What the origin saw of a request to /echo: (method, {name: [values]}, body)."""
    doc = json.loads(result["body"])
    fields = {}
    for line in base64.b64decode(doc["head"]).decode("latin-1").split("\r\n")[1:]:
        if line:
            name, value = line.split(":", 1)
            fields.setdefault(name.lower(), []).append(value.strip())
    return doc["method"], fields, base64.b64decode(doc["body"])


def test_json_urls_are_fetched_in_their_order(service, origin):
    urls = [origin.url(f"/bytes/100?t=u{i}", f"127.0.0.{1 + i % 9}") for i in range(30)]
    results = service.run(urls)
    assert [r["url"] for r in results] == urls
    for i, r in enumerate(results):
        assert r["status"] == "succeeded" and r["http_status"] == 200
        assert r["body"].startswith(f"u{i}|") and r["body_bytes"] == 100
    assert sorted(h.uri for h in origin.hits(30)) == sorted(f"/bytes/100?t=u{i}" for i in range(30))


def test_the_batch_object_is_complete(service, origin):
    batch = service.submit([origin.url("/status/200")], name="näme", metadata={"k": "v ü"},
                           limits={"max_parallel": 3, "max_per_host": 2}, max_redirects=4)
    assert set(batch) == BATCH_MEMBERS
    assert batch["object"] == "batch" and batch["name"] == "näme"
    assert batch["metadata"] == {"k": "v ü"} and batch["max_redirects"] == 4
    assert batch["limits"] == {"max_parallel": 3, "max_per_host": 2, "rate_per_host": None}
    assert batch["results_url"] == f"/v1/batches/{batch['id']}/results"
    assert batch["status"] in ("queued", "in_progress", "completed")
    assert TIME.fullmatch(batch["created_at"])
    done = service.wait(batch["id"])
    assert set(done) == BATCH_MEMBERS
    assert done["status"] == "completed" and done["progress"] == 1 and done["eta_s"] is None
    assert done["created_at"] <= done["started_at"] <= done["ended_at"]
    assert done["bytes_received"] == len("status 200")
    assert {k: done[k] for k in ("name", "metadata", "limits", "max_redirects", "created_at")} == \
        {k: batch[k] for k in ("name", "metadata", "limits", "max_redirects", "created_at")}


def test_without_settings_the_services_own_apply(service, origin):
    batch = service.submit([origin.url("/status/200")])
    assert batch["limits"] == {"max_parallel": None, "max_per_host": None, "rate_per_host": None}
    assert batch["max_redirects"] == 10 and batch["name"] is None and batch["metadata"] == {}
    assert batch["priority"] == 5 and batch["http_version"] == "1.1"
    assert batch["retry"] == POLICY | {"max_attempts": 1}


def test_rate_priority_version_and_retry_policy_are_kept(start, origin):
    service = start()
    retry = {"max_attempts": 7, "min_backoff_ms": 20, "max_backoff_ms": 86400000,
             "max_retry_after_ms": 0, "on_status": [429, 503, 400], "non_idempotent": True}
    batch = service.submit([origin.url("/bytes/5")], limits={"rate_per_host": 1234.567},
                           priority=9, http_version="2", retry=retry)
    want = {"limits": {"max_parallel": None, "max_per_host": None, "rate_per_host": 1234.567},
            "priority": 9, "http_version": "2", "retry": retry | {"on_status": [400, 429, 503]}}
    assert {k: batch[k] for k in want} == want
    service.wait(batch["id"])
    service.stop()
    service.start()
    assert {k: v for k, v in service.batch(batch["id"]).items() if k in want} == want
    listed, = service.get("/v1/batches").expect(200).json()["data"]
    assert {k: listed[k] for k in want} == want


@pytest.mark.parametrize("retry, effective", [
    ({}, {}), ({"max_attempts": 1}, {"max_attempts": 1}), ({"on_status": []}, {"on_status": []}),
    ({"min_backoff_ms": 40000}, {"min_backoff_ms": 40000, "max_backoff_ms": 40000}),
    ({"max_backoff_ms": 100}, {"min_backoff_ms": 100, "max_backoff_ms": 100})])
def test_what_a_retry_policy_leaves_out_is_filled_in(service, origin, retry, effective):
    batch = service.submit([origin.url("/status/200")], retry=retry)
    assert batch["retry"] == POLICY | effective


@pytest.mark.parametrize("rate, shown", [(0.001, 0.001), (2.5, 2.5), (1e6, 1000000), (0.0126, 0.013)])
def test_a_rate_is_shown_as_given(service, origin, rate, shown):
    batch = service.submit([origin.url("/status/200")], limits={"rate_per_host": rate})
    assert batch["limits"]["rate_per_host"] == shown


def test_requests_take_every_field(service, origin):
    raw = bytes(range(256))
    results = service.run(requests=[
        {"url": origin.url("/echo"), "custom_id": "a/ü\"\\\n", "method": "POST",
         "headers": {"X-One": "1", "Content-Type": "application/json"}, "body": "{\"ü\": 1}",
         "timeout_ms": 20000, "connect_timeout_ms": 5000, "max_attempts": 2,
         "max_body_bytes": 9999},
        {"url": origin.url("/echo"), "custom_id": "b", "method": "PUT",
         "body_base64": base64.b64encode(raw).decode()},
        {"url": origin.url("/echo")},
    ])
    assert [r["custom_id"] for r in results] == ["a/ü\"\\\n", "b", None]
    method, fields, body = echoed(results[0])
    assert (method, body.decode()) == ("POST", "{\"ü\": 1}")
    assert fields["x-one"] == ["1"] and fields["content-type"] == ["application/json"]
    assert fields["content-length"] == [str(len(body))]
    method, fields, body = echoed(results[1])
    assert (method, body) == ("PUT", raw)
    method, fields, body = echoed(results[2])
    assert method == "GET" and body == b"" and "content-length" not in fields
    assert fields["user-agent"][0].startswith("batchfetch/")


def test_defaults_fill_what_a_request_leaves_out_wherever_they_stand(service, origin):
    doc = ('{"requests": [{"url": "%s"}, {"url": "%s", "method": "PUT", "body": "own", '
           '"headers": {"x-shared": "own"}}], '
           '"defaults": {"method": "POST", "body": "shared", "headers": {"X-Shared": "all", '
           '"X-Other": "o"}}, "name": "last"}' % (origin.url("/echo"), origin.url("/echo")))
    batch = send(service, doc, JSON)
    assert batch["name"] == "last"
    first, second = service.finish(batch, include="body")
    method, fields, body = echoed(first)
    assert (method, body, fields["x-shared"], fields["x-other"]) == \
        ("POST", b"shared", ["all"], ["o"])
    method, fields, body = echoed(second)
    assert (method, body, fields["x-shared"], fields["x-other"]) == ("PUT", b"own", ["own"], ["o"])


def test_defaults_apply_to_urls_too(service, origin):
    result, = service.run([origin.url("/echo")], defaults={"headers": {"X-D": "d"}})
    assert echoed(result)[1]["x-d"] == ["d"]


def test_text_skips_comments_and_blank_lines(service, origin):
    urls = [origin.url(f"/bytes/5?t={c}") for c in "abcd"]
    body = (f"\ufeff# a list\r\n{urls[0]}\r\n\r\n   \t\n \t{urls[1]}\t \n#{urls[0]}\n"
            f"{urls[2]}\n\n{urls[3]}")
    results = service.finish(send(service, body, TEXT))
    assert [r["url"] for r in results] == urls
    assert all(r["status"] == "succeeded" for r in results)


def test_ndjson_mixes_urls_and_requests(service, origin):
    lines = [json.dumps(origin.url("/bytes/5?t=a")), "",
             json.dumps({"url": origin.url("/echo"), "method": "DELETE", "custom_id": "x"}),
             "  " + json.dumps(origin.url("/bytes/5?t=c")) + "  \r"]
    results = service.finish(send(service, "\ufeff" + "\n".join(lines), NDJSON), include="body")
    assert [r["custom_id"] for r in results] == [None, "x", None]
    assert echoed(results[1])[0] == "DELETE"
    assert results[2]["body"] == "c|c|c"


@pytest.mark.parametrize("media", [TEXT, NDJSON])
def test_settings_of_ndjson_and_text_come_as_query_parameters(service, origin, media):
    url = origin.url("/echo")
    body = url if media == TEXT else json.dumps(url)
    settings = {
        "name": "n ü", "ignore_invalid_urls": True, "max_redirects": 3,
        "limits.max_parallel": 5, "limits.max_per_host": 4, "metadata.job": "42",
        "metadata.a b": "c", "defaults.method": "DELETE", "defaults.timeout_ms": 9000,
        "defaults.connect_timeout_ms": 3000, "defaults.max_attempts": 2,
        "defaults.max_body_bytes": 100000, "defaults.headers.X-Query": "yes & no",
        "limits.rate_per_host": 2.5, "priority": 7, "http_version": "2", "retry.max_attempts": 3,
        "retry.min_backoff_ms": 5, "retry.max_backoff_ms": 50, "retry.max_retry_after_ms": 500,
        "retry.on_status": "429,503", "retry.non_idempotent": True}
    batch = send(service, body, media, **settings)
    assert batch["name"] == "n ü" and batch["max_redirects"] == 3
    assert batch["limits"] == {"max_parallel": 5, "max_per_host": 4, "rate_per_host": 2.5}
    assert batch["priority"] == 7 and batch["http_version"] == "2"
    assert batch["retry"] == {"max_attempts": 3, "min_backoff_ms": 5, "max_backoff_ms": 50,
                              "max_retry_after_ms": 500, "on_status": [429, 503],
                              "non_idempotent": True}
    assert batch["metadata"] == {"job": "42", "a b": "c"}
    result, = service.finish(batch, include="body")
    method, fields, _ = echoed(result)
    assert method == "DELETE" and fields["x-query"] == ["yes & no"]


@pytest.mark.parametrize("media", [
    "text/plain; charset=utf-8", "Text/Plain;charset=\"UTF-8\"", "application/json; charset=utf-8",
    "application/x-ndjson;charset=utf-8"])
def test_media_types_may_have_parameters(service, origin, media):
    url = origin.url("/status/200")
    body = {"t": url, "T": url, "a": json.dumps({"urls": [url]})}[media[0]]
    if "ndjson" in media:
        body = json.dumps(url)
    batch = send(service, body, media)
    assert batch["request_counts"]["total"] == 1


def test_a_byte_at_a_time_is_the_same_submission(service, origin):
    urls = [origin.url("/bytes/7?t=ü%d" % i) for i in range(3)]
    doc = json.dumps({"name": "slow", "urls": urls, "limits": {"max_parallel": 2}},
                     ensure_ascii=False).encode()
    answer = service.client().request("POST", "/v1/batches", (bytes([b]) for b in doc),
                                      {"Content-Type": JSON})
    batch = answer.expect(202).json()
    assert batch["name"] == "slow" and batch["limits"]["max_parallel"] == 2
    assert [r["url"] for r in service.finish(batch)] == urls
    text = "\r\n".join(urls).encode()
    answer = service.client().request("POST", "/v1/batches", (bytes([b]) for b in text),
                                      {"Content-Type": TEXT})
    assert [r["url"] for r in service.finish(answer.expect(202).json())] == urls


def test_integral_numbers_may_be_written_as_json_allows(service, origin):
    batch = send(service, '{"urls": ["%s"], "max_redirects": 1.0, "limits": {"max_parallel": 1e3, '
                 '"max_per_host": 20E-1}}' % origin.url("/status/200"), JSON)
    assert batch["max_redirects"] == 1
    assert batch["limits"] == {"max_parallel": 1000, "max_per_host": 2, "rate_per_host": None}


def test_urls_in_odd_but_right_spelling_are_fetched_and_come_back_as_given(service, origin):
    port = origin.port
    urls = [f"HTTP://127.0.0.1:{port}/bytes/3", f"http://127.0.0.1:{port}/bytes/3#fragment",
            f"http://127.0.0.1:{port}?x", f"http://127.0.0.1:{port}/bytes/3?q=a%20b&ü=ü",
            f"http://LOCALHOST:{port}/bytes/3", f"http://127.1:{port}/bytes/3"]
    results = service.run(urls)
    assert [r["url"] for r in results] == urls
    assert [r["http_status"] for r in results] == [200, 200, 404, 200, 200, 200]
    uris = [h.uri for h in origin.hits(6)]
    assert not any("#" in u for u in uris), uris


def test_a_url_that_is_there_twice_is_fetched_twice(service, origin):
    service.run([origin.url("/bytes/3?t=twice")] * 5)
    assert len(origin.hits(5)) == 5


def test_custom_ids_need_not_be_unique(service, origin):
    batch = service.submit(requests=[{"url": origin.url("/bytes/1"), "custom_id": "same"},
                                     {"url": origin.url("/bytes/2"), "custom_id": "same"}])
    assert len(service.finish(batch)) == 2
    assert [r["body_bytes"] for r in service.results(batch["id"], custom_id="same",
                                                     order="index")] == [1, 2]


def test_ignored_invalid_urls_become_failed_results(service, origin):
    bad = ["nonsense", "ftp://a.example/", "http://", "http://a b/", ""]
    batch = service.submit([origin.url("/bytes/3"), *bad], ignore_invalid_urls=True)
    results = service.finish(batch)
    assert results[0]["status"] == "succeeded"
    for url, r in zip(bad, results[1:]):
        assert r["url"] == url and r["status"] == "failed" and r["attempts"] == 0
        assert r["error"]["code"] == "invalid_url" and not r["error"]["retryable"]
        assert r["http_status"] is None and r["final_url"] is None and r["body_url"] is None
    assert service.batch(batch["id"])["request_counts"]["failed"] == len(bad)


def test_ignore_invalid_urls_works_wherever_it_stands(service, origin):
    doc = '{"urls": ["nonsense", "%s"], "ignore_invalid_urls": true}' % origin.url("/bytes/3")
    results = service.finish(send(service, doc, JSON))
    assert [r["status"] for r in results] == ["failed", "succeeded"]


def test_ids_are_unguessable_and_sort_by_time(service, origin):
    ids = [service.submit([origin.url("/bytes/1")])["id"] for _ in range(20)]
    assert len(set(ids)) == 20 and ids == sorted(ids)
    tails = {i[-16:] for i in ids}
    assert len(tails) == 20 and len({t[0] for t in tails} | {t[5] for t in tails}) > 2


def test_a_large_request_body_is_sent_whole(service, origin):
    body = "x" * (5 << 20)
    result, = service.run(requests=[{"url": origin.url("/echo"), "method": "POST", "body": body}],
                          include="headers")
    assert base64.b64decode(json.loads(service.body(result))["body"]) == body.encode()
