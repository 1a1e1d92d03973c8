"""Trust is read once, TLS sessions are resumed; neither makes verification any weaker."""
import collections
import shutil
import socket
import ssl
import subprocess
import threading

import pytest

import harness
import origin as origins
from test_start import run

MANY = 500  # hosts
KINDS = ["tls13-tickets", "tls12-tickets", "tls12-ids"]
SERVER = {
    "tls13-tickets": "ssl_protocols TLSv1.3; ssl_session_tickets on;",
    "tls12-tickets": "ssl_protocols TLSv1.2; ssl_session_tickets on;",
    "tls12-ids": "ssl_protocols TLSv1.2; ssl_session_tickets off; ssl_session_cache shared:ids:1m;",
}
Hit = collections.namedtuple("Hit", "resumed protocol name connection uri")


class Resuming:
    """An nginx that closes after each answer and logs whether the handshake was a resumed one."""

    def __init__(self, directory, tls):
        self.dir = directory
        self.dir.mkdir()
        leaf(tls)
        self.ports = dict(zip(KINDS, origins.free_ports(len(KINDS))))
        servers = "".join(f"""
    server {{
        listen 127.0.0.1:{self.ports[kind]} ssl backlog=2048;
        ssl_certificate {tls}/many.crt;
        ssl_certificate_key {tls}/many.key;
        {SERVER[kind]}
        location / {{ return 200 "ok"; }}
        location /slow {{ content_by_lua_block {{ ngx.sleep(0.5) ngx.print("ok") }} }}
        location /keep {{ keepalive_timeout 60s; return 200 "ok"; }}
    }}""" for kind in KINDS)
        modules = "/usr/lib/nginx/modules"
        (self.dir / "nginx.conf").write_text(f"""
load_module {modules}/ndk_http_module.so;
load_module {modules}/ngx_http_lua_module.so;
daemon off;
worker_processes 1;
pid {self.dir}/pid;
error_log {self.dir}/error.log warn;
events {{ worker_connections 2000; }}
http {{
    log_format line '$ssl_session_reused $ssl_protocol $ssl_server_name $connection $uri';
    access_log {self.dir}/access.log line;
    client_body_temp_path {self.dir}; proxy_temp_path {self.dir}; fastcgi_temp_path {self.dir};
    uwsgi_temp_path {self.dir}; scgi_temp_path {self.dir};
    keepalive_timeout 0;
    ssl_session_timeout 1h;
{servers}
}}
""")
        self.process = subprocess.Popen(
            ["nginx", "-c", self.dir / "nginx.conf", "-e", self.dir / "error.log"],
            start_new_session=True)
        harness.eventually(self.listens, what="nginx listens")

    def listens(self):
        assert self.process.poll() is None, (self.dir / "error.log").read_text()
        try:
            for port in self.ports.values():
                socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            return False
        return True

    def url(self, kind, host, path="/"):
        return f"https://{host}:{self.ports[kind]}{path}"

    def hits(self, count):
        """The requests since the last call: exactly `count`."""
        def read():
            lines = (self.dir / "access.log").read_text().splitlines()
            return lines if len(lines) >= count else None
        lines = harness.eventually(read, what=f"{count} requests")
        (self.dir / "access.log").write_text("")
        assert len(lines) == count
        return [Hit(*([line.split(" ")[0] == "r"] + line.split(" ")[1:])) for line in lines]

    def stop(self):
        self.process.terminate()
        self.process.wait(10)


