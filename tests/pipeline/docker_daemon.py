"""A Docker engine for the tests: the one that runs here, or one stood up for them and taken down again.

    with docker_engine() as docker:
        docker.build("app:test", "--build-arg", "VARIANT=cpu")
        docker.run("app:test", "dvc", "--version").stdout

Where no engine answers and no image registry can be reached, a root user with the docker client and
mmdebstrap still builds and runs the real Dockerfile: dockerd is unpacked from Debian's packages into a folder
of its own, and a plain Debian stands in for the base image. Needs about a minute and 1 GB under $TMPDIR, and
10 GB more for each variant that is built.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BASE_OF_REAL_ENGINE = os.environ.get("TEST_BASE_IMAGE", "ubuntu:24.04")
ENGINE_PACKAGES = "ca-certificates,mount,docker.io,docker-cli,docker-buildx,iptables"
BASE_PACKAGES = "ca-certificates,python3"
CERTIFICATES = Path("/usr/local/share/ca-certificates")
NETWORK = ("--network", "host")

# In a mount namespace of its own: the unpacked root becomes /, with this machine's devices and network.
START_DAEMON = """
mount --bind $0 $0
for d in proc sys dev tmp; do mount --rbind /$d $0/$d; done
cp -L /etc/resolv.conf /etc/hosts $0/etc/
cd $0 && mkdir -p old && pivot_root . old && cd / && umount -l /old
exec dockerd -H unix://$1/sock --data-root $1/data --exec-root $1/run --pidfile $1/pid \
  --storage-driver overlay2 --iptables=false --ip6tables=false --bridge=none
"""

STAND_IN_BASE = """
FROM stand-in:raw
COPY . /usr/local/share/ca-certificates/
RUN update-ca-certificates
ENV SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt PIP_CERT=/etc/ssl/certs/ca-certificates.crt
"""


class NoEngine(Exception):
    """Why no Docker engine can be had here."""


@dataclass(frozen=True)
class Docker:
    """The docker client and its engine. The stand-in has no bridge: everything is on the host's network."""

    environment: dict[str, str]
    base_image: str

    def __call__(
        self, *arguments: str, check: bool = True, timeout: float = 1800
    ) -> subprocess.CompletedProcess:
        command = ["docker", *arguments]
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=timeout, check=False
        )
        if check and done.returncode:
            tail = "\n".join((done.stdout + done.stderr).splitlines()[-40:])
            raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{tail}")
        return done

    def build(self, tag: str, *arguments: str) -> None:
        """Build the project's Dockerfile as users do, on this engine's base image."""
        base = ("--build-arg", f"BASE_IMAGE={self.base_image}")
        file = ("-f", str(ROOT / "docker/Dockerfile"))
        self("build", *NETWORK, *base, *arguments, "-t", tag, *file, str(ROOT))

    def run(self, image: str, *command: str, options: tuple[str, ...] = (), check: bool = True):
        return self("run", "--rm", *NETWORK, *options, image, *command, check=check)


@contextmanager
def docker_engine() -> Iterator[Docker]:
    """Yield a working engine. Raises NoEngine with the reason where there is none and none can be made."""
    if not shutil.which("docker"):
        raise NoEngine("no docker client")
    environment = dict(os.environ)
    if subprocess.run(["docker", "info"], env=environment, capture_output=True, check=False).returncode == 0:
        yield Docker(environment, BASE_OF_REAL_ENGINE)
        return
    if os.geteuid() or not shutil.which("mmdebstrap"):
        raise NoEngine("no Docker engine answers; standing one up needs root and mmdebstrap")
    with ExitStack() as cleanup:
        work = Path(tempfile.mkdtemp(prefix="docker-engine-"))
        cleanup.callback(shutil.rmtree, work, ignore_errors=True)
        _unpack(work)
        docker = _client(work)
        cleanup.enter_context(_daemon(work, docker))
        _import_base(work, docker)
        yield docker


def _unpack(work: Path) -> None:
    """The engine's root and the base image, side by side."""
    engine = ["trixie", str(work / "engine")]
    base = ["bookworm", str(work / "base.tar")]
    jobs = [
        subprocess.Popen(["mmdebstrap", "--quiet", "--variant=apt", f"--include={packages}", *target])
        for packages, target in ((ENGINE_PACKAGES, engine), (BASE_PACKAGES, base))
    ]
    statuses = [job.wait() for job in jobs]
    if any(statuses):
        raise NoEngine("mmdebstrap failed: can this machine reach its Debian mirror?")


def _client(work: Path) -> Docker:
    plugins = work / "config/cli-plugins"
    plugins.mkdir(parents=True)
    shutil.copy(work / "engine/usr/libexec/docker/cli-plugins/docker-buildx", plugins)
    environment = dict(os.environ, DOCKER_HOST=f"unix://{work}/sock", DOCKER_CONFIG=str(work / "config"))
    return Docker(environment, "stand-in:base")


@contextmanager
def _daemon(work: Path, docker: Docker) -> Iterator[None]:
    with open(work / "log", "w") as log:
        command = ["unshare", "-m", "bash", "-ec", START_DAEMON, str(work / "engine"), str(work)]
        daemon = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        until = time.monotonic() + 60
        while docker("info", check=False).returncode:
            if daemon.poll() is not None or time.monotonic() > until:
                raise NoEngine(f"dockerd did not start: {(work / 'log').read_text()[-500:]}")
            time.sleep(0.5)
        yield
    finally:
        # Containers live in control groups of their own and would outlive the daemon.
        if containers := docker("ps", "-aq", check=False).stdout.split():
            docker("rm", "-f", *containers, check=False)
        daemon.terminate()
        daemon.wait(timeout=60)


def _import_base(work: Path, docker: Docker) -> None:
    """A stand-in for the base image that trusts the authorities which this machine trusts."""
    docker("import", str(work / "base.tar"), "stand-in:raw")
    context = work / "context"
    context.mkdir()
    for certificate in CERTIFICATES.glob("*.crt"):
        shutil.copy(certificate, context)
    (context / "Dockerfile").write_text(STAND_IN_BASE)
    docker("build", *NETWORK, "-t", docker.base_image, str(context))
