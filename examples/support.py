"""What the examples share: a server of their own on a free port, its streams, and a table. Standard library only."""
import atexit
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = os.environ.get("CLOTHO_BIN") or str(ROOT / "build/release/clotho")
MODEL = os.environ.get("CLOTHO_EXAMPLE_MODEL") or subprocess.run(
    [ROOT / "deploy/fetch-model.sh"], check=True, text=True, stdout=subprocess.PIPE).stdout.strip()


class Clotho:
    """`clotho serve` with SmolLM2-135M-Instruct (or $CLOTHO_EXAMPLE_MODEL) and a folder for twists, until the
    example ends."""

    def __init__(self):
        self.folder = tempfile.TemporaryDirectory(prefix="clotho-example-")
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.log = Path(self.folder.name, "log")
        self.process = subprocess.Popen(
            [PROGRAM, "serve", "--model", MODEL, "--port", str(port), "--twist-dir", self.folder.name],
            stderr=self.log.open("w"))
        atexit.register(self.close)
        while not self.is_ready():
            if self.process.poll() is not None:
                sys.exit(self.log.read_text())
            time.sleep(0.1)

    def is_ready(self):
        try:
            return urllib.request.urlopen(self.url + "/readyz").status == 200
        except OSError:
            return False

    def close(self):
        self.process.terminate()
        self.process.wait()
        self.folder.cleanup()

    def events(self, path, body):
        """The events of a streamed answer as they come."""
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(),
                                         {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request) as answer:
                for line in answer:
                    event = json.loads(line)
                    if event["event"] == "error":
                        sys.exit(event["error"]["message"])
                    yield event
        except urllib.error.HTTPError as e:
            sys.exit(json.load(e)["error"]["message"])

    def sample(self, body):
        """(samples, the last event) of a request."""
        samples = []
        for event in self.events("/v1/sample", body | {"events": ["sample"]}):
            if event["event"] == "sample":
                samples.append(event)
        return samples, event

    def learn(self, body):
        """Learn a twist, with a line now and then."""
        shown = max(1, body["updates"] // 8)
        for event in self.events("/v1/twists", body):
            if event["event"] == "update" and event["update"] % shown == 0:
                log_z = "  none" if event["log_z"] is None else f"{event['log_z']:6.2f}"
                print(f"  update {event['update']:4d}   loss {event['loss']:8.4f}   log Z {log_z}   "
                      f"ESS {event['ess']:5.1f} of {body['particles']}", flush=True)

    def compare(self, body, ways, runs=8):
        """log Ẑ of several ways to draw from the same posterior: {name: further fields}."""
        print(f"\n{'':24}{'log Z, mean':>14}{'spread':>9}{'ESS':>8}   of {body['particles']}, {runs} seeds each")
        for name, fields in ways.items():
            ends = [self.sample(body | fields | {"seed": seed})[1] for seed in range(1, runs + 1)]
            alive = [e["log_z"] for e in ends if e["log_z"] is not None]
            mean = f"{statistics.mean(alive):.3f}" if alive else "-inf"
            spread = f"{statistics.pstdev(alive):.3f}" if alive else ""
            died = f"   {runs - len(alive)} of {runs} died out" if len(alive) < runs else ""
            print(f"{name:24}{mean:>14}{spread:>9}{statistics.mean(e['ess'] for e in ends):8.1f}{died}", flush=True)

    def show(self, title, body, n=5):
        """The heaviest samples of a request."""
        samples, _ = self.sample(body)
        print(f"\n{title}")
        texts = {}
        for s in samples:
            texts[s["text"]] = texts.get(s["text"], 0) + s["weight"]
        for text, weight in sorted(texts.items(), key=lambda t: -t[1])[:n]:
            print(f"  {weight:6.3f}  {text!r}")


def learned(name):
    return {"twist": {"type": "learned", "name": name}}
