"""/metrics: what is counted is what happened, and the sums fit what the API says."""
import re

import yaml
from prometheus_client.parser import text_string_to_metric_families

from harness import ROOT, eventually, size

SECRET = "canary-6b1f"
CLOSED = "http://127.0.0.1:1/"  # nobody listens there


def families(service):
    """{name: family}; the parser refuses what is not the text format."""
    text = service.get("/metrics", keep=1 << 20).expect(200).body.decode()
    return {f.name: f for f in text_string_to_metric_families(text)}


class Metrics:
    """The samples of one moment."""

    def __init__(self, service):
        self.samples = {}
        for family in families(service).values():
            for s in family.samples:
                self.samples[s.name, frozenset(s.labels.items())] = s.value

    def __call__(self, name, **labels):
        """The value of one series, or (labels left out) the sum over several."""
        want = labels.items()
        values = [v for (n, have), v in self.samples.items() if n == name and want <= set(have)]
        assert values, f"no series {name}{labels}"
        return sum(values)


def since(service, before):
    """-> counter(name, **labels): how much it has grown since."""
    after = Metrics(service)
    return lambda name, **labels: after(name, **labels) - before(name, **labels)


def adds_up(m):
    """Every request that was taken up is pending, has its result, or went with its batch."""
    taken = m("batchfetch_requests_accepted_total") + m("batchfetch_requests_recovered_total")
    there = m("batchfetch_requests_pending") + m("batchfetch_results_total") + \
        m("batchfetch_requests_dropped_total")
    return taken == there


# ---- form ----

def test_names_types_and_help_follow_the_rules(service):
    answer = service.get("/metrics", keep=1 << 20).expect(200)
    assert answer.header("Content-Type") == "text/plain; version=0.0.4; charset=utf-8"
    seen = set()
    for family in text_string_to_metric_families(answer.body.decode()):
        assert family.name not in seen, f"{family.name} is there twice"
        seen.add(family.name)
        assert re.fullmatch(r"(batchfetch|process)_[a-z0-9_]+", family.name), family.name
        assert family.documentation.endswith("."), family.name
        assert family.type in ("counter", "gauge", "histogram"), family
        for unit in ("_ms", "_us", "_milliseconds", "_kb", "_mb", "_megabytes", "_percent"):
            assert not family.name.endswith(unit), f"{family.name}: base units only"
        series = set()
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            assert key not in series, f"{key} is there twice"
            series.add(key)
            if family.type == "counter":
                assert sample.name == family.name + "_total", sample
            for label, value in sample.labels.items():
                assert re.fullmatch(r"[a-z_]+", label) and value, sample
    assert "batchfetch_build_info" in seen and "process_start_time_seconds" in seen
    assert len(answer.body) < 200_000


def test_histograms_are_cumulative_and_agree_with_their_count(service):
    for family in families(service).values():
        if family.type != "histogram":
            continue
        series = {}
        for s in family.samples:
            labels = frozenset((k, v) for k, v in s.labels.items() if k != "le")
            series.setdefault(labels, {})[s.name, s.labels.get("le")] = s.value
        for samples in series.values():
            buckets = [v for (name, le), v in samples.items() if le is not None]
            assert buckets == sorted(buckets), family.name
            count = samples[family.name + "_count", None]
            assert samples[family.name + "_bucket", "+Inf"] == count, family.name


# ---- what is counted ----

