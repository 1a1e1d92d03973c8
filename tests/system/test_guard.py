"""The guard: nothing but what policy allows is ever connected to, however it is spelled. Canaries
listen on the denied addresses and must see no connection at all."""
import base64
import json
import socket

import pytest

from origin import HOSTS
from toxic import Canary


@pytest.fixture(scope="module")
def guarded(module_services):
    """As users start it: no --allow-net."""
    return module_services(allow_net=None)


@pytest.fixture(scope="module")
def partly(module_services):
    """127.0.0.2 alone is allowed: the origin there redirects to what is denied."""
    return module_services(allow_net="127.0.0.2/32")


def has_ipv6():
    try:
        with socket.socket(socket.AF_INET6) as s:
            s.bind(("::1", 0))
        return True
    except OSError:
        return False


@pytest.fixture
def canaries():
    """On every loopback address that a spelling may lead to."""
    found = [Canary("127.0.0.1"), Canary("127.0.0.5"), Canary("0.0.0.0")]
    if has_ipv6():
        found.append(Canary("::1", socket.AF_INET6))
    yield found
    for canary in found:
        canary.stop()


def blocked(service, urls):
    """Each is refused: at once as no URL, or as blocked_address; nothing was sent."""
    results = service.run(urls, ignore_invalid_urls=True)
    for r in results:
        assert r["status"] == "failed", r
        assert r["error"]["code"] in ("blocked_address", "invalid_url"), r
        assert r["http_status"] is None and r["body_url"] is None and r["remote_ip"] is None, r
    return [r["error"]["code"] for r in results]


LOOPBACK = [
    "127.0.0.1", "127.0.0.5", "127.255.255.254", "127.1", "127.0.1", "2130706433", "0x7f000001",
    "0x7F.1", "0177.0.0.1", "0177.1", "017700000001", "00000177.0.0.1", "0x7f.0x0.0x0.0x1",
    "127.0.0.1.", "%31%32%37.0.0.1", "127.0.0.%31",
    "①②⑦.⓪.⓪.①", "127。0。0。1", "１２７．０．０．１", "127．0．0．1", "①②⑦.0.0.1",
    "localhost", "LocalHost", "localhost.", "foo.localhost",
    "0", "0.0.0.0", "0x0", "00000",
    "[::1]", "[0:0:0:0:0:0:0:1]", "[::0001]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]",
    "[::127.0.0.1]", "[::ffff:0:127.0.0.1]", "[64:ff9b::127.0.0.1]", "[64:ff9b::7f00:1]",
    "[2002:7f00:1::]", "[2002:7f00:0001::1]", "[::ffff:0.0.0.0]"]


def test_every_spelling_of_loopback_is_blocked(guarded, canaries):
    urls = [f"http://{host}:{canary.port}/x" for host in LOOPBACK for canary in canaries]
    codes = blocked(guarded, urls)
    # Those that are literal addresses are blocked as such, not by an accident of parsing.
    for host in ("127.0.0.1", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "localhost",
                 "[::1]", "0.0.0.0", "[::ffff:127.0.0.1]", "[::]"):
        for url, code in zip(urls, codes):
            if url.startswith(f"http://{host}:"):
                assert code == "blocked_address", url
    assert [c.connections() for c in canaries] == [0] * len(canaries)


def test_the_canaries_do_see_connections(start, canaries):
    """So that 0 above means something."""
    service = start()
    service.run([f"http://127.1:{canaries[0].port}/"], defaults={"timeout_ms": 2000})
    assert canaries[0].connections() >= 1


@pytest.mark.parametrize("host", [
    "10.0.0.1", "10.255.255.255", "172.16.0.1", "172.31.255.255", "192.168.0.1", "192.168.255.255",
    "169.254.169.254", "169.254.0.1", "2852039166", "0xa9fea9fe", "100.64.0.1", "100.100.100.200",
    "192.0.0.1", "192.0.2.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1",
    "239.255.255.255", "240.0.0.1", "255.255.255.255", "168.63.129.16", "0.1.2.3",
    "[fc00::1]", "[fd00:ec2::254]", "[fe80::1]", "[febf::1]", "[fec0::1]", "[ff02::1]",
    "[2001:db8::1]", "[::ffff:10.0.0.1]", "[::ffff:169.254.169.254]", "[64:ff9b::10.0.0.1]",
    "[64:ff9b:1::1]", "[2002:a00:1::]", "[2001::1]", "[100::1]", "[::2]", "[4000::1]"])
def test_private_and_reserved_addresses_are_blocked(guarded, host):
    result = guarded.one(f"http://{host}:81/latest/meta-data/")
    assert result["error"]["code"] == "blocked_address", result
    assert result["timing"]["connect_ms"] == 0 and result["remote_ip"] is None
    assert not result["error"]["retryable"]


def test_the_machines_own_addresses_are_blocked(guarded):
    own = set()
    for info in socket.getaddrinfo(socket.gethostname(), None, proto=socket.IPPROTO_TCP):
        own.add(info[4][0])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        try:
            s.connect(("192.0.2.1", 9))  # sends nothing: asks for the address of the way out
            own.add(s.getsockname()[0])
        except OSError:
            pass
    blocked(guarded, [f"http://{'[' + a + ']' if ':' in a else a}:81/" for a in own])


