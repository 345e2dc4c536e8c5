"""The tritonserver that the nvidia-pytriton package carries, started for tests; imports nothing but Python's own."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

READY_SECONDS = 120
#: How often other ports are taken when a program takes one of them between their choice and the server's start.
STARTS = 3

FACTS = """
import importlib.util, json, sys, sysconfig
missing = [n for n in ("pytriton", "tritonclient", "onnxruntime", "rewriter") if importlib.util.find_spec(n) is None]
if missing:
    sys.exit(f"{sys.executable} lacks {', '.join(missing)} (this package: pip install --no-deps -e .)")
paths = sysconfig.get_paths()
print(json.dumps([paths["purelib"], sysconfig.get_config_var("LIBDIR"), "%d.%d" % sys.version_info[:2]]))
"""


def free_ports(count):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for opened in sockets:
            opened.bind(("127.0.0.1", 0))
        return [opened.getsockname()[1] for opened in sockets]


class Server:
    """A running tritonserver without models: `load` adds those of its repository, `stop` ends it.

    Attributes:
        repository: the folder of its models.
        http, grpc: addresses without a scheme.

    Args:
        python: the Python of an environment with nvidia-pytriton and tritonclient.
        folder: where the repository, the log and a copy of the backends go.
        models: the Python that runs models; default: the same.
    """

    def __init__(self, python, folder, models=None):
        self.python = python
        self.repository = folder / "repository"
        self.repository.mkdir()
        self._log = folder / "server.log"
        self._folder = folder
        packages, libraries, version = json.loads(self.ask(FACTS))
        self._triton = Path(packages) / "pytriton" / "tritonserver"
        self._backends = folder / "backends"
        shutil.copytree(self._triton / "backends", self._backends)
        # The stub must lie beside the backend; the copy finds its libraries by LD_LIBRARY_PATH only.
        stub = self._triton / "python_backend_stubs" / version / "triton_python_backend_stub"
        shutil.copy(stub, self._backends / "python")
        self._environment = os.environ | {
            "LD_LIBRARY_PATH": f"{packages}/nvidia_pytriton.libs:{libraries}",
            # The first python3 on the path is what the backend runs; it reads no PYTHONPATH.
            "PATH": f"{Path(models or python).parent}:{os.environ['PATH']}",
        }
        for _ in range(STARTS):
            if self._start():
                return
        raise AssertionError(f"the server does not start:\n{self.log()}")

    def log(self, most=8000):
        """The end of what the server told."""
        return self._log.read_text(errors="replace")[-most:] if self._log.exists() else ""

    def get(self, path, data=None, seconds=READY_SECONDS):
        """The body of an answer; an HTTP error becomes an AssertionError with its words."""
        try:
            with urllib.request.urlopen(f"http://{self.http}{path}", data, timeout=seconds) as response:
                return response.read()
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{path}: {error.code} {error.read().decode(errors='replace')}") from error

    def load(self, name):
        """Loads the newest version of a model, and waits until it is ready."""
        self.get(f"/v2/repository/models/{name}/load", b"{}")
        self.get(f"/v2/models/{name}/ready")

    def stats(self, name):
        """The statistics of a model's version that is served."""
        return json.loads(self.get(f"/v2/models/{name}/stats"))["model_stats"][-1]

    def ask(self, code, *arguments, text=None):
        """Runs a program with the server's Python, in this process's folder; returns what it printed."""
        command = [self.python, "-c", code, *map(str, arguments)]
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=READY_SECONDS, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def stop(self):
        """Ends the server; returns its exit status and the names of the shared memory that it left behind."""
        self._process.terminate()
        try:
            status = self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        left = sorted(Path("/dev/shm").glob(f"{self._prefix}*"))  # noqa: S108
        for path in left:
            path.unlink()
        return status, [path.name for path in left]

    def _start(self):
        """Starts the process; False when it ended for a port was taken."""
        ports = free_ports(3)
        self.http, self.grpc, _ = (f"127.0.0.1:{port}" for port in ports)
        self._prefix = f"trt_rewriter_test_{os.getpid()}_{ports[0]}"
        flags = [f"--{kind}-port={port}" for kind, port in zip(("http", "grpc", "metrics"), ports, strict=True)]
        flags += [f"--{kind}-address=127.0.0.1" for kind in ("http", "grpc", "metrics")]
        flags += ["--model-control-mode=explicit", "--exit-timeout-secs=10", f"--model-repository={self.repository}"]
        flags += [
            f"--backend-directory={self._backends}",
            f"--backend-config=python,shm-region-prefix-name={self._prefix}",
        ]
        command = [self._triton / "bin" / "tritonserver", *flags]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env=self._environment, cwd=self._folder
            )
        end = time.monotonic() + READY_SECONDS
        while time.monotonic() < end:
            if self._process.poll() is not None:
                return False
            try:
                self.get("/v2/health/ready", seconds=5)
            except (AssertionError, OSError):
                time.sleep(0.1)  # the server has no other sign of being ready
            else:
                return True
        self.stop()
        raise AssertionError(f"the server is not ready after {READY_SECONDS} s:\n{self.log()}")
