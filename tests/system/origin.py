"""The good origin: nginx with Lua, started by the tests in a directory of their own.

It listens on 127.0.0.1 to 127.0.0.50, http and https on one free port each, so that 50 hosts are
there without any DNS. What it answers is in origin/origin.lua.
"""
import collections
import http.client
import json
import os
import pathlib
import random
import resource
import socket
import subprocess
import time
import urllib.parse

HERE = pathlib.Path(__file__).parent / "origin"
HOSTS = [f"127.0.0.{n}" for n in range(1, 51)]
DEAD_HOST = "127.0.0.77"  # nothing listens there

Hit = collections.namedtuple("Hit", "time host method uri status connection protocol")

# https: address -> (kind of certificate it presents)
TLS = {
    "127.0.0.1": "good",          # CA -> intermediate -> leaf, the chain sent; also for localhost
    "127.0.0.2": "wrong-host",    # a good certificate of 127.0.0.99
    "127.0.0.3": "expired",
    "127.0.0.4": "self-signed",
    "127.0.0.5": "other-ca",      # signed by a CA that nobody trusts
    "127.0.0.6": "no-chain",      # the intermediate certificate is not sent
    "127.0.0.7": "good",
}

# HTTP/2 over TLS, on a port each: what it does -> nginx's settings for it
H2 = {
    "plain": "",
    "few": "http2_max_concurrent_streams 4;",
    "goaway": "keepalive_requests 40;",  # then GOAWAY, and a new connection
}

# HTTP/1.1 on a port each: what it does -> nginx's settings for it
BRIEF = {
    "idle": "keepalive_timeout 2ms;",  # closes connections unannounced
}


