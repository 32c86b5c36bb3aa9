"""The second tier: the same Debian under a kernel of its own, in QEMU without KVM, for what only a whole
control group hierarchy can show (memory and task limits).

A run takes about 25 s, ten times that of the machine for anything that computes, so it is for few tests. Each
starts from the same disk (writes go to a snapshot), gets the source as a tar on a second disk, and hands back
output and exit status over two serial ports. There is no network device.
"""

from __future__ import annotations

import gzip
import io
import lzma
import os
import shutil
import signal
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from checks.bed import cpio, images, settings, sources
from checks.bed.guest import SOURCE, BedCommandError, Done
from checks.bed.images import Suite
from reconciler.demo import install, terminal
from reconciler.errors import PermanentError

_KERNEL = "linux-image-cloud-amd64"
_DISK_BYTES = 4 << 30  # sparse
_MEMORY_MIB = 1536
# The kernel has ext4 built in, but not the disk it lies on.
_DRIVERS = ("virtio_pci", "virtio_blk")
_INIT = """\
#!/bin/busybox sh
/bin/busybox mount -t devtmpfs dev /dev
for module in /modules/*; do /bin/busybox insmod $module; done
while [ ! -b /dev/vda ]; do /bin/busybox usleep 10000; done
/bin/busybox mount -t ext4 -o rw,noatime /dev/vda /new
/bin/busybox mount --move /dev /new/dev
exec /bin/busybox switch_root /new /usr/lib/systemd/systemd
"""
_UNIT = """\
[Unit]
After=multi-user.target
[Service]
Type=oneshot
ExecStart=/bin/sh -eu /etc/bed-vm
ExecStopPost=systemctl --no-block poweroff -ff
StandardError=journal+console
"""
_SCRIPT = f"""\
modprobe -a virtio_console veth overlay
port() {{
  until found=$(grep -lx "$1" /sys/class/virtio-ports/*/name 2>/dev/null); do sleep 0.05; done
  basename "${{found%/name}}"
}}
out=/dev/$(port bed.out) told=/dev/$(port bed.status)
tar -xf /dev/vdb -C /
mkdir -p -m 1777 /bed/tmp
export PYTHONPATH={SOURCE} PYTHONDONTWRITEBYTECODE=1 HOME=/root TMPDIR=/bed/tmp
cd {SOURCE}
status=0
sh -eu /bed/run > "$out" 2>&1 || status=$?
echo $status > "$told"
"""
_TARGET = """\
[Unit]
Requires=multi-user.target
After=multi-user.target
Wants=bed-vm.service
AllowIsolate=yes
"""
_SOURCE_FOLDERS = ("reconciler", "harness", "modules", "tests", "requirements", "pyproject.toml")
_COMMAND_LINE = (
    "console=ttyS0 quiet panic=-1 mitigations=off systemd.show_status=0 systemd.unit=bed-vm.target "
    "systemd.unified_cgroup_hierarchy=1"
)


@dataclass(frozen=True, slots=True)
class Machine:
    """What QEMU boots: a kernel, an initial file system and a disk, in one directory."""

    suite: Suite
    place: Path


def ensure(suite: Suite) -> Machine:
    """The machine, made now if it is not there (about a minute)."""
    if os.uname().machine != "x86_64":
        raise PermanentError("the bed's virtual machine is made for x86-64 only")
    image = images.ensure(suite)
    kernel = images.part(
        f"kernel, {suite}",
        images.cache() / f"{suite}-kernel-{images.digest(_KERNEL)}",
        lambda at, path: _make_kernel(at, suite, image.root, path),
    )
    made_from = [image.root.name, kernel.name, image.venv, settings.digest(), _INIT, _UNIT, _SCRIPT, _TARGET]
    lock = install.lock_digest(install.DEV.name)
    name = f"{suite}-vm-{images.digest(' '.join(map(str, [*made_from, lock])))}"
    return Machine(
        suite,
        images.part(
            f"virtual machine, {suite}",
            images.cache() / name,
            lambda at, path: _make_machine(at, image, kernel, path),
        ),
    )


