"""Runs a command of a checkout in a virtual machine whose kernel is another one than this machine's.

    python scripts/virtual_machine.py -- python -m pytest -p no:cacheprovider tests/sandboxes/test_control_groups.py
    python scripts/virtual_machine.py --arch arm64 --user 1000 -- python -m pytest tests/sandboxes/test_modes.py

It is for what this machine cannot show: version 2 of control groups as the only one, for root and delegated to an
ordinary user as systemd does it, and system-call filters on arm64. The machine has Debian's Python 3.11, a kernel of
Debian 13 (Linux 6.12), two emulated processors (some 20 times slower than real ones), and no network. The checkout is
copied into it; what the command writes is lost.

Needs root, the Debian packages qemu-system-x86 or qemu-system-arm, mmdebstrap, cpio, e2fsprogs and kmod, and sources of
Debian 12 in apt. A system is built once and kept below ~/.cache/palaestra.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
INIT = Path(__file__).with_name("virtual_machine_init.sh")
CACHE = Path.home() / ".cache" / "palaestra"
SYSTEM, KERNEL = "bookworm", "trixie"
PACKAGES = (
    "base-files", "base-passwd", "bash", "busybox-static", "coreutils", "dash", "debianutils", "diffutils", "findutils",
    "grep", "gzip", "hostname", "iproute2", "libc-bin", "libcap2-bin", "libgomp1", "libstdc++6", "login", "mawk",
    "mount", "passwd", "procps", "python3", "sed", "tar", "util-linux",
)  # fmt: skip
WHEELS = ("numpy", "gymnasium", "rich", "typer", "docker", "pytest", "pytest-timeout", "hypothesis")
USER = 1000
INITRAMFS = """#!/bin/busybox sh
b=/bin/busybox
$b mount -t devtmpfs dev /dev
$b insmod /virtio_blk.ko
while ! [ -b /dev/vda ]; do $b sleep 0.1; done
$b mount -t ext4 -o noatime /dev/vda /new
$b mount -o move /dev /new/dev
exec $b switch_root /new /init
"""
LEFT_OUT = (".git", ".venv", "__pycache__", "*.egg-info", ".ruff_cache", ".pytest_cache", ".hypothesis", "runs")
NO_STATUS, TIMED_OUT = 125, 124


@dataclass(frozen=True)
class Architecture:
    """What differs between processors."""

    emulator: str
    package: str
    machine: tuple[str, ...]
    console: str
    wheels: str
    """How wheels name it."""


ARCHITECTURES = {
    "amd64": Architecture(
        "qemu-system-x86_64", "qemu-system-x86", ("-machine", "q35", "-cpu", "max"), "ttyS0", "x86_64",
    ),
    "arm64": Architecture(
        "qemu-system-aarch64", "qemu-system-arm", ("-machine", "virt,gic-version=3", "-cpu", "neoverse-n1"), "ttyAMA0",
        "aarch64",
    ),
}  # fmt: skip


def run(*command: str | Path, cwd: Path | None = None) -> None:
    """Runs a command quietly; its failure is ours."""
    result = subprocess.run(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if result.returncode:
        sys.exit(f"error: {shlex.join(map(str, command))}\n{result.stdout[-2000:]}")


def check_tools(arch: str) -> None:
    """Ends with one line if something is missing."""
    architecture = ARCHITECTURES[arch]
    packages = {"mmdebstrap": "mmdebstrap", "cpio": "cpio", "mke2fs": "e2fsprogs", "depmod": "kmod"}
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    missing = [package for tool, package in packages.items() if not shutil.which(tool, path=path)]
    missing += [] if shutil.which(architecture.emulator) else [architecture.package]
    if missing:
        sys.exit(f"error: missing {' '.join(missing)}: apt-get install --no-install-recommends {' '.join(missing)}")
    if os.geteuid():
        sys.exit("error: only root can build and start it: use sudo")
    os.environ["PATH"] = path


def system(arch: str) -> Path:
    """The folder with the machine's kernel, initramfs and disk; built if it is not there."""
    recipe = "\n".join([Path(__file__).read_text(encoding="utf-8"), INIT.read_text(encoding="utf-8"), arch])
    folder = CACHE / f"vm-{arch}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"
    if not folder.exists():
        print(f"building a system for {arch} in {folder}", file=sys.stderr, flush=True)
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="vm-", dir=CACHE) as name:
            build(arch, Path(name))
            for old in CACHE.glob(f"vm-{arch}-*"):
                shutil.rmtree(old)
            (Path(name) / "system").rename(folder)
    return folder


