"""The files of an image made from what this machine has: programs with their libraries, Python, locked packages."""

import hashlib
import io
import json
import re
import stat
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import IO

from scripts.image_lock import needed_by, plain

LIBRARY = re.compile(r"(?:=>\s+)?(/\S+)\s+\(0x")
#: Parts of the standard library that no server imports, and what other packages put beside it.
LEFT_OUT = {
    "test",
    "tests",
    "idlelib",
    "tkinter",
    "turtledemo",
    "lib2to3",
    "ensurepip",
    "site-packages",
    "dist-packages",
}


def libraries(program: Path) -> Iterator[Path]:
    """Yield the shared libraries and the loader of a program or a library; none for a static one."""
    asked = subprocess.run(["ldd", program], capture_output=True, text=True, check=False)
    for line in asked.stdout.splitlines():
        if "not found" in line:
            raise FileNotFoundError(f"{program}: {line.strip()}")
        if match := LIBRARY.search(line):
            yield Path(match[1])


def closure(requirements: list[str]) -> list[metadata.Distribution]:
    """Return the distributions that meet some requirements, and all that those need, as they are installed here."""
    names = needed_by(requirements)
    return [found for found in metadata.distributions() if plain(found.metadata["Name"]) in names]


@dataclass(frozen=True)
class Tree:
    """Files by their place in the image: a path here, or content with a mode, or the target of a link."""

    files: dict[str, Path] = field(default_factory=dict)
    texts: dict[str, tuple[bytes, int]] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    folders: dict[str, int] = field(default_factory=dict)

    def program(self, source: Path, place: str) -> None:
        """Add a program with its libraries."""
        self.files[place] = source.resolve()
        self.libraries_of(source.resolve())

    def libraries_of(self, *sources: Path) -> None:
        """Add the libraries of programs and modules, each at the place where this machine's loader found it."""
        for source in sources:
            for library in libraries(source):
                if library not in self.files.values():
                    self.files[str(library)] = library.resolve()

    def folder(self, source: Path, place: str, keep: Callable[[Path], bool] = lambda _: True) -> None:
        """Add what is in a folder, less what `keep` refuses (folders too)."""
        for entry in sorted(source.iterdir()):
            if not keep(entry):
                continue
            if entry.is_dir():
                self.folder(entry, f"{place}/{entry.name}", keep)
            else:
                self.files[f"{place}/{entry.name}"] = entry.resolve()

    def text(self, place: str, content: str, mode: int = 0o644) -> None:
        """Add a file made here."""
        self.texts[place] = (content.encode(), mode)

    def digest(self, *more: str) -> str:
        """Return a digest of all there is; files on disk count by place, size and time."""
        known = [
            sorted((place, str(path), *_size_and_time(path)) for place, path in self.files.items()),
            sorted((place, content.decode(), mode) for place, (content, mode) in self.texts.items()),
            sorted(self.links.items()),
            sorted(self.folders.items()),
            more,
        ]
        return hashlib.sha256(json.dumps(known).encode()).hexdigest()

    def tar(self, out: IO[bytes], recipe: str, layers: list[str]) -> None:
        """Write the tree as a build context: a Dockerfile, the layers' folders under `root/`, else `base/`."""

        def name(place: str) -> str:
            own = any(f"{place}/".startswith(f"{layer}/") for layer in layers)
            return f"{'root' if own else 'base'}{place}"

        with tarfile.open(fileobj=out, mode="w|") as archive:
            _add(archive, "Dockerfile", recipe.encode(), 0o644)
            for place in sorted(self._parents()):
                _add_folder(archive, name(place), self.folders.get(place, 0o755))
            for place, source in sorted(self.files.items()):
                _add_file(archive, name(place), source)
            for place, (content, mode) in sorted(self.texts.items()):
                _add(archive, name(place), content, mode)
            for place, target in sorted(self.links.items()):
                member = tarfile.TarInfo(name(place))
                member.type, member.linkname = tarfile.SYMTYPE, target
                archive.addfile(member)

    def _parents(self) -> set[str]:
        places = [*self.files, *self.texts, *self.links]
        inner = {str(parent) for place in places for parent in PurePosixPath(place).parents}
        return inner | set(self.folders) | {"/"}


def python(tree: Tree) -> None:
    """Add this interpreter with its standard library, moved to /usr/local."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    program = Path(sys.base_prefix, "bin", version)
    tree.program(program, f"/usr/local/bin/{version}")
    tree.links["/usr/local/bin/python"] = tree.links["/usr/local/bin/python3"] = version
    tree.folder(Path(sysconfig.get_path("stdlib")), f"/usr/local/lib/{version}", _of_standard_library)
    tree.libraries_of(*[path for place, path in list(tree.files.items()) if ".so" in Path(place).suffixes])


def packages(tree: Tree, requirements: list[str], place: str) -> None:
    """Add what meets some requirements, at the locked versions that are installed here."""
    for found in closure(requirements):
        for file in found.files or []:
            source = Path(str(found.locate_file(file)))
            inside = ".." not in file.parts and source.suffix != ".pyi" and "tests" not in file.parts
            if inside and source.is_file():
                tree.files[f"{place}/{file}"] = source
    modules = [path for where, path in list(tree.files.items()) if where.startswith(place) and path.suffix == ".so"]
    known = {path.name for path in tree.files.values()}
    for module in modules:
        for library in libraries(module):
            if library.name not in known:  # a wheel brings its own, found beside it
                tree.files[str(library)] = library.resolve()


def people(tree: Tree, *lines: str) -> None:
    """Add what names users, hosts and certificates, and a folder for scratch files."""
    tree.text("/etc/passwd", "".join(f"{line}\n" for line in ("root:x:0:0:root:/root:/bin/sh", *lines)))
    tree.text("/etc/nsswitch.conf", "hosts: files dns\n")
    certificates = Path("/etc/ssl/certs/ca-certificates.crt")
    if certificates.is_file():
        tree.files[str(certificates)] = certificates
    tree.folders["/tmp"] = 0o1777  # noqa: S108


def _of_standard_library(entry: Path) -> bool:
    return entry.name not in LEFT_OUT and not entry.name.startswith("config-") and entry.suffix != ".a"


def _size_and_time(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def _add(archive: tarfile.TarFile, name: str, content: bytes, mode: int) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(content), mode
    archive.addfile(member, io.BytesIO(content))


def _add_file(archive: tarfile.TarFile, name: str, source: Path) -> None:
    member = archive.gettarinfo(source, name)
    found = source.stat()
    member.type, member.linkname, member.size = tarfile.REGTYPE, "", found.st_size  # a hard link here is a file there
    member.mode = 0o755 if found.st_mode & stat.S_IXUSR else 0o644
    member.uid = member.gid = 0
    with source.open("rb") as stream:
        archive.addfile(member, stream)


def _add_folder(archive: tarfile.TarFile, name: str, mode: int) -> None:
    member = tarfile.TarInfo(name.rstrip("/"))
    member.type, member.mode = tarfile.DIRTYPE, mode
    archive.addfile(member)
