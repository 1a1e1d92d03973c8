"""Names, as dnsmasq answers for them: many, slow, failing, truncated, rebinding ones."""
import re
import shutil
import signal
import socket
import subprocess
import time

import pytest

import harness
from harness import SANITIZED, SLOWER, eventually, size
from origin import HOSTS, free_ports
from toxic import Backlogged, Toxic


class Dnsmasq:
    """Knows *.many.test (127.0.0.1), the names of its hosts file, and chains of CNAMEs; nobody
    answers for *.silent.test, *.refused.test is refused, *.nx.test does not exist."""

    def __init__(self):
        self.dir = harness.temp_dir("dnsmasq")
        self.hosts, self.log = self.dir / "hosts", self.dir / "log"
        self.write({"chain.test": ["127.0.0.3"], "moving.test": ["127.0.0.4"],
                    "fifty.test": HOSTS, "six.test": ["::1", "127.0.0.5"]})
        self.silent = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.silent.bind(("127.0.0.1", 0))
        self.port = free_ports(1)[0]
        self.process = subprocess.Popen([
            "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts",
            f"--port={self.port}", "--listen-address=127.0.0.1", "--bind-interfaces", "--user=",
            "--group=", "--pid-file", f"--addn-hosts={self.hosts}", "--log-queries",
            f"--log-facility={self.log}", "--address=/many.test/127.0.0.1", "--local=/nx.test/",
            "--local=/many.test/",
            "--cname=one.test,two.test", "--cname=two.test,three.test",
            "--cname=three.test,chain.test", "--edns-packet-max=512", "--dns-forward-max=10000",
            f"--server=/silent.test/127.0.0.1#{self.silent.getsockname()[1]}"],
            stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, start_new_session=True)
        eventually(lambda: self.process.poll() is not None or
                   (self.log.exists() and "read " in self.log.read_text()), what="dnsmasq")
        assert self.process.poll() is None, self.process.stderr.read()

    def write(self, names):
        self.hosts.write_text("".join(f"{a} {n}\n" for n, l in names.items() for a in l))

    def move(self, name, address):
        reads = self.log.read_text().count("read ")
        self.write({name: [address]})
        self.process.send_signal(signal.SIGHUP)
        eventually(lambda: self.log.read_text().count("read ") > reads, what="the new hosts file")

    def asked(self, name, kind="A"):
        return len(re.findall(rf"query\[{kind}\] {re.escape(name)} ", self.log.read_text()))

    def stop(self):
        self.process.terminate()
        self.process.wait(10)
        self.process.stderr.close()
        self.silent.close()
        shutil.rmtree(self.dir)


@pytest.fixture
def dns():
    server = Dnsmasq()
    yield server
    server.stop()


@pytest.fixture
def service(start, dns):
    return start("--dns-servers", f"127.0.0.1:{dns.port}")


def url(origin, name, i=0):
    return f"http://{name}:{origin.port}/bytes/3?t={i}"


def code(result):
    return result["error"]["code"] if result["error"] else "succeeded"


def test_thousands_of_names_are_each_asked_for_once(service, dns, origin):
    n = size(3000)
    batch = service.submit([url(origin, f"n{i % n}.many.test", i) for i in range(2 * n)])
    assert service.wait(batch["id"])["request_counts"]["succeeded"] == 2 * n
    queries = re.findall(r"query\[(A+)\] (n\d+)\.many", dns.log.read_text())
    assert len(queries) == len(set(queries)) == 2 * n  # A and AAAA


def test_many_urls_of_one_name_are_one_question(service, dns, origin):
    results = service.run([url(origin, "x.many.test", i) for i in range(300)])
    assert {r["remote_ip"] for r in results} == {"127.0.0.1"}
    assert dns.asked("x.many.test") == dns.asked("x.many.test", "AAAA") == 1


def test_chains_long_answers_by_tcp_and_both_families(service, dns, origin):
    chain, fifty, six = service.run([url(origin, n) for n in ("one.test", "fifty.test", "six.test")])
    assert chain["remote_ip"] == "127.0.0.3"
    assert fifty["remote_ip"] in HOSTS
    assert dns.asked("fifty.test") == 2, "truncated, then by TCP"
    assert six["remote_ip"] == "127.0.0.5"  # ::1 is not allowed here


