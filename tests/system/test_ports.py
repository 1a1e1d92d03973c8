"""Local ports are a limit of ours: a host whose connections use all of them waits, and no request
fails. In a network of their own, with few ports; this needs root."""
import os
import shutil
import socket

import harness
from harness import SLOWER, in_network_namespace, size
from origin import HOSTS, Origin
from toxic import Dns, Toxic

PORTS = {"net__ipv4__ip_local_port_range": "20000 20199"}


def alone(fn, origin=True, *args):
    """fn(service, origin, toxic), all in a network with 200 ports."""
    def body():
        directory = harness.temp_dir("ports")
        started = []
        try:
            dns = Dns()
            good = Origin(directory / "origin") if origin else None
            if good:
                good.dir.mkdir()
                started.append(good)
                good.start()
            toxic = Toxic()
            started.append(toxic)
            service = harness.Service(directory / "service", "--max-per-host", 300, "--dns-servers",
                                      f"127.0.0.1:{dns.port}", *args)
            service.dir.mkdir()
            started.append(service)
            service.start()
            fn(service, good, toxic)
        finally:
            for server in reversed(started):
                server.stop()
            dns.stop()
            shutil.rmtree(directory)

    in_network_namespace(body, **PORTS)


def all_succeeded_at_once(results):
    assert {(r["status"], r["attempts"]) for r in results} == {("succeeded", 1)}, \
        [r for r in results if r["status"] != "succeeded" or r["attempts"] != 1][:3]


def cpu_seconds(service):
    with open(f"/proc/{service.process.pid}/stat") as f:
        fields = f.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_more_transfers_at_once_than_ports():
    def check(service, origin, toxic):
        before = cpu_seconds(service)
        all_succeeded_at_once(service.run([origin.url(f"/delay/0.5?{i}") for i in range(500)]))
        assert 150 < origin.peaks()["*"] <= 200
        assert origin.arrivals() == 500
        assert cpu_seconds(service) - before < 1 * SLOWER  # no busy loop

    alone(check)


def test_other_hosts_go_on_meanwhile():
    def check(service, origin, toxic):
        slow = service.submit([origin.url(f"/delay/2?{i}", HOSTS[2]) for i in range(250)])
        harness.eventually(lambda: origin.state().get("active:*", 0) >= 190, what="use of the ports")
        quick = service.run([origin.url(f"/bytes/3?{i}", HOSTS[1]) for i in range(100)])
        all_succeeded_at_once(quick)
        assert service.batch(slow["id"])["request_counts"]["succeeded"] == 0
        assert max(r["timing"]["total_ms"] for r in quick) < 1000 * SLOWER
        service.delete(f"/v1/batches/{slow['id']}").expect(204)

    alone(check)


def test_idle_connections_to_the_same_address_make_room():
    """Many names, one address: what was kept for the first names is in the way of the others."""
    def check(service, origin, toxic):
        urls = [f"http://n{i % 100}.localhost:{origin.port}/delay/0.05?{i}" for i in range(size(1000))]
        all_succeeded_at_once(service.run(urls))

    alone(check)


def test_every_answer_on_a_connection_of_its_own():
    def check(service, origin, toxic):
        all_succeeded_at_once(service.run([toxic.url(f"/until-close?{i}")
                                           for i in range(size(1000))]))

    alone(check, origin=False)


def test_an_address_that_cannot_be_reached_from_here_is_no_want_of_ports():
    """The kernel has the same word for both."""
    def check(service, origin, toxic):
        with open("/proc/sys/net/ipv6/conf/all/disable_ipv6", "w") as f:
            f.write("1")
        with socket.socket(socket.AF_INET6) as s:
            assert s.connect_ex(("2001:4860::1", 80)) == 99  # EADDRNOTAVAIL
        result = service.one("http://[2001:4860::1]/")
        assert result["error"]["code"] == "connect" and result["attempts"] == 1
        assert result["timing"]["total_ms"] < 1000 * SLOWER

    alone(check, origin=False)


def test_no_port_to_ask_a_name_server_by():
    def check(service, origin, toxic):
        taken = []
        try:
            while True:
                s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                taken.append(s)
                s.connect(("127.0.0.1", 9))
        except BlockingIOError:
            pass
        batch = service.submit([f"http://{name}.test:{origin.port}/bytes/3?{i}"
                                for i in range(20) for name in ("good", "two")])
        assert service.get(f"/v1/batches/{batch['id']}?wait=1").json()["request_counts"][
            "failed"] == 0
        for s in taken:
            s.close()
        all_succeeded_at_once(service.finish(batch))

    alone(check)
