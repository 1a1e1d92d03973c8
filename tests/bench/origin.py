"""The origin: a real nginx on loopback, dnsmasq for names, certificates of a CA of our own."""
import http.client
import os
import pathlib
import random
import re
import socket
import subprocess
import time

ADDRESSES = [f"127.0.0.{n}" for n in range(2, 22)]  # 20 hosts
BODY = (b"The quick brown fox jumps over the lazy dog. " * 23)[:1023] + b"\n"
MODULES = "/usr/lib/nginx/modules"
BUNDLE = pathlib.Path("/etc/ssl/certs/ca-certificates.crt")

CONFIG = """
{user}
load_module {modules}/ngx_http_echo_module.so;
daemon off;
worker_processes 2;
worker_rlimit_nofile {nofile};
pid {dir}/nginx.pid;
error_log {dir}/error.log warn;
events {{
    worker_connections {connections};
    multi_accept on;
}}
http {{
    access_log off;
    client_body_temp_path {dir}/temp;
    proxy_temp_path {dir}/temp;
    fastcgi_temp_path {dir}/temp;
    uwsgi_temp_path {dir}/temp;
    scgi_temp_path {dir}/temp;
    keepalive_timeout 120s;
    keepalive_requests 100000000;
    tcp_nodelay on;
    server_tokens off;
    default_type text/plain;
    ssl_certificate {dir}/leaf.pem;
    ssl_certificate_key {dir}/leaf.key;
    ssl_session_cache shared:tls:20m;
    ssl_protocols TLSv1.2 TLSv1.3;
    log_format tls '$ssl_session_reused $ssl_protocol';

    server {{
        {keep}
        location = /1k {{ return 200 "{body}"; }}
        location = /2s {{ echo_sleep 2; echo_exec /done; }}
        location = /5s {{ echo_sleep 5; echo_exec /done; }}
        location = /100s {{ echo_sleep 100; echo_exec /done; }}
        location = /done {{ internal; return 200 "done\\n"; }}
        location = /status {{ stub_status; }}
    }}
    server {{
        {close}
        keepalive_timeout 0;
        location = /1k {{ return 200 "{body}"; }}
    }}
    server {{
        {tls}
        location = /1k {{ return 200 "{body}"; }}
    }}
    server {{
        {tls_close}
        keepalive_timeout 0;
        access_log {dir}/tls.log tls;
        location = /1k {{ return 200 "{body}"; }}
    }}
}}
"""


def free_ports(n):
    """Ports below the ephemeral range, which a client's connection could take meanwhile."""
    found = []
    while len(found) < n:
        port = random.randrange(12000, 30000)
        with socket.socket() as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                s.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in found:
            found.append(port)
    return found


