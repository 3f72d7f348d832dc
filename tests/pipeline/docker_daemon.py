"""A Docker engine for the tests: the one that runs here, or one stood up for them and taken down again.

    with docker_engine() as docker:
        docker.build("app:test", "--build-arg", "VARIANT=cpu")
        docker.run("app:test", "dvc", "--version").stdout

Where no engine answers and no image registry can be reached, root on Debian with the docker client still
builds and runs the real Dockerfile: dockerd is unpacked from Debian's packages into a folder of its own, and
the release that the default base builds on stands in for it (Debian's own, where Ubuntu's mirror is out of
reach). Nothing is installed. That takes a minute or two and, with the image, up to 20 GB under $TMPDIR. The
daemon and its containers end with the process that asked for them, however that one ends, and their files too
unless it is killed. Whatever a machine lacks for all this is NoEngine, in one line; that the image cannot be
built is not.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
BASE_OF_REAL_ENGINE = os.environ.get("TEST_BASE_IMAGE", "ubuntu:24.04")
ENGINE_PACKAGES = "ca-certificates,mount,docker.io,docker-cli,docker-buildx,iptables,ubuntu-keyring"
BASE_PACKAGES = "ca-certificates,python3"
UBUNTU = "http://archive.ubuntu.com/ubuntu"
UBUNTU_KEYS = "usr/share/keyrings/ubuntu-archive-keyring.gpg"  # of ubuntu-keyring, which Debian signs
CERTIFICATES = Path("/usr/local/share/ca-certificates")
NETWORK = ("--network", "host")
LABEL = "org.treespec.test"
GIB = 1 << 30
DISK, MEMORY = 28 * GIB, 6 * GIB  # free, before an engine is stood up
MINUTES_TO_UNPACK = 5

# What dockerd will do: an overlay in a mount namespace of its own.
TRIAL = "mkdir low up work all && mount -t overlay -o lowerdir=low,upperdir=up,workdir=work none all"

# In namespaces of its own for mounts and processes: the unpacked root becomes /, with this machine's devices
# and network.
START_DAEMON = """
mount --bind $0 $0
mkdir -p $0/$2
mount -t proc proc $0/proc
for d in sys dev $2; do mount --rbind /$d $0/$d; done
cp -L /etc/resolv.conf /etc/hosts $0/etc/
cd $0 && mkdir -p old && pivot_root . old && cd / && umount -l /old
exec dockerd -H unix://$1/sock --data-root $1/data --exec-root $1/run --pidfile $1/pid \
  --storage-driver overlay2 --iptables=false --ip6tables=false --bridge=none
"""

IN_NAMESPACES = ("setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--kill-child=KILL")

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

    def build(self, tag: str, context: Path, *arguments: str) -> None:
        """Build the project in `context` as users do, on this engine's base image."""
        base = ("--build-arg", f"BASE_IMAGE={self.base_image}")
        file = ("-f", str(context / "docker/Dockerfile"))
        self("build", *NETWORK, *base, *arguments, "-t", tag, *file, str(context))

    def run(self, image: str, *command: str, options: tuple[str, ...] = (), check: bool = True):
        network = () if "--network" in options else NETWORK
        return self("run", "--rm", "--label", LABEL, *network, *options, image, *command, check=check)

    def remove_containers(self) -> None:
        """All that `run` has left, as an interrupted test does."""
        if containers := self("ps", "-aq", "--filter", f"label={LABEL}", check=False).stdout.split():
            self("rm", "-fv", *containers, check=False)


@contextmanager
def docker_engine() -> Iterator[Docker]:
    """Yield a working engine. Raises NoEngine with the reason where there is none and none can be made."""
    if not shutil.which("docker"):
        raise NoEngine("no docker client")
    docker = Docker(dict(os.environ), BASE_OF_REAL_ENGINE)
    with ExitStack() as cleanup:
        # A job that is told to end, as by a time limit, ends as if interrupted: in order.
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        cleanup.callback(signal.signal, signal.SIGTERM, before)
        if docker("info", check=False).returncode == 0:
            has_base = docker("image", "inspect", docker.base_image, check=False).returncode == 0
            if not has_base and docker("pull", docker.base_image, check=False).returncode:
                raise NoEngine(f"the Docker engine has no {docker.base_image} and cannot pull it")
            cleanup.callback(docker.remove_containers)
            yield docker
            return
        work = Path(tempfile.mkdtemp(prefix="docker-engine-"))
        work.chmod(0o711)  # apt reads keys as a user of its own
        cleanup.callback(shutil.rmtree, work, ignore_errors=True)
        if lack := lacking(work):
            raise NoEngine(f"no Docker engine answers, and none can be stood up: {lack}")
        docker = _client(work, _unpack(work, _mmdebstrap(work)))
        cleanup.enter_context(_daemon(work, docker))
        _import_base(work, docker)
        yield docker


