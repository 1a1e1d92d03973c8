"""Origins that break the rules: what test_toxic_table.py, which has each kind, does not show."""
import time

import pytest

import harness
from harness import SLOWER, TEXT, size
from origin import DEAD_HOST, HOSTS, content
from toxic import Backlogged

T = 4000 * SLOWER  # no case here needs longer


def code(result):
    return result["error"]["code"] if result["error"] else "succeeded"


def test_a_redirect_with_a_broken_body_does_not_spoil_its_batch(service, toxic):
    results = service.run([toxic.url("/cut-redirect"), toxic.url("/ok")])
    assert code(results[0]) == "protocol" and results[0]["http_status"] == 302
    assert results[0]["body_bytes"] == 0 and results[0]["truncated"]
    assert results[1]["body"].startswith("the quick")
    assert service.body(results[0]) == b""


def test_an_answer_nobody_asked_for_reaches_nobody(service, toxic):
    """Bytes behind an answer must not become the next URL's answer."""
    results = service.run([toxic.url(f"/poison?{i}") for i in range(30)],
                          limits={"max_parallel": 2})
    for r in results:
        assert r["status"] == "succeeded" and r["body"] == "right", r


# ---- time ----

@pytest.mark.parametrize("path, kept", [("/silent", None), ("/drip", True), ("/drip-head", None)])
def test_an_origin_that_takes_too_long_is_given_up_in_time(service, toxic, path, kept):
    result = service.one(toxic.url(path), timeout_ms=700)
    assert code(result) == "timeout" and result["error"]["retryable"]
    assert 650 <= result["timing"]["total_ms"] < 1500 * SLOWER
    if kept:
        assert result["truncated"] and set(service.body(result)) == {ord("d")}


def test_a_connect_that_hangs_is_given_up_after_its_own_time(service):
    hung = Backlogged()
    try:
        result = service.one(f"http://127.0.0.1:{hung.port}/", connect_timeout_ms=500,
                             timeout_ms=20000)
        assert code(result) in ("connect", "timeout"), result
        assert 450 <= result["timing"]["total_ms"] < 1500 * SLOWER
        assert result["http_status"] is None and result["body_url"] is None
    finally:
        hung.stop()


def test_a_handshake_that_hangs_is_given_up_after_the_time_for_connecting(service, toxic):
    result = service.one(toxic.url("/ok").replace("http:", "https:"), connect_timeout_ms=600)
    assert code(result) in ("tls", "timeout", "connect"), result
    assert result["timing"]["total_ms"] < 2000 * SLOWER


def test_time_in_line_never_counts_against_the_timeout(start, origin):
    """One slot: 30 URLs of 0.1 s each wait up to 3 s, with a timeout of 1 s."""
    service = start("--max-parallel", 1)
    results = service.run([origin.url(f"/delay/0.1?t={i}", HOSTS[i % 3]) for i in range(30)],
                          defaults={"timeout_ms": 1000 * SLOWER})
    assert all(r["status"] == "succeeded" for r in results), [r["error"] for r in results]
    assert max(r["timing"]["total_ms"] for r in results) > 2000


def test_time_in_line_between_redirects_does_not_count_either(start, origin):
    service = start("--max-per-host", 1)
    target = origin.url("/delay/0.1", HOSTS[40])
    results = service.run([origin.url(f"/redirect-to?url={target}", HOSTS[i]) for i in range(20)],
                          defaults={"timeout_ms": 1000 * SLOWER})
    assert all(r["status"] == "succeeded" for r in results), [r["error"] for r in results]


def test_the_timeout_covers_all_hops_together(service, origin):
    hop = origin.url("/slow-body/1", HOSTS[1])
    assert service.one(origin.url(f"/redirect-to?url={hop}"), timeout_ms=2000)["status"] == \
        "succeeded"
    target = origin.url("/delay/5", HOSTS[1])
    result = service.one(origin.url(f"/redirect-to?url={target}"), timeout_ms=600)
    assert code(result) == "timeout" and len(result["redirects"]) == 1
    assert result["timing"]["total_ms"] < 2000 * SLOWER


# ---- size ----

@pytest.mark.parametrize("limit", [0, 1, 999, 5000])
def test_a_body_is_cut_at_max_body_bytes_and_kept(service, origin, limit):
    result = service.one(origin.url("/bytes/10000?t=cut"), max_body_bytes=limit)
    assert code(result) == "too_large" and result["body_bytes"] <= limit
    # A length that is known beforehand may end it before the body; else its beginning is kept.
    if result["body_bytes"]:
        assert result["truncated"]
        assert service.body(result) == content(result["body_bytes"], "cut")


def test_a_body_as_large_as_allowed_is_whole(service, origin):
    result = service.one(origin.url("/bytes/5000?t=fit"), max_body_bytes=5000)
    assert result["status"] == "succeeded" and service.body(result) == content(5000, "fit")
    empty = service.one(origin.url("/bytes/0"), max_body_bytes=0)
    assert empty["status"] == "succeeded" and empty["body_bytes"] == 0


@pytest.mark.parametrize("path", ["/endless", "/endless-chunked"])
def test_an_endless_body_is_cut_exactly_and_kept(service, toxic, path):
    before = service.status_kb("VmRSS")
    result = service.one(toxic.url(path), max_body_bytes=3_000_000, timeout_ms=5 * T)
    assert code(result) == "too_large" and result["truncated"]
    assert result["body_bytes"] == 3_000_000
    assert service.body(result) == b"e" * 3_000_000
    assert service.status_kb("VmRSS") - before < 48 * 1024 * SLOWER


