"""What every origin of ours on raw sockets has: a listener, and a thread a connection."""
import socket
import threading


class Listener:
    """A subclass calls listen() when it is ready to serve, and has _serve(what _taken gave)."""

    def listen(self, host):
        self.host = host
        self.stopping = threading.Event()
        self.lock = threading.Lock()
        self.sock = socket.create_server((host, 0), backlog=512)
        self.port = self.sock.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def stop(self):
        self.stopping.set()
        # Wakes the accept() that is waiting.
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.sock.close()

    def _taken(self, sock):
        return sock

    def _accept(self):
        while not self.stopping.is_set():
            try:
                sock, _ = self.sock.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(self._taken(sock),), daemon=True).start()
