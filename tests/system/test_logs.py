"""The log: one line an event, as text and as JSON; ids in every line; nothing forged, nothing secret,
and never so much that it fills a disk."""
import json
import os
import re

import pytest

from harness import Service, eventually, size

TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"
VALUE = r'(?:"(?:[^"\\]|\\.)*"|[^\s"=\\]+)'
LINE = re.compile(rf"{TIME} (error|warn|info|debug) ([a-z0-9_]+)((?: [a-z_]+={VALUE})*)")
GREETING = re.compile(r"Data in .*|  curl .*")

# Each is looked for in logs, metrics and answers to others.
SECRETS = {name: f"canary{i}x7f3a" for i, name in enumerate((
    "userinfo", "password", "query", "authorization", "cookie", "api-key", "body", "metadata",
    "redirect", "response-cookie", "setting", "idempotency-key", "api-authorization"))}


def lines(service):
    """-> the events in the log, as dicts; each line must be one."""
    found = []
    for line in service.stderr().splitlines():
        if line.startswith("{"):
            event = json.loads(line)
            assert list(event)[:3] == ["time", "level", "event"], line
            assert re.fullmatch(TIME, event["time"]), line
        elif GREETING.fullmatch(line):
            continue
        else:
            match = LINE.fullmatch(line)
            assert match, f"not a line of the log: {line!r}"
            event = {"level": match[1], "event": match[2]}
            for key, value in re.findall(rf" ([a-z_]+)=({VALUE})", match[3]):
                assert key not in event, line
                event[key] = value.strip('"')
        found.append(event)
    return found


def logged(service, name, **fields):
    """Waits until there is such an event; -> the last one."""
    def search():
        return [e for e in lines(service) if e["event"] == name and
                all(str(e.get(k)) == str(v) for k, v in fields.items())]
    eventually(search, what=f"a line {name} {fields}")
    return search()[-1]


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_line_for_each_event_with_its_ids(start, origin, silent, form):
    service = start("--log-format", form, "--log-level", "debug")
    answer = service.post("/v1/batches", {"urls": [origin.url("/bytes/10"), origin.url("/status/404")]},
                          {"X-Request-Id": "my-id:1"}).expect(202)
    assert answer.header("X-Request-Id") == "my-id:1"
    batch = answer.json()["id"]
    service.wait(batch)
    logged(service, "batch_accepted", request="my-id:1", batch=batch, total=2)
    logged(service, "batch_ended", batch=batch, succeeded=1, failed=1, cancelled=0)
    logged(service, "request", request="my-id:1", batch=batch, method="POST", status=202,
           target="/v1/batches")
    own = service.get(f"/v1/batches/{batch}").expect(200).header("X-Request-Id")
    logged(service, "request", request=own, batch=batch, method="GET", status=200)
    other = service.post("/v1/batches", {"urls": [silent]}).json()["id"]
    by = service.post(f"/v1/batches/{other}/cancel").expect(202).header("X-Request-Id")
    logged(service, "batch_steered", request=by, batch=other, verb="cancel")
    service.restart("--log-format", form)
    service.stop()
    events = lines(service)
    assert [e for e in events if e["event"] == "stopping"]