def run(machine: Machine, script: str, *, timeout_s: float = 600.0) -> Done:
    """Boot, run a shell script as root in the repository's source, power off; status and output of the
    script (both streams as one). `BedCommandError` if it did not come to that in time."""
    with tempfile.TemporaryDirectory(prefix="hive-vm-") as name:
        place = Path(name)
        _write_payload(place / "payload", script)
        for file in ("out", "status", "console"):
            (place / file).touch()
        console = (place / "console").open("wb")
        with console, subprocess.Popen(
            ["setpriv", "--pdeathsig=KILL", "--", *_qemu(machine, place)],
            stdin=subprocess.DEVNULL, stdout=console, stderr=console, start_new_session=True,
        ) as process:  # fmt: skip
            try:
                process.wait(timeout_s)
            except BaseException as error:
                os.killpg(process.pid, signal.SIGKILL)
                if not isinstance(error, subprocess.TimeoutExpired):
                    raise
        out = (place / "out").read_text(errors="replace")
        status = (place / "status").read_text().strip()
        if not status.isdigit():
            end = (place / "console").read_text(errors="replace")[-4000:]
            raise BedCommandError(f"the virtual machine of {machine.suite} gave no status\n{out}\n{end}")
        return Done(int(status), out, "")


def _qemu(machine: Machine, place: Path) -> list[str]:
    disk = f"file={machine.place}/root.ext4,if=none,id=root,format=raw,snapshot=on,cache=unsafe"
    return [
        # Debian's kernels have been seen to hang under the KVM of nested machines: never asked for.
        *("qemu-system-x86_64", "-machine", "q35", "-cpu", "qemu64"),
        *("-accel", "tcg,thread=multi,tb-size=512"),
        *("-m", str(_MEMORY_MIB), "-smp", "2", "-nodefaults", "-no-user-config", "-display", "none"),
        *("-nic", "none", "-no-reboot", "-kernel", f"{machine.place}/vmlinuz"),
        *("-initrd", f"{machine.place}/initrd", "-append", _COMMAND_LINE, "-serial", f"file:{place}/console"),
        *("-drive", disk, "-device", "virtio-blk-pci,drive=root"),
        *("-drive", f"file={place}/payload,if=none,id=payload,format=raw,readonly=on"),
        *("-device", "virtio-blk-pci,drive=payload", "-device", "virtio-serial-pci"),
        *("-chardev", f"file,id=out,path={place}/out", "-device", "virtserialport,chardev=out,name=bed.out"),
        *("-chardev", f"file,id=status,path={place}/status"),
        *("-device", "virtserialport,chardev=status,name=bed.status"),
    ]  # fmt: skip


