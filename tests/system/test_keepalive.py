"""Connections that the origin closes under us, at full speed: never a failure, never an attempt."""
import subprocess

import pytest

import harness
from harness import NDJSON, eventually, size
from origin import HOSTS, free_ports


@pytest.fixture
def closing(tmp_path):
    """nginx that closes a connection after 10 requests, or a second."""
    port, = free_ports(1)
    conf = tmp_path / "nginx.conf"
    listen = " ".join(f"listen {a}:{port} backlog=4096;" for a in HOSTS[:10])
    temp = " ".join(f"{k}_temp_path {tmp_path};" for k in
                    ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    conf.write_text(f"""
daemon off; worker_processes 2; pid {tmp_path}/pid; error_log {tmp_path}/error.log;
events {{ worker_connections 4096; multi_accept on; }}
http {{ access_log off; {temp} keepalive_requests 10; keepalive_timeout 1s;
  server {{ {listen} location / {{ return 200 "ok"; }} }} }}
""")
    process = subprocess.Popen(["nginx", "-c", str(conf), "-e", str(tmp_path / "error.log")],
                               stderr=subprocess.DEVNULL, start_new_session=True)
    eventually(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text(), what="nginx")
    yield port
    process.terminate()
    process.wait(10)


@pytest.mark.parametrize("parallel", [16, 200])
def test_connections_closed_after_ten_requests(start, closing, parallel):
    service = start("--max-per-host", parallel)
    n = size(20000)
    batch = service.submit([f"http://{HOSTS[i % 10]}:{closing}/{i}" for i in range(n)])
    batch = service.wait(batch["id"])
    assert batch["request_counts"]["succeeded"] == n, [
        r["error"] for r in service.results(batch["id"], status="failed")][:3]
    lines = service.get(f"/v1/batches/{batch['id']}/results", {"Accept": NDJSON}, keep=0).ndjson() \
        if n <= 2000 else service.results(batch["id"], limit=1000)[:2000]
    assert {r["attempts"] for r in lines} == {1}


@pytest.mark.parametrize("hosts, per_host, most", [(1, 100, 100), (50, 4, 200)])
def test_connections_are_kept_however_low_max_parallel_is(start, origin, hosts, per_host, most):
    """As long as there are descriptors: max_parallel bounds what is in flight, not what is idle."""
    service = start("--max-parallel", most, "--max-per-host", per_host)
    n = size(5000)
    service.wait(service.submit([origin.url(f"/bytes/3?{i}", HOSTS[i % hosts])
                                 for i in range(n)])["id"])
    assert len({h.connection for h in origin.hits(n)}) <= most * 1.2


def test_many_transfers_of_one_host_keep_their_connections(start, origin):
    service = start("--max-per-host", size(1500))
    n = 4 * size(1500)
    service.wait(service.submit([origin.url(f"/delay/0.2?{i}") for i in range(n)])["id"])
    assert len({h.connection for h in origin.hits(n)}) <= size(1500) * 1.1