def build(arch: str, work: Path) -> None:
    """Makes `work/system`, without running anything of the other processor's."""
    made, root, kernel = work / "system", work / "root", work / "kernel"
    made.mkdir()
    extract(arch, SYSTEM, PACKAGES, root)
    extract(arch, KERNEL, [f"linux-image-cloud-{arch}"], kernel)
    (modules,) = (kernel / "usr/lib/modules").iterdir()
    shutil.copytree(modules, root / "usr/lib/modules" / modules.name, symlinks=True, dirs_exist_ok=True)
    run("depmod", "-b", root, modules.name)
    (image,) = (kernel / "boot").glob("vmlinuz-*")
    shutil.copyfile(image, made / "kernel")
    finish_root(root)
    add_wheels(arch, work / "wheels", root)
    make_initramfs(root, next(modules.rglob("virtio_blk.ko*")), made / "initramfs")
    run("truncate", "-s", "4G", made / "disk")
    run("mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-d", root, made / "disk")


def extract(arch: str, release: str, packages: Sequence[str], target: Path) -> None:
    """Unpacks packages with all that they need."""
    with tempfile.NamedTemporaryFile("w", suffix=".sources") as sources:
        keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
        sources.write(f"Types: deb\nURIs: {mirror()}\nSuites: {release}\nComponents: main\nSigned-By: {keyring}\n")
        sources.flush()
        hooks = "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr"
        run(
            "mmdebstrap", "--mode=root", "--variant=extract", f"--architectures={arch}", hooks,
            f"--include={','.join(packages)}", release, target, sources.name,
        )  # fmt: skip


def mirror() -> str:
    """Where this machine's apt has Debian from."""
    for path in [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]:
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        found = re.search(r"^(?:URIs:|deb(?: \[[^]]*\])?)\s+(\S+/debian)/?\s", text, re.MULTILINE)
        if found:
            return found[1]
    sys.exit("error: apt has no sources of Debian here")


def finish_root(root: Path) -> None:
    """Does what the packages' scripts would have done, as far as it is needed."""
    for name in ("passwd", "group"):
        shutil.copyfile(root / f"usr/share/base-passwd/{name}.master", root / f"etc/{name}")
    with open(root / "etc/passwd", "a", encoding="ascii") as file:
        file.write(f"tester:x:{USER}:{USER}::/home/tester:/bin/bash\n")
    with open(root / "etc/group", "a", encoding="ascii") as file:
        file.write(f"tester:x:{USER}:\n")
    for name in ("subuid", "subgid"):
        (root / f"etc/{name}").write_text("tester:100000:65536\n")
    (root / "home/tester").mkdir(parents=True)
    os.chown(root / "home/tester", USER, USER)
    (root / "etc/hosts").write_text("127.0.0.1 localhost\n")
    for link, target in (("sh", "dash"), ("awk", "mawk")):
        (root / "usr/bin" / link).unlink(missing_ok=True)
        (root / "usr/bin" / link).symlink_to(target)
    shutil.copyfile(INIT, root / "init")
    (root / "init").chmod(0o755)


def add_wheels(arch: str, folder: Path, root: Path) -> None:
    """Makes a virtual environment with the Python packages that the tests of the sandbox need."""
    platforms = [f"--platform=manylinux_2_{minor}_{ARCHITECTURES[arch].wheels}" for minor in (17, 27, 28)]
    run(
        sys.executable, "-m", "pip", "download", "-q", "--only-binary=:all:", "--python-version=3.11", *platforms,
        "-d", folder, *WHEELS,
    )  # fmt: skip
    environment = root / "opt/venv"
    packages = environment / "lib/python3.11/site-packages"
    packages.mkdir(parents=True)
    (environment / "bin").mkdir()
    (environment / "bin/python").symlink_to("/usr/bin/python3.11")
    (environment / "pyvenv.cfg").write_text("home = /usr/bin\ninclude-system-site-packages = false\n")
    for wheel in folder.glob("*.whl"):
        run(sys.executable, "-m", "zipfile", "-e", wheel, packages)