def lacking(work: Path) -> str | None:
    """What this machine lacks for an engine of its own in `work`; None where nothing seems to be missing."""
    if os.geteuid():
        return "needs root"
    needed = ("unshare", "setpriv", "apt-get", "dpkg-deb", "perl")
    if missing := [tool for tool in needed if not shutil.which(tool)]:
        return f"needs {', '.join(missing)}"
    free, memory = shutil.disk_usage(work).free, psutil.virtual_memory().available
    if free < DISK:
        return f"needs {DISK // GIB} GiB of disk, {work.parent} has {free // GIB}"
    if memory < MEMORY:
        return f"needs {MEMORY // GIB} GiB of free memory, not {memory // GIB}"
    trial = work / "trial"
    trial.mkdir()
    done = subprocess.run(["unshare", "-m", "sh", "-c", TRIAL], cwd=trial, capture_output=True, check=False)
    return "needs to mount an overlay in a namespace of its own" if done.returncode else None


def _mmdebstrap(work: Path) -> str:
    """The program; where it is not installed, unpacked from its package, beside apt's own state."""
    if installed := shutil.which("mmdebstrap"):
        return installed
    folder = work / "apt"
    (folder / "lists/partial").mkdir(parents=True)
    options = [f"Dir::State::Lists={folder}/lists", f"Dir::Cache={folder}", "APT::Sandbox::User=root"]
    apt = ["apt-get", "-qq", *(f"-o{option}" for option in options)]
    for action in (("update",), ("download", "mmdebstrap")):
        subprocess.run([*apt, *action], cwd=folder, capture_output=True, check=False)
    for package in folder.glob("mmdebstrap_*.deb"):
        subprocess.run(["dpkg-deb", "-x", str(package), str(folder)], check=True)
        return str(folder / "usr/bin/mmdebstrap")
    raise NoEngine("mmdebstrap is not installed, and apt has none")


def _unpack(work: Path, mmdebstrap: str) -> str:
    """The engine's root, then the base image; returns the release of the latter."""
    engine, base, packages = f"{work}/engine", f"{work}/base.tar", f"--include={BASE_PACKAGES}"
    ubuntu = ("--components=main,universe", f"--keyring={engine}/{UBUNTU_KEYS}", "noble", base, UBUNTU)
    if not _bootstrap(mmdebstrap, f"--include={ENGINE_PACKAGES}", "trixie", engine):
        raise NoEngine("mmdebstrap failed: can this machine reach its Debian mirror?")
    if _bootstrap(mmdebstrap, packages, *ubuntu):
        return "noble"
    if _bootstrap(mmdebstrap, packages, "bookworm", base):
        warnings.warn(f"no noble from {UBUNTU}: bookworm stands in for the base image", stacklevel=2)
        return "bookworm"
    raise NoEngine("mmdebstrap unpacked an engine, but no base image")


def _bootstrap(mmdebstrap: str, *arguments: str) -> bool:
    """Whether a release was unpacked in time; what that mounts on the way is in a namespace of its own."""
    command = ["unshare", "-m", mmdebstrap, "--quiet", "--variant=apt", *arguments]
    job = subprocess.Popen(command, start_new_session=True)
    try:
        return job.wait(60 * MINUTES_TO_UNPACK) == 0
    except subprocess.TimeoutExpired:
        return False
    finally:
        with suppress(ProcessLookupError):
            os.killpg(job.pid, signal.SIGKILL)
        job.wait()


def _client(work: Path, release: str) -> Docker:
    plugins = work / "config/cli-plugins"
    plugins.mkdir(parents=True)
    shutil.copy(work / "engine/usr/libexec/docker/cli-plugins/docker-buildx", plugins)
    environment = dict(os.environ, DOCKER_HOST=f"unix://{work}/sock", DOCKER_CONFIG=str(work / "config"))
    return Docker(environment, f"stand-in:{release}")


@contextmanager
def _daemon(work: Path, docker: Docker) -> Iterator[None]:
    with open(work / "log", "w") as log:
        folders = (str(work / "engine"), str(work), tempfile.gettempdir())
        command = [*IN_NAMESPACES, "bash", "-ec", START_DAEMON, *folders]
        # In a session of its own: an interrupt is for the tests, which then take it down in order.
        daemon = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        until = time.monotonic() + 60
        while docker("info", check=False).returncode:
            if daemon.poll() is not None or time.monotonic() > until:
                raise NoEngine(f"dockerd did not start: {(work / 'log').read_text()[-500:]}")
            time.sleep(0.5)
        yield
    finally:
        docker.remove_containers()  # in order: with the daemon they would end by force
        with suppress(psutil.NoSuchProcess):
            for dockerd in psutil.Process(daemon.pid).children():
                dockerd.terminate()
        daemon.wait(timeout=60)  # until the last process of the namespace has gone


def _import_base(work: Path, docker: Docker) -> None:
    """A stand-in for the base image that trusts the authorities which this machine trusts."""
    context = work / "context"
    context.mkdir()
    for certificate in CERTIFICATES.glob("*.crt"):
        shutil.copy(certificate, context)
    (context / "Dockerfile").write_text(STAND_IN_BASE)
    try:
        docker("import", str(work / "base.tar"), "stand-in:raw")
        docker("build", *NETWORK, "-t", docker.base_image, str(context))
    except RuntimeError as error:
        raise NoEngine(f"the engine that was stood up runs nothing: {str(error).splitlines()[-1]}") from error