def leaf(tls):
    """A certificate of all names below many.test, as origin.py makes the others."""
    if (tls / "many.crt").exists():
        return
    (tls / "many.ext").write_text("subjectAltName=DNS:*.many.test\n")
    for args in (
        ["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", "many.key"],
        ["req", "-config", "ca.cnf", "-new", "-key", "many.key", "-subj", "/CN=many", "-out",
         "many.csr"],
        ["ca", "-config", "ca.cnf", "-batch", "-notext", "-cert", "middle.crt", "-keyfile",
         "middle.key", "-in", "many.csr", "-extfile", "many.ext", "-startdate", "20200101000000Z",
         "-enddate", "20491231000000Z", "-out", "many.crt"],
    ):
        done = subprocess.run(["openssl", *args], cwd=tls, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    with open(tls / "many.crt", "a") as out:
        out.write((tls / "middle.crt").read_text())


@pytest.fixture(scope="module")
def tls(session_origin):
    return session_origin.dir / "tls"


@pytest.fixture(scope="module")
def nginx(tls):
    directory = harness.temp_dir("tls")
    names = {f"h{i}.many.test": ["127.0.0.1"] for i in range(MANY)}
    harness.DNS.names.update(names)
    server = Resuming(directory / "nginx", tls)
    yield server
    server.stop()
    shutil.rmtree(directory)


@pytest.fixture
def trusting(start, session_origin):
    return start("--ca-file", session_origin.ca_file, "--max-per-host", 200)


def fetch(service, urls, **limits):
    for result in service.run(list(urls), limits=limits):
        assert result["status"] == "succeeded", result


# ---- trust ----

def test_the_certificates_are_read_once_and_never_again(start, origin, tls, tmp_path):
    ca = tmp_path / "ca.crt"
    shutil.copy(tls / "ca.crt", ca)
    service = start("--ca-file", ca, "--fetchers", 2, "--max-per-host", 200)
    ca.unlink()
    hosts = ("127.0.0.1", "127.0.0.7", "localhost")
    urls = [origin.https("/delay/0.2", host) for host in hosts for _ in range(100)]
    fetch(service, urls)  # more than one fetcher, many multis
    assert service.one(origin.https("/bytes/1", "127.0.0.5"))["error"]["code"] == "tls"
    done = run("--ca-file", ca, "--data", tmp_path / "data")
    assert done.returncode == 2 and "No such file" in done.stderr


@pytest.mark.parametrize("text", ["", "nonsense\n",
                                  "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
@pytest.mark.parametrize("check", [True, False])
def test_a_broken_ca_file_is_known_at_start(tmp_path, text, check):
    ca = tmp_path / "ca.crt"
    ca.write_text(text)
    done = run("--ca-file", ca, "--data", tmp_path / "data", "--listen", "127.0.0.1:0",
               *(["--check"] if check else []))
    assert done.returncode == 3
    assert f"--ca-file: {ca}: " in done.stderr, done.stderr
    assert not (tmp_path / "data" / "batchfetch.db").exists()


def test_a_trusted_intermediate_certificate_ends_a_chain(start, origin, tls):
    service = start("--ca-file", tls / "middle.crt")
    for host in ("127.0.0.1", "127.0.0.6"):  # 6 sends its own certificate only
        fetch(service, [origin.https("/bytes/1", host)])
    for host in ("127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.5"):
        assert service.one(origin.https("/bytes/1", host))["error"]["code"] == "tls"


def test_connections_are_kept(trusting, nginx):
    fetch(trusting, [nginx.url("tls13-tickets", "h0.many.test", "/keep")] * 200, max_parallel=2)
    assert len({hit.connection for hit in nginx.hits(200)}) <= 2


# ---- sessions ----

@pytest.mark.parametrize("kind", KINDS)
def test_sessions_are_resumed_one_after_the_other_and_all_at_once(trusting, nginx, kind):
    fetch(trusting, [nginx.url(kind, "h1.many.test")] * 20, max_parallel=1)
    hits = nginx.hits(20)
    assert [hit.resumed for hit in hits] == [False] + [True] * 19
    assert {hit.protocol for hit in hits} == {"TLSv1.3" if "13" in kind else "TLSv1.2"}
    # 150 connections at once, which are in several multis
    fetch(trusting, [nginx.url(kind, "h1.many.test", "/slow")] * 150)
    hits = nginx.hits(150)
    assert len({hit.connection for hit in hits}) == 150 and all(hit.resumed for hit in hits)
    text = trusting.get("/metrics", keep=1 << 20).body
    assert b'\nbatchfetch_tls_handshakes_total{kind="full"} 1\n' in text
    assert b'\nbatchfetch_tls_handshakes_total{kind="resumed"} 169\n' in text


@pytest.mark.parametrize("kind", KINDS)
def test_a_session_is_of_one_host_and_port(trusting, nginx, kind):
    names = [f"h{i}.many.test" for i in range(10)]
    fetch(trusting, [nginx.url(kind, name) for name in names], max_parallel=1)
    hits = nginx.hits(10)
    assert sorted(hit.name for hit in hits) == names and not any(hit.resumed for hit in hits)
    other = KINDS[(KINDS.index(kind) + 1) % len(KINDS)]
    fetch(trusting, [nginx.url(other, name) for name in names], max_parallel=1)
    assert not any(hit.resumed for hit in nginx.hits(10))


def test_many_hosts_do_not_push_out_each_other(trusting, nginx):
    urls = [nginx.url("tls13-tickets", f"h{i}.many.test") for i in range(MANY)]
    for turn in range(3):
        fetch(trusting, urls, max_parallel=50)
        hits = nginx.hits(MANY)
        assert sum(hit.resumed for hit in hits) == (MANY if turn else 0)


def test_sessions_end_with_the_process(start, nginx, session_origin):
    service = start("--ca-file", session_origin.ca_file)
    for _ in range(2):
        fetch(service, [nginx.url("tls13-tickets", "h2.many.test")] * 2, max_parallel=1)
        assert [hit.resumed for hit in nginx.hits(2)] == [False, True]
        service.restart()


# ---- servers that change ----

class Handshakes:
    """A TLS server that notes of each connection whether a session was offered and resumed; one
    that is `bitter` refuses whoever offers one."""

    def __init__(self, chain, key, version, bitter=False):
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(chain, key)
        self.context.minimum_version = self.context.maximum_version = version
        self.bitter = bitter
        self.offered, self.resumed = [], []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            try:
                raw, _ = self.listener.accept()
            except OSError:
                return
            try:
                self.one(raw)
            except OSError:
                pass  # the client has left: the tests look at what was noted
            finally:
                raw.close()

    def one(self, raw):
        raw.settimeout(10)
        offered = has_session(peek_hello(raw))
        self.offered.append(offered)
        if offered and self.bitter:
            raw.recv(65536)
            raw.sendall(b"\x15\x03\x03\x00\x02\x02\x28")  # fatal alert: handshake_failure
            return
        with self.context.wrap_socket(raw, server_side=True) as conn:
            self.resumed.append(conn.session_reused)
            conn.recv(65536)
            conn.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")

    def stop(self):
        self.listener.close()


def peek_hello(raw):
    """The ClientHello's message, left in the socket."""
    while True:
        data = raw.recv(65536, socket.MSG_PEEK)
        if not data:
            raise OSError("closed")
        if len(data) >= 5 and len(data) >= 5 + int.from_bytes(data[3:5], "big"):
            return data[5:]


def has_session(hello):
    """Whether it has a ticket of TLS 1.2, or the extension pre_shared_key."""
    at = 4 + 2 + 32
    at += 1 + hello[at]
    at += 2 + int.from_bytes(hello[at:at + 2], "big")
    at += 1 + hello[at]
    end = at + 2 + int.from_bytes(hello[at:at + 2], "big")
    at += 2
    while at < end:
        kind, size = (int.from_bytes(hello[at + i:at + i + 2], "big") for i in (0, 2))
        if kind == 41 or (kind == 35 and size > 0):
            return True
        at += 4 + size
    return False


@pytest.fixture
def handshakes():
    servers = []

    def make(*args, **more):
        servers.append(Handshakes(*args, **more))
        return servers[-1]
    yield make
    for server in servers:
        server.stop()


VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_session_that_the_server_refuses_costs_no_result(trusting, tls, handshakes, version):
    server = handshakes(tls / "good.crt", tls / "good.key", version, bitter=True)
    for n in range(3):
        result = trusting.one(f"https://127.0.0.1:{server.port}/")
        assert result["status"] == "succeeded" and result["attempts"] == 1, result
    assert server.offered == [False, True, False, True, False]
    # a server that fails in any case is not asked for ever
    server.context.minimum_version = ssl.TLSVersion.MAXIMUM_SUPPORTED
    server.context.set_ciphers("ECDHE-RSA-AES128-GCM-SHA256")  # for which it has no key
    server.context.maximum_version = server.context.minimum_version = ssl.TLSVersion.TLSv1_2
    result = trusting.one(f"https://127.0.0.1:{server.port}/")
    assert result["error"]["code"] == "tls", result
    assert server.offered[5:] == [True, False]


@pytest.mark.parametrize("version", VERSIONS)
def test_the_session_of_a_wrong_host_is_not_kept(trusting, tls, handshakes, version):
    server = handshakes(tls / "wrong-host.crt", tls / "wrong-host.key", version)
    for _ in range(3):
        result = trusting.one(f"https://127.0.0.1:{server.port}/")
        assert result["error"]["code"] == "tls", result
    harness.eventually(lambda: len(server.resumed) == 3)  # it notes that after it has answered
    assert server.offered == server.resumed == [False] * 3
    server.context.load_cert_chain(tls / "good.crt", tls / "good.key")  # mended
    assert trusting.one(f"https://127.0.0.1:{server.port}/")["status"] == "succeeded"


def test_a_session_lost_by_the_server_is_a_full_handshake(trusting, tls, handshakes):
    server = handshakes(tls / "good.crt", tls / "good.key", VERSIONS[1])
    for _ in range(2):
        fetch(trusting, [f"https://127.0.0.1:{server.port}/"])
    server.context = Handshakes(tls / "good.crt", tls / "good.key", VERSIONS[1]).context
    fetch(trusting, [f"https://127.0.0.1:{server.port}/"])
    assert server.offered == [False, True, True] and server.resumed == [False, True, False]
