"""A toxic origin that speaks HTTP/2 over TLS, frame by frame: nginx keeps the rules.

One behaviour a server: a function that is told each request as it comes, and may answer it at
once, later, or not at all. Requests' headers are not decoded: who asks is known by order.
"""
import socket
import ssl
import struct
import threading

from listener import Listener

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, CONTINUATION = 0, 1, 3, 4, 6, 7, 9
NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, REFUSED_STREAM, HTTP_1_1_REQUIRED = 0, 1, 2, 7, 13
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


class Tls:
    """A connection that one thread reads while others write. An ssl.SSLSocket is not for that: its
    threads mistake each other's errors for their own, and once it is closed a writer goes on writing
    to the number of its descriptor, which is another's by then."""

    def __init__(self, sock, context):
        self.sock = sock
        self.coming, self.going = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.coming, self.going, server_side=True)
        self.state = threading.Lock()  # of OpenSSL's
        self.writing = threading.Lock()  # taken first
        while not self._shakes_hands():
            self._take()

    def _shakes_hands(self):
        try:
            self.tls.do_handshake()
            return True
        except ssl.SSLWantReadError:
            return False
        finally:
            self.sock.sendall(self.going.read())

    def _take(self):
        data = self.sock.recv(65536)
        if not data:
            raise ConnectionError
        with self.state:
            self.coming.write(data)

    def recv(self, n):
        while True:
            try:
                with self.state:
                    data = self.tls.read(n)
                if not data:
                    raise ConnectionError
                return data
            except ssl.SSLWantReadError:
                self._take()

    def sendall(self, data):
        with self.writing:
            with self.state:
                self.tls.write(data)
                data = self.going.read()
            self.sock.sendall(data)

    def shutdown(self):
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.shutdown()
        with self.writing:
            self.sock.close()


class Conn:
    """One connection. `requests` lists its streams in order of arrival."""

    def __init__(self, server, sock, number):
        self.server, self.sock, self.number = server, sock, number
        self.requests = []
        self.open = True

    def frame(self, kind, flags, stream, payload=b""):
        self.sock.sendall(struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) +
                          struct.pack(">I", stream) + payload)

    def head(self, stream, length=None, end=False):
        block = b"\x88"  # :status 200, by the static table
        if length is not None:
            text = str(length).encode()
            block += b"\x0f\x0d" + bytes([len(text)]) + text
        self.frame(HEADERS, 4 | end, stream, block)

    def data(self, stream, data, end=True):
        self.frame(DATA, int(end), stream, data)

    def answer(self, stream, body=b"h2"):
        self.head(stream, len(body))
        self.data(stream, body)

    def reset(self, stream, code):
        self.frame(RST_STREAM, 0, stream, struct.pack(">I", code))

    def goaway(self, last, code=NO_ERROR):
        self.frame(GOAWAY, 0, 0, struct.pack(">II", last, code))

    def close(self):
        """At once, whatever is on its way."""
        self.open = False
        self.sock.shutdown()

    def _exactly(self, n):
        data = b""
        while len(data) < n:
            data += self.sock.recv(n - len(data))
        return data

    def serve(self):
        assert self._exactly(len(PREFACE)) == PREFACE
        self.frame(SETTINGS, 0, 0, struct.pack(">HI", 3, self.server.max_streams))
        while self.open:
            size, kind, flags, stream = struct.unpack(">IBBI", b"\0" + self._exactly(9))
            payload = self._exactly(size)
            if kind == SETTINGS and not flags & 1:
                self.frame(SETTINGS, 1, 0)
            elif kind == PING and not flags & 1:
                self.frame(PING, 1, 0, payload)
            elif kind == HEADERS:
                self.requests.append(stream)
                self.server.behaviour(self, stream, len(self.requests))
            elif kind == GOAWAY:
                self.close()
            elif kind == RST_STREAM:
                self.server.resets.append((self.number, stream))


class ToxicH2(Listener):
    """behaviour(conn, stream, nth of this connection), called on the connection's thread."""

    def __init__(self, behaviour, tls_dir, max_streams=100, h1=b"h1", host="127.0.0.1"):
        self.behaviour, self.max_streams, self.h1 = behaviour, max_streams, h1
        self.conns, self.resets = [], []
        self.h1_requests = 0
        self.silent = None  # an event: no TLS before it
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(tls_dir / "good.crt", tls_dir / "good.key")
        self.context.set_alpn_protocols(["h2", "http/1.1"])
        self.listen(host)

    def url(self, path="/"):
        return f"https://{self.host}:{self.port}{path}"

    def requests(self):
        return sum(len(c.requests) for c in self.conns)

    def stop(self):
        super().stop()
        for conn in self.conns:
            conn.close()

    def _serve(self, sock):
        try:
            sock.settimeout(60)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self.silent:
                self.silent.wait(60)
            with sock, Tls(sock, self.context) as tls:
                if tls.tls.selected_alpn_protocol() == "h2":
                    conn = Conn(self, tls, len(self.conns))
                    self.conns.append(conn)
                    conn.serve()
                else:
                    self._serve_h1(tls)
        except (OSError, ssl.SSLError):
            pass  # the client went away, or we closed

    def _serve_h1(self, tls):
        data = b""
        while True:
            data += tls.recv(65536)
            while b"\r\n\r\n" in data:
                data = data.split(b"\r\n\r\n", 1)[1]
                self.h1_requests += 1
                tls.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" %
                            (len(self.h1), self.h1))