def make_initramfs(root: Path, driver: Path, target: Path) -> None:
    """Makes what mounts the disk, whose driver is the only one that is not built into the kernel."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for inner in ("bin", "dev", "proc", "sys", "new"):
            (folder / inner).mkdir()
        shutil.copyfile(root / "usr/bin/busybox", folder / "bin/busybox")
        shutil.copyfile(driver, folder / driver.name)
        if driver.suffix == ".xz":
            run("xz", "-d", folder / driver.name)
        (folder / "init").write_text(INITRAMFS)
        for program in ("bin/busybox", "init"):
            (folder / program).chmod(0o755)
        run("sh", "-c", f"find . | cpio -o -H newc --quiet | gzip -1 > {shlex.quote(str(target))}", cwd=folder)


def pack(command: Sequence[str], target: Path) -> None:
    """Writes the checkout and the command as an archive that the machine finds as its second disk."""
    with tempfile.TemporaryDirectory() as name:
        Path(name, "command").write_text(shlex.join(command))
        run(
            "tar", "-cf", target, "--owner=0", "--group=0", "-C", name, "command", "-C", ROOT,
            *(f"--exclude={left_out}" for left_out in LEFT_OUT), r"--transform=s,^\.\(/\|$\),tree\1,S", ".",
        )  # fmt: skip
    with open(target, "ab") as file:
        file.truncate((file.tell() + 511) // 512 * 512)


def start(options: argparse.Namespace, folder: Path) -> int:
    """Runs the machine until it switches itself off; gives the command's exit status."""
    architecture = ARCHITECTURES[options.arch]
    with tempfile.TemporaryDirectory(prefix="palaestra-vm-") as name:
        work = Path(name)
        pack(options.command, work / "in.tar")
        read, write = os.pipe()
        words = f"console={architecture.console} panic=-1 quiet cgroup_no_v1=all vm.now={int(time.time())}"
        words += f" vm.uid={options.user} vm.cgroup={'delegated' if options.user else 'session'}"
        process = subprocess.Popen(
            [*emulation(options, folder, work, words), *ports(output=f"/dev/fd/{write}", status=f"{work}/status")],
            stdin=subprocess.DEVNULL,
            pass_fds=[write],
            env={**os.environ, "TMPDIR": name},
        )
        os.close(write)
        copier = threading.Thread(target=copy, args=(read,), daemon=True)
        copier.start()
        try:
            process.wait(options.limit)
        except subprocess.TimeoutExpired:
            print(f"error: it ran for more than {options.limit:g} s", file=sys.stderr)
            return TIMED_OUT
        finally:
            process.kill()
            process.wait()
            copier.join(5)
        status = (work / "status").read_text().strip() if (work / "status").exists() else ""
        if not status:
            print(f"error: the machine said nothing\n{(work / 'console').read_text()[-3000:]}", file=sys.stderr)
        return int(status or NO_STATUS)


def emulation(options: argparse.Namespace, folder: Path, work: Path, words: str) -> list[str]:
    """The emulator's command line, its ports excepted."""
    architecture = ARCHITECTURES[options.arch]
    return [
        architecture.emulator, *architecture.machine, "-accel", "tcg,thread=multi", "-smp", "2", "-m", options.memory,
        "-nodefaults", "-display", "none", "-no-reboot",
        "-kernel", f"{folder}/kernel", "-initrd", f"{folder}/initramfs", "-append", words,
        "-drive", f"file={folder}/disk,format=raw,if=none,id=a,snapshot=on", "-device", "virtio-blk-pci,drive=a",
        "-drive", f"file={work}/in.tar,format=raw,if=none,id=b,readonly=on", "-device", "virtio-blk-pci,drive=b",
        "-chardev", f"file,id=console,path={work}/console", "-serial", "chardev:console",
    ]  # fmt: skip


def ports(**paths: str) -> list[str]:
    """Options for ports of the machine that write to files here."""
    options = ["-device", "virtio-serial-pci"]
    for name, path in paths.items():
        options += ["-chardev", f"file,id={name},path={path}", "-device", f"virtserialport,chardev={name},name={name}"]
    return options


def copy(fd: int) -> None:
    """Passes on what the command prints."""
    while data := os.read(fd, 1 << 16):
        os.write(1, data)
    os.close(fd)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", choices=sorted(ARCHITECTURES), default="amd64", help="processor (default: amd64)")
    parser.add_argument(
        "--user", type=int, choices=[0, USER], default=0, help=f"who runs the command (default: 0, root; {USER}: an"
        " ordinary user with delegated control groups)",
    )  # fmt: skip
    parser.add_argument("--memory", default="6G", help="the machine's (default: 6G)")
    parser.add_argument(
        "--limit", type=float, default=3600.0, metavar="SECONDS", help="when to give up (default: 3600)"
    )
    parser.add_argument("command", nargs="+", help="after --: what to run in the checkout")
    options = parser.parse_args()
    check_tools(options.arch)
    return start(options, system(options.arch))


if __name__ == "__main__":
    sys.exit(main())
