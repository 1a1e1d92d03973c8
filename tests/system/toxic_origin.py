"""What serves the table of toxic origins (toxic_table.py): listeners on raw sockets, and TLS of
every broken kind. A behaviour is a function of a Conn; it may send what it likes."""
import os
import re
import socket
import ssl
import struct
import subprocess
import threading

from listener import Listener

BYTES_MAX = 256 << 20  # no flood is longer, whatever the client does
PLAIN = b"the quick brown fox jumps over the lazy dog\n" * 20


def head(status="200 OK", *fields, version="HTTP/1.1"):
    return ("\r\n".join([f"{version} {status}", *fields]) + "\r\n\r\n").encode("latin-1")


def whole(data, *fields, status="200 OK"):
    return head(status, f"Content-Length: {len(data)}", *fields) + data


def chunk(data):
    return b"%x\r\n%b\r\n" % (len(data), data)


class Conn:
    """One connection that came in. `targets`: what was asked on it, in order."""

    def __init__(self, server, sock, number):
        self.server, self.sock, self.number = server, sock, number
        self.targets = []
        self.request = b""

    def send(self, data):
        self.sock.sendall(data)

    def flood(self, piece):
        sent = 0
        while sent < BYTES_MAX and not self.server.stopping.is_set():
            self.sock.sendall(piece)
            sent += len(piece)

    def drip(self, data, seconds=0.03):
        for i in range(len(data)):
            self.sock.sendall(data[i:i + 1])
            if self.server.stopping.wait(seconds):
                return

    def wait_gone(self):
        """Until the client closes."""
        self.sock.settimeout(60)
        while not self.server.stopping.is_set() and self.sock.recv(65536):
            pass

    def reset(self):
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return "close"

    def pause(self, seconds):
        """For what nothing tells: that the client has taken what was sent."""
        self.server.stopping.wait(seconds)


class Server(Listener):
    """`behaviours`: by the first segment of the path, called with a Conn once a request has come;
    unless it returns "keep" the connection is closed. `at_once`: one that is called instead when a
    connection comes in. `tls`: an SSLContext."""

    def __init__(self, behaviours=(), host="127.0.0.1", tls=None, at_once=None):
        self.behaviours, self.tls, self.at_once = dict(behaviours), tls, at_once
        self.conns = []
        self.listen(host)

    def url(self, path, scheme=None):
        return f"{scheme or ('https' if self.tls else 'http')}://{self.host}:{self.port}{path}"

    def asked(self, target):
        """The connections on which it was asked for, with what came after it on each."""
        found = []
        for conn in list(self.conns):
            for i, t in enumerate(conn.targets):
                if t == target:
                    found.append(conn.targets[i + 1:])
        return found

    def stop(self):
        super().stop()
        for conn in list(self.conns):
            try:
                conn.sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def _taken(self, sock):
        with self.lock:
            conn = Conn(self, sock, len(self.conns))
            self.conns.append(conn)
        return conn

    def _serve(self, conn):
        conn.sock.settimeout(30)
        try:
            if self.at_once:
                self.at_once(conn)
                return
            if self.tls:
                conn.sock = self.tls.wrap_socket(conn.sock, server_side=True)
            self._requests(conn)
        except (OSError, ValueError):
            pass  # the client went away, which is often the point
        finally:
            conn.sock.close()  # with TLS: without close_notify

    def _requests(self, conn):
        data = b""
        while not self.stopping.is_set():
            while b"\r\n\r\n" not in data:
                more = conn.sock.recv(65536)
                if not more:
                    return
                data += more
            conn.request, data = data.split(b"\r\n\r\n", 1)
            length = re.search(rb"\r\ncontent-length: *([0-9]+)", conn.request, re.I)
            left = int(length[1]) - len(data) if length else 0
            data = data[int(length[1]):] if length else data
            while left > 0 and (more := conn.sock.recv(min(left, 65536))):
                left -= len(more)
            target = conn.request.split(b" ", 2)[1].decode("latin-1")
            conn.targets.append(target)
            name = target.split("?")[0].lstrip("/").split("/")[0]
            if name == "ok":
                conn.send(whole(PLAIN, "Content-Type: text/plain"))
            elif name not in self.behaviours:
                conn.send(whole(b"no such behaviour", status="404 Not Found"))
            elif self.behaviours[name](conn) != "keep":
                return


# ---- TLS ----

def context(tls_dir, name="good"):
    c = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    c.load_cert_chain(tls_dir / f"{name}.crt", tls_dir / f"{name}.key")
    return c


def old_context(tls_dir, version):
    c = context(tls_dir)
    c.set_ciphers("ALL:@SECLEVEL=0")
    c.minimum_version = c.maximum_version = version
    return c


def asking_context(tls_dir):
    """Wants a certificate of the client's."""
    c = context(tls_dir)
    c.verify_mode = ssl.CERT_REQUIRED
    c.load_verify_locations(tls_dir / "ca.crt")
    return c


def many_names(tls_dir, n=10000):
    """A certificate of half a megabyte, signed by nobody: OpenSSL gives up before it looks."""
    path = tls_dir / "many"
    if not os.path.exists(f"{path}.crt"):
        names = ",".join(f"DNS:host-{i}.a-rather-long-domain-name.test" for i in range(n))
        (tls_dir / "many.cnf").write_text("[req]\ndistinguished_name=d\n[d]\n[e]\n"
                                          f"subjectAltName={names}\n")
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt",
                        "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=many", "-days", "3650",
                        "-config", tls_dir / "many.cnf", "-extensions", "e", "-keyout",
                        f"{path}.key", "-out", f"{path}.crt"], check=True, capture_output=True)
    return context(tls_dir, "many")