def content(n, token="batchfetch"):
    """What /bytes/N?t=TOKEN answers."""
    unit = token.encode() + b"|"
    return (unit * (n // len(unit) + 1))[:n]


def free_ports(n):
    """Ports below the ephemeral range (a client's connection must not take them meanwhile)."""
    found = []
    while len(found) < n:
        port = random.randrange(12000, 30000)
        with socket.socket() as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                s.bind(("0.0.0.0", port))  # bound, never listened on
            except OSError:
                continue
        if port not in found:
            found.append(port)
    return found


def _openssl(directory, *args, stdin=None):
    done = subprocess.run(["openssl", *args], cwd=directory, input=stdin, capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr


def make_certificates(directory):
    """A CA, an intermediate CA and the leaves of TLS, as NAME.crt (with chain) and NAME.key."""
    directory.mkdir()
    (directory / "index.txt").touch()
    (directory / "ca.cnf").write_text("""
[ca]
default_ca = ca
[ca]
database = index.txt
new_certs_dir = .
rand_serial = yes
default_md = sha256
policy = policy
unique_subject = no
[policy]
commonName = supplied
[req]
distinguished_name = name
[name]
""")
    def key(name):
        _openssl(directory, "genpkey", "-algorithm", "EC", "-pkeyopt",
                 "ec_paramgen_curve:P-256", "-out", f"{name}.key")

    def ca(name, issuer=None):
        key(name)
        extensions = directory / f"{name}.ext"
        extensions.write_text("basicConstraints=critical,CA:TRUE\n"
                              "keyUsage=critical,keyCertSign,cRLSign\n")
        _openssl(directory, "req", "-config", "ca.cnf", "-new", "-key", f"{name}.key",
                 "-subj", f"/CN=batchfetch test {name}", "-out", f"{name}.csr")
        sign(name, issuer or name, "20200101000000Z", "20491231000000Z", issuer is None)

    def sign(name, issuer, start, end, selfsign=False):
        who = ["-selfsign", "-keyfile", f"{name}.key"] if selfsign else \
            ["-cert", f"{issuer}.crt", "-keyfile", f"{issuer}.key"]
        _openssl(directory, "ca", "-config", "ca.cnf", "-batch", "-notext", *who,
                 "-in", f"{name}.csr", "-extfile", f"{name}.ext", "-startdate", start,
                 "-enddate", end, "-out", f"{name}.crt")

    def leaf(name, issuer, san, end="20491231000000Z", chain=()):
        key(name)
        (directory / f"{name}.ext").write_text(f"subjectAltName={san}\n")
        _openssl(directory, "req", "-config", "ca.cnf", "-new", "-key", f"{name}.key",
                 "-subj", f"/CN={name}", "-out", f"{name}.csr")
        sign(name, issuer, "20200101000000Z", end, selfsign=issuer is None)
        with open(directory / f"{name}.crt", "a") as out:
            for other in chain:
                out.write((directory / f"{other}.crt").read_text())

    ca("ca")
    ca("middle", "ca")
    ca("other")
    here = ",".join(f"IP:{a}" for a in HOSTS[:10]) + ",DNS:localhost,DNS:good.test"
    leaf("good", "middle", here, chain=["middle"])
    leaf("wrong-host", "middle", "IP:127.0.0.99,DNS:wrong.test", chain=["middle"])
    leaf("expired", "middle", here, end="20210101000000Z", chain=["middle"])
    leaf("self-signed", None, here)
    leaf("other-ca", "other", here)
    leaf("no-chain", "middle", here)


def connected():
    """The local ports of all connections that are open, as the kernel has them."""
    ports = set()
    for file in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in open(file).read().splitlines()[1:]:
            _, local, _, state, *_ = line.split()
            if state == "01":
                ports.add(int(local.split(":")[1], 16))
    return ports


class Origin:
    def __init__(self, directory):
        self.dir = pathlib.Path(directory)
        self.process = None
        self.log_offset = 0
        self.generation = "0"

    def start(self):
        make_certificates(self.dir / "tls")
        self.ca_file = str(self.dir / "tls" / "ca.crt")
        (self.dir / "temp").mkdir()
        for _ in range(5):
            self.port, self.tls_port, *ports = free_ports(2 + len(H2) + len(BRIEF))
            self.h2_ports = dict(zip(H2, ports))
            self.brief_ports = dict(zip(BRIEF, ports[len(H2):]))
            self._write_config()
            self._errors = open(self.dir / "stderr", "wb")
            self.process = subprocess.Popen(
                ["nginx", "-c", str(self.dir / "nginx.conf"), "-e", str(self.dir / "error.log")],
                stdout=self._errors, stderr=self._errors, start_new_session=True)
            if self._ready():
                return self
            self.stop()
        raise AssertionError("nginx does not start: " + (self.dir / "stderr").read_text() +
                             (self.dir / "error.log").read_text())

    def _write_config(self):
        server = (HERE / "server.conf.in").read_text()
        lines = [f"        listen {a}:{self.port} backlog=4096;" for a in HOSTS]
        lines.append(f"        listen [::1]:{self.port} backlog=4096;")
        servers = [server.replace("@LISTEN@", "\n".join(lines))]
        for address, kind in TLS.items():
            servers.append(server.replace("@LISTEN@", "\n".join([
                f"        listen {address}:{self.tls_port} ssl;",
                f"        ssl_certificate {self.dir}/tls/{kind}.crt;",
                f"        ssl_certificate_key {self.dir}/tls/{kind}.key;"])))
        for kind, settings in H2.items():
            servers.append(server.replace("@LISTEN@", "\n".join([
                *(f"        listen {a}:{self.h2_ports[kind]} ssl http2;" for a in HOSTS[:10]),
                f"        ssl_certificate {self.dir}/tls/good.crt;",
                f"        ssl_certificate_key {self.dir}/tls/good.key;",
                f"        {settings}"])))
        for kind, settings in BRIEF.items():
            servers.append(server.replace("@LISTEN@", "\n".join([
                *(f"        listen {a}:{self.brief_ports[kind]} backlog=4096;" for a in HOSTS[:10]),
                f"        {settings}"])))
        nofile = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        nofile = 65536 if nofile == resource.RLIM_INFINITY else min(nofile, 65536)
        values = {
            "USER": "user root;" if os.geteuid() == 0 else "",
            "MODULES": "/usr/lib/nginx/modules", "DIR": self.dir, "HERE": HERE,
            "NOFILE": nofile, "CONNECTIONS": nofile - 200, "SERVERS": "\n".join(servers),
        }
        text = (HERE / "nginx.conf.in").read_text()
        for name, value in values.items():
            text = text.replace(f"@{name}@", str(value))
        (self.dir / "nginx.conf").write_text(text)

    def _ready(self):
        end = time.monotonic() + 15
        while time.monotonic() < end and self.process.poll() is None:
            try:
                self.state()
                return True
            except (OSError, http.client.HTTPException):  # where ports are few, we may meet ourselves
                time.sleep(0.02)  # nothing tells when another process has begun to listen
        return False

    def stop(self):
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(10)
        self._errors.close()

    def pids(self):
        """nginx and its workers."""
        children = pathlib.Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [self.process.pid, *map(int, children.read_text().split())]

    # ---- URLs ----

    def url(self, path, host=HOSTS[0]):
        return f"http://{host}:{self.port}{path}"

    def https(self, path, host=HOSTS[0]):
        return f"https://{host}:{self.tls_port}{path}"

    def mixed(self, n, tag):
        """n URLs on ten hosts, of each five one a redirect to another host, one that is well at the
        second attempt, three that are slow; and how often each URI is then asked for."""
        urls, asked = [], collections.Counter()
        for i in range(n):
            uri = f"/flaky/1/{tag}{i}" if i % 5 == 1 else f"/delay/0.0{i % 7}?t={tag}{i}"
            if i % 5 == 0:
                to = f"/delay/0.02?to{tag}{i}"
                asked[to] += 1
                uri = "/redirect-to?url=" + urllib.parse.quote(
                    self.url(to, HOSTS[(i + 3) % 10]), safe="")
            urls.append(self.url(uri, HOSTS[i % 10]))
            asked[uri] += 2 if i % 5 == 1 else 1
        return urls, asked

    def h2(self, path, kind="plain", host=HOSTS[0]):
        return f"https://{host}:{self.h2_ports[kind]}{path}"

    def brief(self, path, kind, host=HOSTS[0]):
        return f"http://{host}:{self.brief_ports[kind]}{path}"

    # ---- what it saw ----

    def get(self, path, host=HOSTS[0]):
        conn = http.client.HTTPConnection(host, self.port, timeout=10)
        try:
            conn.request("GET", path)
            return conn.getresponse().read()
        finally:
            conn.close()

    def state(self):
        return json.loads(self.get("/__state"))

    def reset(self):
        """Forgets peaks and hits; nothing may be in flight (waits for that)."""
        end = time.monotonic() + 15
        # nginx does not always notice that a client has left while it sleeps
        while flights := self.flights() & connected():
            assert time.monotonic() < end, f"still in flight, from these ports: {flights}"
            time.sleep(0.02)
        self.generation = self.get("/__reset").decode()
        self.log_offset = (self.dir / "access.log").stat().st_size

    def flights(self):
        """The clients' ports of the connections that have a request in flight."""
        return {int(line.rsplit(b":", 1)[1]) for line in self.get("/__flights").splitlines()}

    def active(self):
        return self.state().get("active:*", 0)

    def arrivals(self):
        return self.state().get("arrivals", 0)

    def first_at(self):
        """Wall time of the first request since reset(), or None."""
        return self.state().get("first_at")

    def peaks(self):
        """The most requests at once since reset(): {host: n}; "*" is all hosts together."""
        most = {}
        for key, n in self.state().items():
            if key.startswith("peak:"):
                host = key.split(":", 2)[2]
                most[host] = max(most.get(host, 0), n)
        return most

    def _lines(self):
        with open(self.dir / "access.log") as f:
            f.seek(self.log_offset)
            return f.read()

    def hits(self, count=None):
        """The requests since reset() that have ended; waits until there are at least `count`, as the
        line is written after the client has its answer."""
        end = time.monotonic() + 15
        while True:
            text = self._lines()
            lines = [line for line in text[:text.rfind("\n") + 1].splitlines()
                     if line.endswith(f" {self.generation}")]
            if count is None or len(lines) >= count or time.monotonic() > end:
                break
            time.sleep(0.02)
        hits = []
        for line in lines:
            at, host, method, uri, status, connection, protocol, _ = line.split(" ")
            hits.append(Hit(float(at), host, method, uri, int(status), int(connection), protocol))
        return hits
