"""The origin of the benches: one nginx on loopback, with names by dnsmasq and certificates of a CA
of its own. Everything in one temporary directory; ended by pid."""
import os
import pathlib
import signal
import socket
import subprocess
import time

MODULES = pathlib.Path("/usr/lib/nginx/modules")
HOSTS = 20         # 127.0.0.1 … 127.0.0.20, each with its own queue of connections to accept
BODY = 1024
DOMAIN = "bench.test"

CONF = """
load_module {modules}/ndk_http_module.so;
load_module {modules}/ngx_http_echo_module.so;
worker_processes 2;
worker_rlimit_nofile {files};
daemon off;
pid {dir}/nginx.pid;
error_log {dir}/error.log;
events {{ worker_connections {files}; }}
http {{
    access_log off;
    log_format tls $ssl_session_reused;
    keepalive_requests 10000000;
    keepalive_timeout 600s;
    client_body_temp_path {dir}/tmp; proxy_temp_path {dir}/tmp; fastcgi_temp_path {dir}/tmp;
    uwsgi_temp_path {dir}/tmp; scgi_temp_path {dir}/tmp;
    ssl_certificate {dir}/chain.pem;
    ssl_certificate_key {dir}/leaf.key;
    ssl_session_cache shared:tls:10m;
    server {{
        {listen}
        listen 127.0.0.1:{tls_port} ssl backlog=4096;
        location /fast {{ return 200 "{body}"; }}
        location /close {{ keepalive_timeout 0; return 200 "{body}"; }}
        location /wait {{ echo_sleep 2; echo_exec /fast; }}
        location /hang {{ echo_sleep 3600; echo_exec /fast; }}
    }}
}}
"""


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def certificates(folder):
    """root → intermediate → leaf, P-256. chain.pem is what the server sends."""
    def run(*args):
        subprocess.run(["openssl", *args], cwd=folder, check=True, capture_output=True)

    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    run("req", "-x509", *key, "-keyout", "root.key", "-out", "root.pem", "-subj", "/CN=Bench root",
        "-days", "30")
    for name, issuer, text in (
            ("middle", "root", "basicConstraints=critical,CA:TRUE\n"),
            ("leaf", "middle", f"subjectAltName=IP:127.0.0.1,DNS:localhost,DNS:*.{DOMAIN}\n")):
        (folder / f"{name}.ext").write_text(text)
        run("req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj",
            f"/CN=Bench {name}")
        run("x509", "-req", "-in", f"{name}.csr", "-CA", f"{issuer}.pem", "-CAkey",
            f"{issuer}.key", "-CAcreateserial", "-days", "30", "-extfile", f"{name}.ext", "-out",
            f"{name}.pem")
    (folder / "chain.pem").write_text((folder / "leaf.pem").read_text() +
                                      (folder / "middle.pem").read_text())


class Origin:
    def __init__(self, folder, files):
        self.dir = folder
        self.port, self.tls_port, self.dns_port = free_port(), free_port(), free_port()
        (folder / "tmp").mkdir()
        certificates(folder)
        listen = "\n        ".join(f"listen 127.0.0.{k}:{self.port} backlog=4096;"
                                   for k in range(1, HOSTS + 1))
        (folder / "nginx.conf").write_text(CONF.format(
            modules=MODULES, files=files, dir=folder, listen=listen, tls_port=self.tls_port,
            body="x" * BODY))
        self.nginx = subprocess.Popen(["nginx", "-c", str(folder / "nginx.conf"), "-e",
                                       str(folder / "error.log")])
        self.dnsmasq = subprocess.Popen(
            ["dnsmasq", "--keep-in-foreground", "--no-resolv", "--no-hosts", "--conf-file=/dev/null",
             "--bind-interfaces", "--listen-address=127.0.0.1", f"--port={self.dns_port}",
             f"--address=/{DOMAIN}/127.0.0.1", "--local-ttl=300", f"--pid-file={folder}/dns.pid",
             "--user=root", "--dns-forward-max=10000"], stderr=subprocess.DEVNULL)
        for _ in range(200):
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                time.sleep(0.05)
        self.stop()
        raise RuntimeError("nginx did not start: " + (folder / "error.log").read_text())

    def stop(self):
        for process in (self.nginx, self.dnsmasq):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()

    # ---- lists of URLs, as files ----

    def write(self, name, urls):
        path = self.dir / name
        if not path.exists():
            with open(path, "w", encoding="ascii") as file:
                file.writelines(url + "\n" for url in urls)
        return path

    def over_hosts(self, n, what):
        return self.write(f"{what}-{n}", (f"http://127.0.0.{1 + i % HOSTS}:{self.port}/{what}?{i}"
                                          for i in range(n)))

    def one_host(self, n, what):
        return self.write(f"one-{what}-{n}", (f"http://127.0.0.1:{self.port}/{what}?{i}"
                                              for i in range(n)))

    def names(self, n, names, what):
        return self.write(f"names-{what}-{n}-{names}", (
            f"http://h{i % names}.{DOMAIN}:{self.port}/{what}?{i}" for i in range(n)))

    def tls(self, n, what):
        return self.write(f"tls-{what}-{n}", (f"https://127.0.0.1:{self.tls_port}/{what}?{i}"
                                              for i in range(n)))


def hard_limit():
    """Raises the descriptor limit as far as it goes; what it is then."""
    import resource
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard == resource.RLIM_INFINITY:
        hard = 1 << 20
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    return hard


def memory_kib(pid, what="VmRSS"):
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        for line in file:
            if line.startswith(what + ":"):
                return int(line.split()[1])
    return 0


def cpu_seconds(pid):
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