def test_results_by_outcome_and_error(service, origin):
    before = Metrics(service)
    good = origin.url("/bytes/1000")
    results = service.run(requests=[
        *({"url": good} for _ in range(5)),
        *({"url": origin.url("/status/404")} for _ in range(3)),
        {"url": CLOSED, "max_attempts": 2},
        {"url": "http://[::1]/"},
    ], retry={"min_backoff_ms": 1, "max_backoff_ms": 1})
    grown = since(service, before)
    assert [r["status"] for r in results].count("succeeded") == 5
    assert grown("batchfetch_results_total", status="succeeded") == 5
    assert grown("batchfetch_results_total", error="http_status") == 3
    assert grown("batchfetch_results_total", error="connect") == 1
    assert grown("batchfetch_results_total", error="blocked_address") == 1
    assert grown("batchfetch_results_total") == 10
    assert grown("batchfetch_retries_total", error="connect") == 1
    assert grown("batchfetch_retries_total") == 1
    assert grown("batchfetch_attempts_total") == 11
    assert grown("batchfetch_attempt_seconds_count") == 11
    assert grown("batchfetch_requests_accepted_total") == 10
    assert grown("batchfetch_submissions_total", outcome="accepted") == 1
    assert grown("batchfetch_batches_ended_total", status="completed") == 1
    assert grown("batchfetch_received_bytes_total") == sum(r["body_bytes"] or 0 for r in results)


def test_connections_are_opened_or_reused(start, origin):
    service = start("--fetchers", 1)
    before = Metrics(service)
    service.run([origin.url("/bytes/1000")] * 20, limits={"max_per_host": 1})
    grown = since(service, before)
    assert grown("batchfetch_connections_total", how="opened") == 1
    assert grown("batchfetch_connections_total", how="reused") == 19
    now = Metrics(service)
    assert now("batchfetch_connections_open") == now("batchfetch_connections_idle") == 1


def test_look_ups_by_outcome(service, origin):
    before = Metrics(service)
    service.run([f"http://nowhere-{i}.test/" for i in range(3)],
                retry={"max_attempts": 1})
    grown = since(service, before)
    assert grown("batchfetch_dns_lookups_total") == 3
    assert grown("batchfetch_dns_lookup_seconds_count") == 3


def test_submissions_by_outcome_and_api_requests_by_route(service, origin):
    before = Metrics(service)
    key = {"Idempotency-Key": "metrics-1"}
    body = {"urls": [origin.url("/bytes/1000")]}
    batch = service.post("/v1/batches", body, key).expect(202).json()
    service.post("/v1/batches", body, key).expect(202)
    service.post("/v1/batches", {"urls": []}).expect(422)
    service.post("/v1/batches", "x", {"Content-Type": "text/html"}).expect(415)
    service.wait(batch["id"])
    service.get("/nowhere").expect(404)
    service.request("PUT", "/healthz").expect(405)
    grown = since(service, before)
    assert grown("batchfetch_submissions_total", outcome="accepted") == 1
    assert grown("batchfetch_submissions_total", outcome="repeated") == 1
    assert grown("batchfetch_submissions_total", outcome="refused") == 2
    assert grown("batchfetch_submissions_total") == 4
    posts = {"method": "POST", "route": "/v1/batches"}
    assert grown("batchfetch_api_requests_total", status="2xx", **posts) == 2
    assert grown("batchfetch_api_requests_total", status="4xx", **posts) == 2
    assert grown("batchfetch_api_requests_total", route="other", status="4xx") == 2
    assert grown("batchfetch_api_request_seconds_count", **posts) == 4
    commits = grown("batchfetch_commits_total", sync="full")
    assert commits >= 1
    assert grown("batchfetch_commit_seconds_count", sync="full") == commits


def test_state_of_the_process(service, origin):
    service.run([origin.url("/bytes/1")])
    m = Metrics(service)
    assert m("batchfetch_api_connections") >= 1
    assert abs(m("process_resident_memory_bytes") / 1024 - service.status_kb("VmRSS")) < 65536
    assert m("process_max_fds") > m("process_open_fds") > 10
    assert m("process_cpu_seconds_total") > 0
    assert m("process_threads") >= 4
    assert m("batchfetch_database_bytes") > 0
    assert m("batchfetch_disk_free_bytes") > 0
    assert m("batchfetch_max_parallel") > 0
    assert m("batchfetch_loop_lag_seconds_count", thread="keeper") > 0
    assert m("batchfetch_loop_lag_seconds_count", thread="api") > 0
    assert m("batchfetch_loop_lag_seconds_count", thread="fetcher") > 0


# ---- sums ----

