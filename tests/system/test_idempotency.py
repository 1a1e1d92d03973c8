"""Idempotency-Key: one batch for one key, whatever happens in between."""
import json
import threading

import pytest

from harness import JSON, NDJSON, TEXT


def send(service, key, body, media=TEXT, query="", **more):
    return service.post("/v1/batches" + query, body,
                        {"Content-Type": media, "Idempotency-Key": key}, **more)


def test_the_same_key_and_content_gives_the_same_batch(service, origin):
    url = origin.url("/bytes/5?t=idem")
    first = send(service, "same-1", url).expect(202)
    assert first.header("Idempotent-Replayed") is None
    service.wait(first.json()["id"])
    again = send(service, "same-1", url).expect(202)
    assert again.header("Idempotent-Replayed") == "true"
    assert again.header("Location") == first.header("Location")
    assert again.json()["id"] == first.json()["id"]
    assert again.json()["status"] == "completed"
    assert len(origin.hits(1)) == 1


@pytest.mark.parametrize("change", ["body", "type", "query", "retry"])
def test_the_same_key_with_other_content_is_refused(service, origin, change):
    url = origin.url("/bytes/5")
    key = "other-" + change
    send(service, key, url, query="?name=a").expect(202)
    body, media, query = {
        "body": (url + "?x", TEXT, "?name=a"), "type": (json.dumps(url), NDJSON, "?name=a"),
        "query": (url, TEXT, "?name=b"), "retry": (url, TEXT, "?name=a&retry.max_attempts=2")}[change]
    send(service, key, body, media, query).problem(422, "idempotency-key-reused")
    again = send(service, key, url, query="?name=a").expect(202)
    assert again.header("Idempotent-Replayed") == "true"


def test_without_a_key_every_post_is_a_batch(service, origin):
    ids = {service.submit([origin.url("/bytes/5")])["id"] for _ in range(3)}
    assert len(ids) == 3


def test_a_refused_submission_does_not_use_up_its_key(service, origin):
    send(service, "refused-1", '{"urls": [', JSON).problem(400, "malformed-json")
    send(service, "refused-1", json.dumps({"urls": [origin.url("/bytes/1")]}), JSON).expect(202)


@pytest.mark.parametrize("key", ["", "a b", "ü", "x" * 256, "a\tb"])
def test_a_bad_key_is_refused(service, key):
    send(service, key.encode("utf-8").decode("latin-1"), "http://127.0.0.1:9/").problem(
        422, "invalid-field", errors=[{"header": "Idempotency-Key"}])


def test_two_keys_are_refused(service):
    service.post("/v1/batches", "http://127.0.0.1:9/",
                 [("Content-Type", TEXT), ("Idempotency-Key", "a"), ("Idempotency-Key", "b")]
                 ).problem(422, "invalid-field", errors=[{"header": "Idempotency-Key"}])


def test_a_key_under_way_is_a_conflict(service, origin):
    body = origin.url("/bytes/1").encode() + b"\n"
    with service.connect() as sock:
        sock.sendall(b"POST /v1/batches HTTP/1.1\r\nHost: %s:%d\r\nContent-Type: text/plain\r\n"
                     b"Idempotency-Key: busy\r\nContent-Length: %d\r\n\r\n"
                     % (service.address[0].encode(), service.address[1], len(body)) + body[:10])
        service.client().request("GET", "/healthz").expect(200)
        send(service, "busy", body).problem(409, "conflict")
        sock.sendall(body[10:])
        assert sock.recv(65536).startswith(b"HTTP/1.1 202 ")
    assert send(service, "busy", body).expect(202).header("Idempotent-Replayed") == "true"


def test_the_key_of_an_upload_that_broke_off_is_free(service, origin):
    body = origin.url("/bytes/1").encode() + b"\n"
    with service.connect() as sock:
        sock.sendall(b"POST /v1/batches HTTP/1.1\r\nHost: %s:%d\r\nContent-Type: text/plain\r\n"
                     b"Idempotency-Key: broke\r\nContent-Length: %d\r\n\r\n"
                     % (service.address[0].encode(), service.address[1], len(body)) + body[:10])
        service.client().request("GET", "/healthz").expect(200)
    for _ in range(1000):
        answer = send(service, "broke", body)
        if answer.status != 409:
            break
    answer.expect(202)


def test_many_posts_of_one_key_at_once_make_one_batch(service, origin):
    body = "\n".join(origin.url(f"/bytes/5?t=race{i}") for i in range(50))
    answers = []

    def one():
        answers.append(send(service, "race", body))

    threads = [threading.Thread(target=one) for _ in range(16)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert {a.status for a in answers} <= {202, 409}
    ids = {a.json()["id"] for a in answers if a.status == 202}
    assert len(ids) == 1
    service.wait(ids.pop())
    assert len(origin.hits(50)) == 50


@pytest.mark.parametrize("kill", [False, True])
def test_a_key_is_remembered_over_a_restart(start, origin, kill):
    service = start()
    url = origin.url("/bytes/5")
    first = send(service, "kept", url).expect(202).json()["id"]
    service.restart(kill=kill)
    again = send(service, "kept", url).expect(202)
    assert again.json()["id"] == first and again.header("Idempotent-Replayed") == "true"
    send(service, "kept", url + "?other").problem(422, "idempotency-key-reused")


def test_the_key_of_a_deleted_batch_is_free(service, origin):
    url = origin.url("/bytes/5")
    first = send(service, "deleted", url).expect(202).json()["id"]
    service.delete(f"/v1/batches/{first}").expect(204)
    again = send(service, "deleted", url + "?new").expect(202)
    assert again.json()["id"] != first and again.header("Idempotent-Replayed") is None