def test_request_ids(service):
    own = {service.get("/healthz").header("X-Request-Id") for _ in range(20)}
    assert len(own) == 20 and all(re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{8}", i) for i in own)
    assert service.get("/nowhere").expect(404).header("X-Request-Id") not in own
    for good in ("a", "A-b_c.d:e+f/g=@", "x" * 128):
        assert service.get("/healthz", {"X-Request-Id": good}).header("X-Request-Id") == good
    for bad in ("", "a b", 'a"b', "a\\b", "x" * 129, "a{b", "\u00e4".encode().decode("latin-1")):
        got = service.get("/healthz", {"X-Request-Id": bad}).header("X-Request-Id")
        assert re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{8}", got), bad
    # a refusal in the middle of an upload, which the library does not send, too
    answer = service.post("/v1/batches", iter([b'{"urls": [1'] + [b"," + b"1" * 60000] * 40),
                          {"Content-Type": "application/json", "X-Request-Id": "up-1"})
    assert answer.status in (400, 413, 422) and answer.header("X-Request-Id") == "up-1"


def test_nothing_from_outside_forges_a_line(start):
    service = start("--log-level", "debug")
    fake = "2026-01-01T00:00:00.000Z%20error%20forged%20a=b"
    service.get(f"/v1/batches/x%0A{fake}").expect(404)
    service.get(f"/nowhere/%1b[31m%0d%0a{fake}").expect(404)
    service.raw(b"GET /\xff\xc2\x9b\"a=b HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n\r\n" % service.address[1])
    service.raw(b"GE\x1bT / HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n\r\n" % service.address[1])
    logged(service, "request", status=404)
    events = lines(service)  # each is well-formed
    assert not [e for e in events if e["event"] == "forged" or e.get("a") == "b"]
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", service.stderr())


@pytest.mark.parametrize("form", ["text", "json"])
def test_F28_no_secret_is_in_logs_metrics_or_others_answers(start, origin, form):
    """Unique secrets wherever a client or an origin can put one, at the level that logs most."""
    s = SECRETS
    service = start("--log-format", form, "--log-level", "debug")
    credentials = {"Authorization": f"Bearer {s['authorization']}", "Cookie": f"a={s['cookie']}",
                   "X-Api-Key": s["api-key"]}
    outer = {"Authorization": f"Bearer {s['api-authorization']}",
             "Idempotency-Key": s["idempotency-key"]}
    # userinfo: refused, or a failed result, and in a redirect
    service.post("/v1/batches", {"urls": [f"http://{s['userinfo']}:{s['password']}@127.0.0.1/"]},
                 outer).expect(422)
    to = f"http://{s['userinfo']}:{s['redirect']}@127.0.0.1/".replace("@", "%40").replace(":", "%3A")
    requests = [
        {"url": origin.url(f"/echo?k={s['query']}"), "headers": credentials, "method": "POST",
         "body": s["body"]},
        {"url": origin.url(f"/redirect-to?url={to}"), "headers": credentials},
        {"url": f"http://127.0.0.1:1/?k={s['query']}", "headers": credentials},
        {"url": f"http://nowhere.test/?k={s['query']}", "headers": credentials},
        {"url": f"http://[::1]/?k={s['query']}"},
        {"url": f"http://{s['userinfo']}:{s['password']}@127.0.0.1/"},
    ]
    batch = service.post("/v1/batches", {
        "requests": requests, "ignore_invalid_urls": True, "metadata": {"m": s["metadata"]},
        "defaults": {"headers": {"X-Auth-Token": s["setting"]}}}, outer).expect(202).json()
    results = service.finish(batch, include="headers,body")
    assert s["query"] in json.dumps(results), "the owner's own result has what was fetched"
    # settings in the query of a submission; and bad ones
    service.post(f"/v1/batches?defaults.headers.Authorization={s['setting']}",
                 origin.url(f"/bytes/1?k={s['query']}") + "\n", {"Content-Type": "text/plain"}).expect(202)
    service.post(f"/v1/batches?wrong=1&name={s['setting']}&{s['setting']}", "x",
                 {"Content-Type": "text/plain"}).expect(422)
    service.post("/v1/batches", '{"urls": ["' + s["query"], {"Content-Type": "application/json"}).expect(400)
    service.get(f"/v1/batches/none?k={s['setting']}", outer).expect(422, 404)
    service.wait(batch["id"])
    service.get("/v1/batches/none").expect(404)
    places = {"metrics": service.get("/metrics", keep=1 << 20).body.decode(),
              "readyz": service.get("/readyz").body.decode(),
              "another's error": service.get("/v1/batches/none").body.decode()}
    service.stop()
    places["log"] = service.stderr()
    assert "event" in places["log"] or " request " in places["log"], "requests were logged"
    hits = [(name, place) for name, secret in s.items() for place, text in places.items()
            if secret in text]
    assert not hits, hits


def test_a_flood_of_bad_requests_does_not_fill_the_log(start):
    service = start()
    client = service.client()
    for i in range(size(1000, 200)):
        client.request("POST", "/v1/batches", b"{", {"Content-Type": "application/json"}).expect(400)
        client.request("GET", f"/nowhere/{i}").expect(404)
    assert len(service.stderr()) < 4000, service.stderr()[:2000]


def test_log_requests_at_level_info(start):
    service = start("--log-requests", "yes")
    for i in range(50):
        service.get(f"/v1/batches/none{i}").expect(404)
    logged(service, "request", target="/v1/batches/none49", status=404, level="info")
    events = [e for e in lines(service) if e["event"] == "request"]
    assert len(events) == 50 and not [e for e in lines(service) if e["level"] == "debug"]
    assert all(float(e["took_ms"]) >= 0 for e in events)


def test_a_json_log_has_nothing_else_in_it(start, origin):
    service = start("--log-format", "json")
    service.run([origin.url("/bytes/1")])
    service.stop()
    for line in service.stderr().splitlines():
        assert set(json.loads(line)) >= {"time", "level", "event"}


def test_a_log_that_nobody_reads_stops_nothing(start, origin, tmp_path):
    """A pipe holds 64 KiB; then lines are lost, and counted."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    service = Service(tmp_path, "--log-level", "debug")
    try:
        service.start(stderr=writer)
        os.close(writer)
        for i in range(size(1000, 500)):
            service.get(f"/v1/batches/none-{i}-{'x' * 100}").expect(404)
        service.run([origin.url("/bytes/1")])
        text = service.get("/metrics", keep=1 << 20).body.decode()
        lost = int(re.search(r"^batchfetch_log_suppressed_total (\d+)$", text, re.M)[1])
        assert lost > 50
        text = os.read(reader, 1 << 20)  # from here on there is room again
        assert text.endswith(b"\n") and len(text) > 50_000, "whole lines only"
        service.get("/v1/batches/after").expect(404)
        service.get("/healthz").expect(200)  # the line is written after its answer
        assert b"target=/v1/batches/after" in os.read(reader, 1 << 20)
    finally:
        service.stop()
        os.close(reader)