def test_a_name_that_resolves_to_loopback_is_blocked(guarded, canaries):
    results = guarded.run([f"http://{name}:{canaries[0].port}/" for name in
                           ("localhost", "LOCALHOST.", "ip6-localhost")])
    assert results[0]["error"]["code"] == results[1]["error"]["code"] == "blocked_address"
    assert results[2]["error"]["code"] in ("blocked_address", "dns")
    assert canaries[0].connections() == 0


def test_names_are_judged_by_their_addresses(guarded, partly, origin, canaries):
    names = ["good.test", "private.test", "metadata.test", "loop6.test", "mapped.test",
             "mixed.test"]
    for r in guarded.run([f"http://{name}:{canaries[0].port}/" for name in names]):
        assert r["error"]["code"] == "blocked_address", r
    assert [c.connections() for c in canaries] == [0] * len(canaries)
    # Of several addresses only the allowed one is used.
    result = partly.one(f"http://mixed.test:{origin.port}/bytes/3")
    assert result["status"] == "succeeded" and result["remote_ip"] == "127.0.0.2", result


def test_a_redirect_to_a_name_with_a_denied_address_is_blocked(partly, origin, canaries):
    for name in ("good.test", "private.test", "loop6.test"):
        target = f"http://{name}:{canaries[0].port}/"
        r = partly.one(origin.url(f"/redirect-to?url={target}", "127.0.0.2"))
        assert r["error"]["code"] == "blocked_address" and len(r["redirects"]) == 1, r
    assert [c.connections() for c in canaries] == [0] * len(canaries)


def test_https_is_guarded_as_well(guarded, origin, canaries):
    blocked(guarded, [f"https://127.0.0.1:{canaries[0].port}/",
                      f"https://localhost:{origin.tls_port}/"])
    assert canaries[0].connections() == 0


def test_the_service_does_not_fetch_from_itself(guarded):
    blocked(guarded, [guarded.url + "/v1/batches"])


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_to_denied_addresses_are_blocked(partly, origin, canaries, status):
    port = canaries[0].port
    targets = [f"http://{host}:{port}/secret" for host in
               ("127.0.0.1", "localhost", "127.0.0.5", "127.1", "2130706433", "0x7f.1", "[::1]",
                "[::ffff:127.0.0.1]", "0.0.0.0", "169.254.169.254", "10.0.0.1")]
    targets.append(f"//127.0.0.1:{port}/secret")
    results = partly.run([origin.url(f"/redirect-to?status={status}&url={t}", "127.0.0.2")
                          for t in targets])
    for r in results:
        assert r["status"] == "failed" and r["error"]["code"] == "blocked_address", r
        assert len(r["redirects"]) == 1
    assert [c.connections() for c in canaries] == [0] * len(canaries)
    assert len(origin.hits(len(targets))) == len(targets)


def test_the_allowed_net_alone_is_allowed(partly, origin):
    results = partly.run([origin.url("/bytes/3", host) for host in HOSTS[:6]])
    assert [r["status"] for r in results] == ["failed", "succeeded"] + ["failed"] * 4
    assert {r["error"]["code"] for r in results if r["error"]} == {"blocked_address"}


def test_a_reused_connection_does_not_open_the_way_to_another_address(partly, origin):
    urls = [origin.url(f"/bytes/3?{i}", HOSTS[i % 3]) for i in range(90)]
    for i, r in enumerate(partly.run(urls)):
        assert (r["status"] == "succeeded") == (i % 3 == 1), r
    assert {h.host for h in origin.hits(30)} == {"127.0.0.2"}


def test_what_was_allowed_before_a_restart_is_blocked_after_it(start, origin):
    service = start("--max-parallel", 1)
    batch = service.submit([origin.url(f"/delay/0.05?{i}") for i in range(100)])
    while service.batch(batch["id"])["request_counts"]["succeeded"] < 3:
        pass
    service.args = [a for a in service.args if a not in ("--allow-net", "127.0.0.0/8")]
    service.restart()
    arrived = origin.arrivals()
    results = service.finish(batch)
    assert sum(r["status"] == "succeeded" for r in results) < 100
    assert {r["error"]["code"] for r in results if r["error"]} == {"blocked_address"}
    assert origin.arrivals() == arrived


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6 loopback")
def test_ipv6_is_fetched_where_allowed(start, origin):
    service = start(allow_net="::1/128")
    good, bad = service.run([f"http://[::1]:{origin.port}/bytes/3", origin.url("/bytes/3")])
    assert good["status"] == "succeeded" and good["remote_ip"] == "::1"
    assert bad["error"]["code"] == "blocked_address"


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY",
                                  "all_proxy", "ALL_PROXY"])
def test_proxies_of_the_environment_are_ignored(start, origin, canaries, name):
    proxy = f"http://127.0.0.1:{canaries[0].port}"
    service = start("--ca-file", origin.ca_file, env={name: proxy, "no_proxy": ""})
    plain, secure = service.run([origin.url("/bytes/3"), origin.https("/bytes/3")])
    assert plain["status"] == secure["status"] == "succeeded"
    assert canaries[0].connections() == 0


def test_netrc_is_ignored(start, origin, tmp_path):
    (tmp_path / ".netrc").write_text("default login user password s3cret\n")
    (tmp_path / ".netrc").chmod(0o600)
    service = start(env={"HOME": str(tmp_path)})
    doc = json.loads(service.one(origin.url("/echo"))["body"])
    assert b"authorization" not in base64.b64decode(doc["head"]).lower()