def test_a_gzip_bomb_is_cut_at_the_decoded_limit(service, toxic):
    before = service.status_kb("VmRSS")
    result = service.one(toxic.url("/gzip-bomb"), max_body_bytes=1_000_000, timeout_ms=5 * T)
    assert code(result) == "too_large" and result["truncated"], result
    assert result["body_bytes"] == 1_000_000 and service.body(result) == bytes(1_000_000)
    assert service.status_kb("VmRSS") - before < 32 * 1024 * SLOWER


def test_a_gzip_bomb_of_gzip_nginx_is_measured_decoded(service, origin):
    result = service.one(origin.url("/gzip/2000000?t=z"), max_body_bytes=100_000)
    assert code(result) == "too_large" and result["body_bytes"] == 100_000
    assert service.body(result) == content(100_000, "z")


def test_many_endless_bodies_at_once_stay_within_memory(start, toxic):
    service = start("--max-body-bytes", "2m", "--max-per-host", 40)
    results = service.run([toxic.url(f"/endless?{i}") for i in range(size(40, 8))],
                          include="headers")
    assert {code(r) for r in results} == {"too_large"}
    assert {r["body_bytes"] for r in results} == {2 << 20}
    assert service.status_kb("VmHWM") < (200 << 10) * SLOWER


# ---- beside others ----

def test_toxic_origins_do_not_disturb_good_urls(start, toxic, origin):
    service = start("--max-per-host", 50)
    paths = ["/close", "/rst", "/short", "/bad-chunk", "/silent", "/drip", "/endless-headers",
             "/1xx-flood", "/http09", "/endless", "/encoded/broken-gzip", "/poison", "/nul-header"]
    urls = []
    for i in range(size(400)):
        urls.append(origin.url(f"/bytes/500?t=good{i}", HOSTS[i % 20]))
        if i % 8 == 0:
            urls.append(toxic.url(paths[i // 8 % len(paths)]))
    results = service.run(urls, defaults={"timeout_ms": 3000 * SLOWER, "max_body_bytes": 1 << 20})
    for url, r in zip(urls, results):
        if "t=good" in url:
            assert r["status"] == "succeeded", r
            assert r["body"].encode() == content(500, url.split("t=")[1])
        elif "poison" not in url:
            assert r["status"] == "failed", r


# ---- nothing there ----

def test_a_dead_port_is_a_connect_error_at_once(service):
    result = service.one(f"http://{DEAD_HOST}:9/x")
    assert code(result) == "connect" and result["error"]["retryable"]
    assert result["timing"]["total_ms"] < 1000 * SLOWER
    assert result["http_status"] is None and result["body_url"] is None and result["attempts"] == 1
    service.get(f"/v1/batches/x/results/{result['index']}/body").problem(404, "not-found")


@pytest.mark.parametrize("name", ["no-such-name.test", "empty.test", "broken.test"])
def test_a_name_without_addresses_is_a_dns_error(service, name):
    result = service.one(f"http://{name}/")
    assert code(result) == "dns" and result["http_status"] is None
    assert result["body_url"] is None and result["timing"]["connect_ms"] == 0


def test_a_name_server_that_is_silent_costs_the_time_for_connecting(service, origin):
    results = service.run([f"http://silent.test:{origin.port}/", origin.url("/bytes/3")],
                          defaults={"connect_timeout_ms": 700})
    assert code(results[0]) in ("dns", "timeout") and results[1]["status"] == "succeeded"
    assert results[0]["timing"]["total_ms"] < 3000 * SLOWER


def test_a_name_is_asked_for_once_for_many_urls(start, origin):
    service = start()
    before = harness.DNS.asked.count("two.test")
    urls = [f"http://two.test:{origin.port}/bytes/9?t={i}" for i in range(100)]
    assert all(r["remote_ip"] == "127.0.0.2" for r in service.run(urls))
    assert harness.DNS.asked.count("two.test") - before <= 4  # A and AAAA, twice at most


def test_the_next_address_is_tried_when_the_first_is_dead(service, origin):
    result = service.one(f"http://dead-first.test:{origin.port}/bytes/3")
    assert result["status"] == "succeeded" and result["remote_ip"] == "127.0.0.1", result


def test_the_result_of_nothing_has_no_body(service):
    batch = service.submit([f"http://{DEAD_HOST}:9/x"])
    service.wait(batch["id"])
    service.get(f"/v1/batches/{batch['id']}/results/0/body").problem(404, "no-body")


def test_text_submissions_see_the_same(service, toxic):
    answer = service.post("/v1/batches?defaults.timeout_ms=500", toxic.url("/silent"),
                          {"Content-Type": TEXT}).expect(202)
    result, = service.finish(answer.json())
    assert code(result) == "timeout"


def test_a_post_is_not_sent_twice_on_a_kept_connection_that_dies(service, toxic):
    """Whether the origin acted on it is not known; a GET is sent once more."""
    service.one(toxic.url("/ok"))  # leaves its connection
    before = toxic.hits.get("/close", 0)
    result = service.one(toxic.url("/close"), method="POST", body="x")
    assert code(result) == "protocol" and result["error"]["retryable"], result
    assert toxic.hits["/close"] == before + 1