def test_requests_add_up_at_any_moment(start, origin, silent):
    """While batches run, are cancelled, deleted, retried, and over a restart."""
    service = start("--max-per-host", 32)
    n = size(3000, 300)
    running = [service.submit([origin.url("/bytes/1000")] * n) for _ in range(3)]
    slow = service.submit([silent.replace("127.0.0.1", "localhost")] * 50)
    dead = service.submit([CLOSED] * 20,
                          retry={"max_attempts": 3, "min_backoff_ms": 50, "max_backoff_ms": 100})
    looks = 0
    while looks < 5 or service.batch(running[-1]["id"])["status"] != "completed":
        assert adds_up(Metrics(service))
        looks += 1
    m = Metrics(service)
    assert m("batchfetch_batches") >= 1
    service.post(f"/v1/batches/{running[0]['id']}/cancel").expect(409)
    service.delete(f"/v1/batches/{slow['id']}").expect(204)
    service.wait(dead["id"])
    for batch in running:
        service.wait(batch["id"])
    m = Metrics(service)
    assert adds_up(m)
    assert m("batchfetch_requests_pending") == 0 and m("batchfetch_batches") == 0
    assert m("batchfetch_requests_dropped_total") == 50
    counts = [b["request_counts"] for b in service.get("/v1/batches").json()["data"]]
    for status in ("succeeded", "failed", "cancelled"):
        assert m("batchfetch_results_total", status=status) == sum(c[status] for c in counts)
    assert m("batchfetch_requests_accepted_total") == sum(c["total"] for c in counts) + 50
    assert m("batchfetch_batches_ended_total", status="deleted") == 1

    batch = service.submit([silent.replace("127.0.0.1", "localhost")] * 5 + [origin.url("/bytes/1000")] * 5)
    eventually(lambda: service.batch(batch["id"])["request_counts"]["succeeded"] == 5)
    service.restart(kill=True)
    m = Metrics(service)
    assert adds_up(m)
    assert m("batchfetch_requests_recovered_total") == 5
    assert m("batchfetch_batches_recovered_total") == 1
    assert m("batchfetch_batches", status="in_progress") == 1
    service.post(f"/v1/batches/{batch['id']}/cancel").expect(202)
    service.wait(batch["id"])
    m = Metrics(service)
    assert m("batchfetch_results_total", status="cancelled") == 5
    assert m("batchfetch_batches_ended_total", status="cancelled") == 1
    assert adds_up(m)


def test_labels_carry_nothing_from_outside(service, origin):
    """The number of series is the same whatever is fetched and asked."""
    before = set(Metrics(service).samples)
    service.run([origin.url(f"/bytes/10?t={SECRET}{i}") for i in range(20)] + [f"http://{SECRET}.test/"])
    for i in range(20):
        service.get(f"/v1/batches/{SECRET}{i}?wait=1").expect(404)
        service.get(f"/{SECRET}/{i}").expect(404)
    text = service.get("/metrics", keep=1 << 20).body.decode()
    assert SECRET not in text
    assert set(Metrics(service).samples) == before


# ---- what is written about them ----

def test_every_metric_is_explained_and_alerts_name_real_ones(service):
    found = {s.name for f in families(service).values() for s in f.samples}
    names = {re.sub(r"_(bucket|sum|count)$", "", n) for n in found}
    text = (ROOT / "docs/operations.md").read_text()
    for name in names:
        if name.startswith("batchfetch_"):
            assert f"`{name.removeprefix('batchfetch_')}" in text, f"{name}: docs/operations.md lacks it"
    rules = yaml.safe_load((ROOT / "docs/alerts.yaml").read_text())["groups"][0]["rules"]
    for rule in rules:
        used = re.findall(r"\b(?:batchfetch|process)_\w+", rule["expr"])
        assert used or "up{" in rule["expr"], rule
        assert set(used) <= found, f"{rule['alert']}: {set(used) - found}"
        assert rule["labels"]["severity"] in ("page", "ticket") and rule["annotations"]["summary"]
