"""Runs a command with a Docker engine of its own, and leaves nothing of it behind but a cached image.

    python scripts/docker_engine.py --image palaestra-test -- python -m pytest -m docker

The command finds the engine in DOCKER_HOST and the name of the image in PALAESTRA_TEST_IMAGE. The image is Debian's
smallest with python3, built once by debootstrap and kept as a tarball below ~/.cache/palaestra. The engine knows the
runtimes runsc (gVisor) and crun where they are installed; PALAESTRA_TEST_RUNTIMES names those.

Needs root, the Debian packages docker.io and debootstrap, and the Python package docker. The engine has no network for
containers, and a socket, a data folder, mounts, process ids and a /run of its own: when its first process ends, however
it ends, the kernel ends everything else of it. What lies on disk goes then, or when the next engine starts.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

PACKAGES = {"dockerd": "docker.io", "containerd": "docker.io", "debootstrap": "debootstrap", "unshare": "util-linux"}
PREFIX = "palaestra-engine-"
RECIPE = {
    "version": 1,
    "debian": "bookworm",
    "include": ["python3"],
    "left out": ["usr/share/doc", "usr/share/man", "usr/share/locale", "var/cache/apt", "var/lib/apt/lists"],
    "changes": ["ENV PATH=/usr/local/bin:/usr/bin:/bin", "ENV LANG=C.UTF-8", 'CMD ["python3"]'],
}
"""All that the image depends on; a change makes a new tarball."""
RUNTIMES = ("runsc", "crun")
"""Container runtimes besides the engine's own; it knows those that are installed, by these names."""
START_TIMEOUT_S = 60
LEAST_SPACE = 2 << 30
NAMESPACES = ("setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
"""Process ids and mounts of its own; ends with this process, and everything in it with itself."""
RUN = 'umount -q /sys/fs/cgroup/unified; mount -t tmpfs tmpfs /run && dockerd "$@"; exit $?'
"""The shell stays, as the first process, and reaps what containers leave. crun refuses two generations of cgroups."""
BUILD = """
mount -t tmpfs -o mode=755 tmpfs "$1"
debootstrap --variant=minbase --include="$2" "$3" "$1" >&2
cd "$1"
rm -rf $5
: >etc/apt/sources.list
tar --numeric-owner --exclude='./dev/*' -cf "$4" .
"""


class EngineError(Exception):
    """The engine cannot run; one line names the fix."""


class PrivateEngine:
    """A running engine, from `with PrivateEngine() as engine` on.

    Args:
        tcp: Whether it listens on a port of 127.0.0.1, too.
        parent: Folder that gets the engine's own; None takes one whose file system can hold layers.
        platform: See `installed_runtimes`.
    """

    def __init__(self, tcp: bool = False, parent: Path | None = None, platform: str | None = None) -> None:
        check_tools()
        with cache_lock():
            parent = folder_for_layers() if parent is None else parent
            remove_leftovers(parent)
            self.folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
            self._mark = os.open(self.folder, os.O_RDONLY)  # locked as long as this process lives
            fcntl.flock(self._mark, fcntl.LOCK_EX)
        self.host = f"unix://{self.folder}/docker.sock"
        """What DOCKER_HOST is to be."""
        self.tcp_host = f"tcp://127.0.0.1:{free_port()}" if tcp else None
        self.runtimes = installed_runtimes(platform)
        """As daemon.json lists them."""
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> PrivateEngine:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Starts it, with the images that it had if it ran before.

        Raises:
            EngineError: It does not start.
        """
        for name in ("docker.pid", "docker.sock"):  # of the time before `kill`, as is what a reboot would clear
            (self.folder / name).unlink(missing_ok=True)
        shutil.rmtree(self.folder / "exec", ignore_errors=True)
        (self.folder / "daemon.json").write_text(json.dumps({"runtimes": self.runtimes}))
        listen = ["--tls=false", f"--host={self.tcp_host}"] if self.tcp_host else []
        options = [
            "--storage-driver=overlay2", f"--data-root={self.folder}/data", f"--exec-root={self.folder}/exec",
            f"--pidfile={self.folder}/docker.pid", f"--host={self.host}", "--group=root", *listen,
            f"--config-file={self.folder}/daemon.json",
            "--bridge=none", "--iptables=false",
            "--exec-opt=native.cgroupdriver=cgroupfs", f"--cgroup-parent=/{self.folder.name}", "--log-level=warn",
        ]  # fmt: skip
        with open(self.folder / "docker.log", "ab") as log:
            self._process = subprocess.Popen(
                [*NAMESPACES, "sh", "-uc", RUN, "sh", *options],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self._await_answer(self._process)

    def _await_answer(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as sock:
                sock.connect(f"{self.folder}/docker.sock")  # it listens before it is ready
                sock.settimeout(deadline - time.monotonic())
                sock.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
                if b" 200 OK" in sock.recv(100):
                    return
            time.sleep(0.05)
        said = (self.folder / "docker.log").read_text(errors="replace").strip().splitlines()
        raise EngineError(f"the engine does not start: {said[-1] if said else 'it says nothing'}")

    @property
    def pid(self) -> int:
        """The running engine's process id."""
        assert self._process is not None
        return first_child(first_child(self._process.pid))

    @contextlib.contextmanager
    def client(self) -> Iterator[Any]:
        """A client of it."""
        import docker

        with contextlib.closing(docker.DockerClient(base_url=self.host, timeout=60)) as client:
            yield client

    def kill(self) -> None:
        """Ends it at once, and everything that runs in it; `start` can follow."""
        process, self._process = self._process, None
        if process is None:
            return
        try:
            os.kill(first_child(process.pid), signal.SIGKILL)
        except (OSError, IndexError):  # it has none yet
            process.kill()
        process.wait()  # it waits for its child, whose end is the end of all in its namespace

    def close(self) -> None:
        """Ends it and removes what it had; may be called twice."""
        self.kill()
        if self._mark >= 0:
            remove(self.folder)
            os.close(self._mark)
            self._mark = -1


def installed_runtimes(platform: str | None = None) -> dict[str, dict[str, Any]]:
    """The runtimes of `RUNTIMES` that are installed, as an engine's daemon.json lists them.

    Args:
        platform: How gVisor catches system calls: `ptrace` works everywhere, `kvm` needs /dev/kvm and hangs in some
            VMs, `systrap` needs a gVisor of 2023 or later. None leaves it to `runsc`, which takes the safe one.
    """
    found = {name: path for name in RUNTIMES if (path := shutil.which(name)) is not None}
    arguments = ["--network=none"]  # containers have none; with one, gVisor of 2022 does not start on Linux 6.18
    if platform is not None:
        arguments.append(f"--platform={platform}")
    return {name: {"path": path, "runtimeArgs": arguments * (name == "runsc")} for name, path in found.items()}


def first_child(pid: int) -> int:
    """The first child of a process."""
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


def check_tools() -> None:
    """Raises EngineError with what to do if something is missing that every engine needs."""
    os.environ["PATH"] += os.pathsep + "/usr/sbin:/sbin"
    if os.geteuid() != 0:
        raise EngineError(f"only root can run an engine: sudo {sys.executable} {' '.join(sys.argv)}")
    missing = {package for tool, package in PACKAGES.items() if shutil.which(tool) is None}
    if missing:
        raise EngineError(f"missing programs: apt-get install {' '.join(sorted(missing))}")
    try:
        import docker  # noqa: F401
    except ImportError:
        raise EngineError("the Python package docker is missing: pip install 'palaestra[docker]'") from None


def folder_for_layers() -> Path:
    """A folder whose file system can hold the layers of images: an overlay on another overlay cannot be mounted."""
    tried: list[str] = []
    for parent in dict.fromkeys((tempfile.gettempdir(), "/var/tmp", "/dev/shm")):
        kind = subprocess.run(["findmnt", "-no", "FSTYPE", "-T", parent], capture_output=True, text=True, check=False)
        space = shutil.disk_usage(parent).free
        if space < LEAST_SPACE:
            tried.append(f"{parent} has {space >> 20} MiB")
        elif not can_hold_layers(parent):
            tried.append(f"{parent} is {kind.stdout.strip()}")
        else:
            return Path(parent)
    raise EngineError(f"the engine needs 2 GiB on ext4, xfs or tmpfs ({', '.join(tried)}): set TMPDIR to such a folder")


def can_hold_layers(parent: str) -> bool:
    """Whether an overlay can be mounted from folders below `parent`."""
    with tempfile.TemporaryDirectory(dir=parent) as folder:
        for name in ("lower", "upper", "work", "merged"):
            os.mkdir(f"{folder}/{name}")
        mount = 'cd "$1"; mount -t overlay -o lowerdir=lower,upperdir=upper,workdir=work overlay merged; mkdir merged/a'
        command = ["unshare", "--mount", "sh", "-euc", mount, "sh", folder]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0


def remove_leftovers(parent: Path) -> None:
    """Removes the folders of engines whose process was killed; the kernel has ended the engines themselves."""
    for folder in parent.glob(f"{PREFIX}*"):
        mark = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove(folder)
        except BlockingIOError:
            continue  # it runs
        finally:
            os.close(mark)


def remove(folder: Path) -> None:
    """Removes the folder of an engine that has ended, and its control groups."""
    for top in (Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").glob("*/")):
        for group, _, _ in os.walk(top / folder.name, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(group)
    shutil.rmtree(folder)


def free_port() -> int:
    """A port of 127.0.0.1 that nobody uses."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


# ----------------------------------------------------------------------------------------------------------- image


def cache() -> Path:
    """The folder that stays, made if need be."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "palaestra"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def cache_lock() -> Iterator[None]:
    """Only one process at a time looks for leftovers or builds an image."""
    with open(cache() / "lock", "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def image_tarball() -> Path:
    """The file system of the test image; built if the cache does not have it."""
    key = hashlib.sha256(json.dumps([RECIPE, BUILD, platform.machine()]).encode()).hexdigest()[:12]
    with cache_lock():
        tarball = cache() / f"image-{key}.tar"
        if not tarball.exists():
            build_image(tarball)
        return tarball


def build_image(tarball: Path) -> None:
    """Builds the file system in memory, so that nothing is left on disk if this is interrupted."""
    print(f"docker_engine: building the test image, once: {tarball}", file=sys.stderr)
    partial, log = tarball.with_suffix(".partial"), tarball.with_suffix(".log")
    arguments = [",".join(RECIPE["include"]), RECIPE["debian"], str(partial), " ".join(RECIPE["left out"])]
    with tempfile.TemporaryDirectory() as root, open(log, "wb") as file:
        command = [*NAMESPACES, "sh", "-euc", BUILD, "sh", root, *arguments]
        built = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, check=False)
    if built.returncode:
        said = log.read_text(errors="replace").strip().splitlines()
        raise EngineError(f"debootstrap failed, see {log}: {said[-1] if said else built.returncode}")
    log.unlink()
    partial.replace(tarball)


def import_image(engine: PrivateEngine, name: str) -> None:
    """Gives an engine the test image under a name."""
    tarball = image_tarball()
    with engine.client() as client:
        client.api.import_image_from_file(str(tarball), repository=name, tag="latest", changes=RECIPE["changes"])


# --------------------------------------------------------------------------------------------------------- command


def run(command: Sequence[str], environment: dict[str, str]) -> int:
    """Runs a command to its end, also on Ctrl-C, which reaches it too, and gives its exit status as a shell does."""
    process = subprocess.Popen(command, env=environment)
    try:
        while True:
            try:
                status = process.wait()
                return status if status >= 0 else 128 - status
            except KeyboardInterrupt:
                continue
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()


def leave(number: int, _: FrameType | None) -> None:
    """Ends this process in order on a signal."""
    raise SystemExit(128 + number)


def main() -> int:
    """Starts an engine, runs the command, stops the engine."""
    parser = argparse.ArgumentParser(description="Runs a command with a Docker engine of its own.")
    parser.add_argument("--image", default="palaestra-test", help="name of the test image (default: %(default)s)")
    parser.add_argument("--platform", help="gVisor's: ptrace, kvm, systrap (default: what runsc takes by itself)")
    parser.add_argument("command", nargs="+", help="the command, after --")
    options = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, leave)
    try:
        with PrivateEngine(platform=options.platform) as engine:
            import_image(engine, options.image)
            environment = {name: value for name, value in os.environ.items() if not name.startswith("DOCKER_")}
            environment |= {"DOCKER_HOST": engine.host, "PALAESTRA_TEST_IMAGE": options.image}
            environment["PALAESTRA_TEST_RUNTIMES"] = " ".join(engine.runtimes)
            return run(options.command, environment)
    except (EngineError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