def make_certificates(directory):
    """leaf.pem with its chain, for ADDRESSES and localhost; ca.pem: our root among those of the
    system, as a client has it that trusts the web and one CA more."""
    def openssl(*args):
        done = subprocess.run(["openssl", *args], cwd=directory, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(done.stderr)

    for name, key, issuer, extensions in (
            ("root", "rsa:2048", None, "basicConstraints=critical,CA:TRUE"),
            ("middle", "rsa:2048", "root", "basicConstraints=critical,CA:TRUE,pathlen:0"),
            ("leaf", "ec", "middle", "subjectAltName=DNS:localhost," +
             ",".join("IP:" + a for a in ADDRESSES))):
        new = ["-newkey", key, "-nodes", "-keyout", f"{name}.key"]
        if key == "ec":
            new[1:2] = ["ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
        if issuer is None:
            openssl("req", "-x509", "-days", "30", "-subj", f"/CN=bench {name}", *new,
                    "-addext", "keyUsage=critical,keyCertSign", "-out", f"{name}.crt")
            continue
        openssl("req", "-subj", f"/CN=bench {name}", *new, "-out", f"{name}.csr")
        (directory / f"{name}.ext").write_text(extensions + "\n")
        openssl("x509", "-req", "-days", "30", "-in", f"{name}.csr", "-CA", f"{issuer}.crt",
                "-CAkey", f"{issuer}.key", "-CAcreateserial", "-extfile", f"{name}.ext",
                "-out", f"{name}.crt")
    text = {n: (directory / f"{n}.crt").read_text() for n in ("root", "middle", "leaf")}
    (directory / "leaf.pem").write_text(text["leaf"] + text["middle"])
    bundle = BUNDLE.read_text() if BUNDLE.exists() else ""
    (directory / "ca.pem").write_text(bundle + text["root"])


class Origin:
    def __init__(self, directory, nofile):
        self.dir = directory
        (directory / "temp").mkdir(parents=True)
        (directory / "temp").chmod(0o777)
        make_certificates(directory)
        self.port, self.port_close, self.port_tls, self.port_tls_close, self.dns_port = \
            free_ports(5)
        self.names = [f"h{n}.bench.test" for n in range(10000)]
        self.ca = directory / "ca.pem"
        self.processes = []

        def listen(port, more=""):
            return "\n".join(f"listen {a}:{port}{more} backlog=4096 reuseport;"
                             for a in ADDRESSES)
        (directory / "nginx.conf").write_text(CONFIG.format(
            dir=directory, modules=MODULES, nofile=nofile, connections=nofile - 100,
            user="user root;" if os.getuid() == 0 else "", body=BODY.decode().replace("\n", "\\n"),
            keep=listen(self.port), close=listen(self.port_close),
            tls=listen(self.port_tls, " ssl"), tls_close=listen(self.port_tls_close, " ssl")))
        (directory / "hosts").write_text("".join(
            f"{ADDRESSES[n % len(ADDRESSES)]} {name}\n" for n, name in enumerate(self.names)))

    def __enter__(self):
        try:
            self._start(["nginx", "-p", self.dir, "-c", self.dir / "nginx.conf"], self.port,
                        ADDRESSES[0])
            self._start(["dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null",
                         "--no-resolv", "--no-hosts", f"--addn-hosts={self.dir}/hosts",
                         f"--port={self.dns_port}", "--listen-address=127.0.0.1",
                         "--bind-interfaces", "--pid-file", "--local-ttl=600",
                         *(["--user=root", "--group=root"] if os.getuid() == 0 else [])],
                        self.dns_port, "127.0.0.1")
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self, command, port, address):
        log = open(self.dir / f"{command[0]}.log", "wb")
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        log.close()
        self.processes.append(process)
        end = time.monotonic() + 10
        while True:
            try:
                socket.create_connection((address, port), 1).close()
                return
            except OSError:
                if process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(f"{command[0]} did not start: " + (
                        self.dir / f"{command[0]}.log").read_text()[-2000:]) from None
                time.sleep(0.02)

    def __exit__(self, *_):
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def pids(self):
        """nginx, its workers and dnsmasq."""
        pids = [p.pid for p in self.processes]
        for pid in list(pids):
            children = pathlib.Path(f"/proc/{pid}/task/{pid}/children")
            if children.exists():
                pids += map(int, children.read_text().split())
        return pids

    def status(self):
        """-> connections that are open, and that were accepted since the start; this question's
        own is in both."""
        conn = http.client.HTTPConnection(ADDRESSES[0], self.port, timeout=30)
        conn.request("GET", "/status", headers={"Connection": "close"})
        text = conn.getresponse().read().decode()
        conn.close()
        return (int(re.search(r"Active connections: (\d+)", text)[1]),
                int(re.search(r"\n (\d+) \d+ \d+", text)[1]))

    def settle(self):
        """Until the last client's connections are gone; -> connections accepted so far."""
        end = time.monotonic() + 10
        while True:
            active, accepted = self.status()
            if active <= 1 or time.monotonic() > end:
                return accepted
            time.sleep(0.05)

    def resumed(self, since=0):
        """Lines of the TLS log from byte `since`: -> (connections, resumed ones, new position)"""
        path = self.dir / "tls.log"
        with open(path, "rb") as file:
            file.seek(since)
            lines = file.read().split(b"\n")[:-1]
            return len(lines), sum(line.startswith(b"r ") for line in lines), file.tell()

    # ---- lists of URLs ----

    def slow(self, n, path="/2s"):
        return [f"http://{ADDRESSES[i % len(ADDRESSES)]}:{self.port}{path}?{i}" for i in range(n)]

    def one_host(self, n, port=None, scheme="http"):
        return [f"{scheme}://{ADDRESSES[0]}:{port or self.port}/1k?{i}" for i in range(n)]

    def many(self, n, hosts, port=None):
        """Round robin over names."""
        return [f"http://{self.names[i % hosts]}:{port or self.port}/1k?{i}" for i in range(n)]