def test_names_that_fail_say_so_at_once(service, dns, origin):
    results = service.run([url(origin, n) for n in ("a.nx.test", "a.refused.test", "a.many.test")])
    assert [code(r) for r in results] == ["dns", "dns", "succeeded"]
    assert max(r["timing"]["total_ms"] for r in results) < 1500 * SLOWER
    service.run([url(origin, "a.nx.test", i) for i in range(20)])
    assert dns.asked("a.nx.test") <= 2, "that it does not exist is remembered for a while"


def test_a_name_that_moves_is_followed_and_judged_again(service, dns):
    """dnsmasq's answers have a TTL of 0; they are used for a second. (A kept connection would go on
    being used, so the origin keeps none.)"""
    origin = Toxic("0.0.0.0")
    target = f"http://moving.test:{origin.port}/until-close"
    try:
        assert service.one(target)["remote_ip"] == "127.0.0.4"
        dns.move("moving.test", "127.0.0.6")
        eventually(lambda: service.one(target)["remote_ip"] == "127.0.0.6", 5)
        dns.move("moving.test", "10.0.0.1")
        eventually(lambda: code(service.one(target)) == "blocked_address", 5)
    finally:
        origin.stop()


def test_a_thousand_names_that_hang_slow_no_other(service, dns, origin):
    n = size(1000)

    def others():
        began = time.monotonic()
        results = service.run([url(origin, f"o{int(began * 1e6)}-{i % 100}.many.test", i)
                               for i in range(size(2000))], include="")
        failed = [(r["url"], r["error"], r["timing"]) for r in results if r["status"] == "failed"]
        assert not failed, (len(failed), failed[:3])
        return time.monotonic() - began

    alone = min(others() for _ in range(2))
    hanging = service.submit([url(origin, f"h{i}.silent.test") for i in range(n)],
                             defaults={"connect_timeout_ms": 60000, "timeout_ms": 60000})
    eventually(lambda: dns.log.read_text().count("silent.test from") >= n, what="the questions")
    beside = min(others() for _ in range(2))
    counts = service.batch(hanging["id"])["request_counts"]
    assert counts["failed"] == counts["succeeded"] == 0
    print(f"alone {alone:.2f} s, beside {n} names that hang {beside:.2f} s")
    assert beside < 2 * alone + 0.5 * SLOWER
    service.delete(f"/v1/batches/{hanging['id']}").expect(204)


def test_very_many_that_wait_for_a_name_all_have_their_time(start, dns, origin):
    """Above some thousands they keep their slots, and wait no shorter for it."""
    n = 9000
    service = start("--dns-servers", f"127.0.0.1:{dns.port}", "--fetchers", 1, "--max-parallel", n,
                    "--max-per-host", n)
    batch = service.submit([url(origin, "h.silent.test", i) for i in range(n)],
                           defaults={"timeout_ms": 1500, "connect_timeout_ms": 60000})
    results = service.finish(batch)
    # where it takes seconds to start them all, the last ones join a question that is soon given up
    assert {code(r) for r in results} <= ({"timeout", "dns"} if SANITIZED else {"timeout"})
    times = [r["timing"]["dns_ms"] for r in results if code(r) == "timeout"]
    assert min(times) >= 1400 and max(times) < 1500 + 1000 * SLOWER, (min(times), max(times))


def test_the_machines_hosts_file_comes_first(service, dns, origin):
    name = socket.gethostname().lower()
    lines = open("/etc/hosts").read().splitlines()
    entries = [l.split()[0] for l in lines if name in l.split("#")[0].split()[1:]]
    if not entries:
        pytest.skip("this machine is not in its own hosts file")
    before = dns.asked(name)
    result = service.one(url(origin, name), connect_timeout_ms=1000)
    assert code(result) != "dns" and dns.asked(name) == before


def test_a_dead_host_with_very_many_urls_slows_no_other(start, origin):
    """Connects that get no answer: they hold their host's slots, and nothing else."""
    service = start()
    hung = Backlogged("127.0.0.9")
    try:
        dead = service.submit([f"http://127.0.0.9:{hung.port}/{i}" for i in range(size(20000))])
        began = time.monotonic()
        results = service.run([origin.url(f"/bytes/3?{i}", HOSTS[i % 5]) for i in range(500)])
        assert {code(r) for r in results} == {"succeeded"}
        assert time.monotonic() - began < 3 * SLOWER
        counts = service.batch(dead["id"])["request_counts"]
        assert counts["in_flight"] == 16 and counts["succeeded"] == 0, counts
        service.delete(f"/v1/batches/{dead['id']}").expect(204)
    finally:
        hung.stop()
