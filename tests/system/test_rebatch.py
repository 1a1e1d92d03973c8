"""POST /v1/batches/{id}/retry: a new batch of what failed."""
import json

from harness import eventually, size
from origin import HOSTS, DEAD_HOST


def retry(service, batch, headers=None):
    return service.post(f"/v1/batches/{batch['id']}/retry", headers=headers)


def test_what_failed_is_a_new_batch_in_the_old_order(start, origin):
    """Over several pieces of an upload and many hosts; with bodies, headers and invalid URLs."""
    service = start("--max-per-host", 50)
    n = 17000  # an upload is stored in pieces of 16,384
    requests = []
    for i in range(n):
        host = HOSTS[i % 10]
        if i % 1000 == 7:
            requests.append({"url": origin.url(f"/status/503?{i}", host), "custom_id": f"c{i}",
                             "method": "POST", "headers": {"X-Number": str(i)}, "body": f"b{i}"})
        elif i % 1000 == 400:
            requests.append({"url": f"http://{DEAD_HOST}:9/{i}", "custom_id": f"c{i}"})
        elif i % 1000 == 401:
            requests.append({"url": f"ftp://x/{i}", "custom_id": f"c{i}"})
        else:
            requests.append({"url": origin.url("/bytes/1", host)})
    lines = "\n".join(map(json.dumps, requests))
    answer = service.post("/v1/batches?ignore_invalid_urls=true&name=first&priority=7&"
                          "metadata.a=b&limits.max_per_host=40&defaults.timeout_ms=4000",
                          lines.encode(), {"Content-Type": "application/x-ndjson"}).expect(202)
    first = service.wait(answer.json()["id"])
    assert first["request_counts"]["failed"] == 3 * (n // 1000)
    assert retry(service, first, {"Idempotency-Key": "a b"}).problem(422, "invalid-field")
    answer = retry(service, first, {"Idempotency-Key": "again"}).expect(202)
    second = answer.json()
    assert answer.header("Location") == f"/v1/batches/{second['id']}"
    assert second["retry_of"] == first["id"] and first["retry_of"] is None
    for member in ("name", "priority", "metadata", "limits", "retry", "max_redirects"):
        assert second[member] == first[member], member
    once_more = retry(service, first, {"Idempotency-Key": "again"}).expect(202)
    assert once_more.json()["id"] == second["id"]
    assert once_more.header("Idempotent-Replayed") == "true"
    assert service.wait(second["id"])["request_counts"]["failed"] == 3 * (n // 1000)
    results = sorted(service.results(second["id"]), key=lambda r: r["index"])
    failed = [i for i in range(n) if i % 1000 in (7, 400, 401)]
    assert [r["custom_id"] for r in results] == [f"c{i}" for i in failed]
    assert [r["url"] for r in results] == [requests[i]["url"] for i in failed]
    assert {r["error"]["code"] for r in results} == {"http_status", "connect", "invalid_url"}
    posts = n // 1000  # and as many each of those that never get there
    hits = origin.hits(n - posts)
    assert len([h for h in hits if h.method == "POST"]) == 2 * posts
    service.restart()
    assert service.batch(second["id"])["retry_of"] == first["id"]


def test_a_batch_is_retried_until_it_succeeds(start, origin):
    service = start()
    batch = service.submit(requests=[{"url": origin.url("/flaky/2/rb"), "method": "PUT",
                                      "body": "x"}, {"url": origin.url("/bytes/3")}])
    service.finish(batch)
    for attempt in range(2):
        batch = retry(service, batch).expect(202).json()
        [result] = service.finish(batch)
        assert result["status"] == ("failed" if attempt == 0 else "succeeded")
    detail = retry(service, batch).problem(409, "conflict")["detail"]
    assert "no request" in detail


def test_only_batches_that_have_ended_are_retried(start, origin):
    service = start()
    batch = service.submit([origin.url("/delay/2"), f"http://{DEAD_HOST}:9/"])
    eventually(lambda: service.batch(batch["id"])["request_counts"]["failed"] == 1)
    assert "not ended" in retry(service, batch).problem(409, "conflict")["detail"]
    service.post(f"/v1/batches/{batch['id']}/cancel").expect(202)
    service.wait(batch["id"])
    again = retry(service, batch).expect(202).json()
    assert again["request_counts"]["total"] == 1  # the cancelled one did not fail
    service.delete(f"/v1/batches/{batch['id']}").expect(204)
    retry(service, batch).problem(404, "not-found")
    assert service.batch(again["id"])["retry_of"] == batch["id"]
    service.post(f"/v1/batches/{again['id']}/retry?x=1").problem(422, "invalid-field")


def test_a_client_that_leaves_meanwhile_leaves_nothing(start, origin):
    service = start("--max-per-host", 200)
    n = size(60000, 10000)
    batch = service.wait(service.submit([f"ftp://x/{i}" for i in range(n)],
                                        ignore_invalid_urls=True)["id"])
    for _ in range(3):
        with service.connect() as sock:
            sock.sendall(f"POST /v1/batches/{batch['id']}/retry HTTP/1.1\r\n"
                         f"Host: 127.0.0.1:{service.address[1]}\r\n\r\n".encode())
    again = retry(service, batch).expect(202).json()
    assert service.wait(again["id"])["request_counts"]["failed"] == n