def _write_payload(path: Path, script: str) -> None:
    """The source and the script, as a tar padded to whole sectors."""
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for folder in _SOURCE_FOLDERS:
            tar.add(install.CLONE / folder, f"{SOURCE}/{folder}".lstrip("/"), filter=_as_root)
        data = script.encode()
        entry = tarfile.TarInfo("bed/run")
        entry.size = len(data)
        tar.addfile(entry, io.BytesIO(data))
    os.truncate(path, -(-path.stat().st_size // 512) * 512)


def _as_root(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    if "__pycache__" in entry.name:
        return None
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = "root"
    return entry


def _make_kernel(at: terminal.Step, suite: Suite, root: Path, path: Path) -> None:
    """`vmlinuz`, and `lib/modules/VERSION` with its lists of dependencies."""
    with tempfile.NamedTemporaryFile("w", suffix=".list") as entries:
        entries.write(sources.for_suite(suite))
        entries.flush()
        argv = ["mmdebstrap", "--variant=extract", "--mode=root", f"--include={_KERNEL}"]
        argv += ["--aptopt=Acquire::Languages none", suite, str(path), entries.name]
        terminal.run(at, argv, env=images.environ(), cwd="/", deadline_s=600)
    # Newer packages have their files below /usr/lib; nothing was unpacked that would link the two.
    (modules,) = (*path.glob("lib/modules/*"), *path.glob("usr/lib/modules/*"))
    shutil.copy(path / "boot" / f"vmlinuz-{modules.name}", path / "vmlinuz")
    (path / "lib/modules").mkdir(parents=True, exist_ok=True)
    modules.rename(path / "lib/modules" / modules.name)
    for folder in path.iterdir():
        if folder.name not in {"vmlinuz", "lib"}:
            shutil.rmtree(folder) if folder.is_dir() and not folder.is_symlink() else folder.unlink()
    depmod = [*images.WITH_USR, str(root), "/usr/sbin/depmod", "--basedir", str(path), modules.name]
    terminal.run(at, depmod, env=images.environ(), cwd="/", deadline_s=60)


def _make_machine(at: terminal.Step, image: images.Image, kernel: Path, path: Path) -> None:
    path.mkdir()
    root = path / "root"
    # Hard links: the image costs nothing twice, and what is replaced below is unlinked first.
    for argv in (
        ["cp", "--archive", "--link", str(image.root), str(root)],
        ["cp", "--archive", "--link", f"{kernel}/lib/modules", f"{root}/usr/lib/modules"],
        ["mkdir", "--parents", f"{root}{SOURCE}"],
        ["cp", "--archive", "--reflink=auto", str(image.venv), f"{root}{SOURCE}/.venv"],
    ):
        terminal.run(at, argv, env=images.environ(), cwd="/", deadline_s=300)
    settings.write(root)
    (root / "etc/bed-vm").write_text(_SCRIPT)
    for name, text in (("bed-vm.service", _UNIT), ("bed-vm.target", _TARGET)):
        (root / "etc/systemd/system" / name).write_text(text)
    disk = path / "root.ext4"
    with disk.open("wb") as file:
        file.truncate(_DISK_BYTES)
    mke2fs = ["mke2fs", "-q", "-t", "ext4", "-m0", "-O", "^has_journal", "-E", "lazy_itable_init=1"]
    terminal.run(at, [*mke2fs, "-d", str(root), str(disk)], env=images.environ(), cwd="/", deadline_s=600)
    shutil.copy(kernel / "vmlinuz", path / "vmlinuz")
    (path / "initrd").write_bytes(gzip.compress(_initrd(root), 1))
    shutil.rmtree(root)


def _initrd(root: Path) -> bytes:
    archive = cpio.Archive()
    for folder in ("bin", "dev", "new", "modules"):
        archive.directory(folder)
    archive.file("bin/busybox", (root / "usr/bin/busybox").read_bytes(), 0o755)
    archive.file("init", _INIT.encode(), 0o755)
    (modules,) = (root / "usr/lib/modules").iterdir()
    for number, module in enumerate(_in_order(modules)):
        data = (modules / module).read_bytes()
        if module.endswith(".xz"):
            data = lzma.decompress(data)
        archive.file(f"modules/{number:02}-{Path(module).name.removesuffix('.xz')}", data)
    return archive.end()


def _in_order(modules: Path) -> list[str]:
    """The drivers' files, each after those it depends on; drivers that are built in have none."""
    needs = {}
    for line in (modules / "modules.dep").read_text().splitlines():
        file, _, rest = line.partition(":")
        needs[file] = rest.split()
    ordered: dict[str, None] = {}
    for driver in _DRIVERS:
        for file, others in needs.items():
            if Path(file).name.split(".")[0] == driver:
                # modules.dep names all that are needed, the deepest last.
                ordered.update(dict.fromkeys([*reversed(others), file]))
    return list(ordered)
