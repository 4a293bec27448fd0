"""The real nginx with the configuration of deploy/nginx, on ports and in a folder of its own.

    with Nginx(tmp_path, replicas=[server_a, server_b]) as nginx:
        requests.get(nginx.url + "/readyz", verify=nginx.certificate)
"""
import shutil
import signal
import socket
import subprocess
import time

from .server import ROOT, free_port

START_SECONDS = 20


def make_certificate(folder):
    """A self-signed one for localhost: (certificate, key)."""
    certificate, key = folder / "tls.crt", folder / "tls.key"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
                    "-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost",
                    "-keyout", key, "-out", certificate], check=True, capture_output=True)
    return certificate, key


def change(path, *pairs):
    """Replace texts of a file, each of which must be there."""
    text = path.read_text()
    for old, new in pairs:
        assert old in text, f"{path}: {old!r} is not there"
        text = text.replace(old, new)
    path.write_text(text)


class Nginx:
    """A context manager. The files that differ from site to site are the test's, the others are those
    of deploy/nginx. trusted: this machine is not limited."""

    def __init__(self, folder, replicas, trusted=True):
        self.folder = folder / "nginx"
        self.port, self.plain_port = free_port(), free_port()
        self.url = f"https://localhost:{self.port}"
        shutil.copytree(ROOT / "deploy/nginx", self.folder)
        spools = "".join(f"{kind}_temp_path {self.folder}/{kind};"
                         for kind in ("client_body", "proxy", "fastcgi", "scgi", "uwsgi"))
        change(self.folder / "nginx.conf", ("/var/log/nginx/", f"{self.folder}/"),
               (" buffer=32k flush=1s", ""),  # tests read the log at once
               ("http {", f"http {{ {spools}"))
        self.certificate, key = make_certificate(self.folder)
        self._write("listen.conf", f"listen 127.0.0.1:{self.port} ssl http2; server_name localhost;"
                    f"ssl_certificate {self.certificate}; ssl_certificate_key {key};")
        self._write("listen-plain.conf", f"listen 127.0.0.1:{self.plain_port}; server_name localhost;")
        servers = [f"127.0.0.1:{r.port}" for r in replicas]
        change(self.folder / "replicas.conf",
               *((f"127.0.0.1:{8080 + i}", server) for i, server in enumerate(servers)))
        self._write("trusted.conf", "127.0.0.0/8 1;" if trusted else "")
        self.process = None

    def _write(self, name, text):
        (self.folder / name).write_text(text + "\n")

    def _command(self, *arguments):
        return ["nginx", "-p", str(self.folder), "-c", str(self.folder / "nginx.conf"),
                "-g", f"pid {self.folder}/pid; daemon off;", *arguments]

    def check(self):
        """What nginx -t has to say about the configuration."""
        return subprocess.run(self._command("-t"), capture_output=True, text=True)

    def __enter__(self):
        self.process = subprocess.Popen(self._command(), stdin=subprocess.DEVNULL)
        end = time.monotonic() + START_SECONDS
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
                return self
            except OSError:
                assert self.process.poll() is None and time.monotonic() < end, self.errors()
                time.sleep(0.02)

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(START_SECONDS)

    def errors(self):
        path = self.folder / "error.log"
        return path.read_text() if path.exists() else ""

    def log(self):
        """The lines of its log of requests."""
        return (self.folder / "clotho.log").read_text().splitlines()
