"""Makes the images that compose/compose.yaml names, each from a tree of files: see scripts/images."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scripts.image_files import Tree, packages, people, python

ROOT = Path(__file__).resolve().parent.parent
TOOLS = Path(os.environ.get("GURNEY_TOOL_FOLDER", ""))
PACKAGES = "/opt/gurney"
#: Of an image that was made here: the digest of its files.
LABEL = "gurney.files"
IMAGE = re.compile(r"^\s+image:\s+(?:\$\{[A-Z_]+:-)?([^\s}]+)", re.MULTILINE)


@dataclass(frozen=True)
class Image:
    """One image: its files, and what its Dockerfile says beside copying them."""

    tree: Tree
    config: list[str]
    #: Folders of the tree that are a layer each, from what seldom changes to what often does; the rest comes first.
    layers: list[str] = field(default_factory=list)


def busybox(tree: Tree) -> None:
    """Add the shell and wget that the public images' base brings."""
    tree.program(program("busybox"), "/bin/busybox")
    for name in ("sh", "wget", "ls", "cat", "mkdir", "chown", "id", "grep", "head", "sleep"):
        tree.links[f"/bin/{name}"] = "busybox"


def program(name: str) -> Path:
    """Return a program of scripts/tools, or else of the distribution."""
    found = shutil.which(name, path=f"{TOOLS}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        sys.exit(f"images: there is no {name} on this machine; .ci/run names the packages that bring it")
    return Path(found).resolve()


def server(name: str, place: str, *config: str, bash: bool = False) -> Callable[[], Image]:
    """Return a recipe: one program with its libraries, and a shell for health checks."""

    def make() -> Image:
        tree = Tree()
        tree.program(program(name), place)
        busybox(tree)
        if bash:
            tree.program(program("bash"), "/bin/bash")
        people(tree)
        return Image(tree, list(config))

    return make


def project() -> dict[str, Any]:
    """Return the table `project` of pyproject.toml."""
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return found


def gurney() -> Image:
    """Return Gurney as compose/Dockerfile makes it: Python, the locked packages, Gurney."""
    tree = Tree()
    python(tree)
    people(tree, "gurney:x:8350:8350::/nonexistent:/bin/false")
    packages(tree, project()["dependencies"], f"{PACKAGES}/packages")
    for source in (ROOT / "libs" / "gurney", ROOT / "services"):
        tree.folder(source, f"{PACKAGES}/gurney/{source.name}", lambda entry: entry.name != "__pycache__")
    for metadata in Path(sysconfig.get_path("purelib")).glob("gurney-*.dist-info"):
        tree.files[f"{PACKAGES}/gurney/{metadata.name}/METADATA"] = metadata / "METADATA"
        tree.files[f"{PACKAGES}/gurney/{metadata.name}/entry_points.txt"] = metadata / "entry_points.txt"
    tree.files[f"{PACKAGES}/health.py"] = ROOT / "compose" / "health.py"
    start = "#!/usr/local/bin/python -P\nimport sys\nfrom gurney.cli import main\nsys.exit(main())\n"
    tree.text("/usr/local/bin/gurney", start, 0o755)
    recipe = (ROOT / "compose" / "Dockerfile").read_text("utf-8")
    config = [
        f"ENV PYTHONPATH={PACKAGES}/gurney:{PACKAGES}/packages PATH=/usr/local/bin:/usr/bin:/bin PYTHONUNBUFFERED=1",
        "ENV SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt",
        f'RUN ["python", "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", "{PACKAGES}/gurney"]',
        *[line for line in recipe.splitlines() if line.startswith(("HEALTHCHECK ", "USER ", "ENTRYPOINT "))],
    ]
    return Image(tree, config, [f"{PACKAGES}/packages", f"{PACKAGES}/gurney"])


def ct_body() -> Image:
    """Return the sample MAP as an image: the application where its manifest says, the manifests in /etc/holoscan."""
    tree = Tree()
    python(tree)
    people(tree, "holoscan:x:1000:1000::/nonexistent:/bin/false")
    packages(tree, project()["optional-dependencies"]["samples"], f"{PACKAGES}/packages")
    sample = ROOT / "samples" / "ct-body"
    for name in ("app.json", "pkg.json"):
        tree.files[f"/etc/holoscan/{name}"] = sample / name
    tree.files["/var/holoscan/app.py"] = sample / "app.py"
    tree.folder(sample / "ct_body", "/var/holoscan/ct_body", lambda entry: entry.suffix == ".py")
    config = [
        f"ENV PYTHONPATH={PACKAGES}/packages PATH=/usr/local/bin:/usr/bin:/bin",
        "WORKDIR /var/holoscan",
        "USER 1000:1000",
        'CMD ["python", "app.py"]',
    ]
    return Image(tree, config, [f"{PACKAGES}/packages", "/var/holoscan"])


PATH = "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#: Made only when asked for by name.
SAMPLES = ("ct-body",)
#: Name of a public image -> how its stand-in is made.
RECIPES: dict[str, Callable[[], Image]] = {
    "gurney": gurney,
    "ct-body": ct_body,
    "nats": server("nats-server", "/usr/local/bin/nats-server", PATH, 'CMD ["nats-server"]'),
    "mongo": server("mongod", "/usr/bin/mongod", PATH, 'CMD ["mongod"]', bash=True),
    "minio/minio": server("minio", "/usr/bin/minio", PATH, 'ENTRYPOINT ["minio"]', bash=True),
    "jaegertracing/all-in-one": server(
        "jaeger", "/go/bin/all-in-one-linux", PATH, 'ENTRYPOINT ["/go/bin/all-in-one-linux"]'
    ),
    "prom/prometheus": server("prometheus", "/bin/prometheus", PATH, 'ENTRYPOINT ["/bin/prometheus"]'),
    "caddy": server("caddy", "/usr/bin/caddy", PATH, 'CMD ["caddy", "run"]'),
}


def dockerfile(image: Image, digest: str) -> str:
    """Return the recipe that puts a tree into layers."""
    copies = [f"COPY root{folder} {folder}" for folder in image.layers]
    return "\n".join(["FROM scratch", "COPY base/ /", *copies, f"LABEL {LABEL}={digest}", *image.config, ""])


def present(tag: str) -> str:
    """Return the digest of files that an image here was made from; empty when it is none of ours."""
    asked = subprocess.run(
        ["docker", "image", "inspect", "--format", "{{json .Config.Labels}}", tag],
        capture_output=True,
        text=True,
        check=False,
    )
    if asked.returncode:
        return "absent"
    return str((json.loads(asked.stdout) or {}).get(LABEL, ""))


def build(tag: str, image: Image) -> str:
    """Make an image unless it is there as it would become; return what was done."""
    digest = image.tree.digest(*image.config, *image.layers)
    there = present(tag)
    if there == digest:
        return "is as it was"
    if there == "":
        return "is not from here: left alone"
    with tempfile.TemporaryFile() as context:
        image.tree.tar(context, dockerfile(image, digest), image.layers)
        context.seek(0)
        command = ["docker", "build", "--quiet", "--force-rm", "--network", "none", "--tag", tag, "-"]
        legacy = os.environ | {"DOCKER_BUILDKIT": "0"}
        done = subprocess.run(command, stdin=context, env=legacy, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"images: {tag}: {done.stderr.strip()}")
    return "made"


def images() -> dict[str, str]:
    """Return the images that the compose file names: name -> name with tag."""
    tags = IMAGE.findall((ROOT / "compose" / "compose.yaml").read_text("utf-8"))
    return {tag.partition(":")[0]: tag for tag in tags}


def main(names: list[str]) -> None:
    known = images()
    wanted = names or [*known]
    known |= {sample: f"{sample}:latest" for sample in SAMPLES}
    if wrong := set(wanted) - set(known):
        sys.exit(f"images: there is no {', '.join(sorted(wrong))}: {' '.join(known)}")
    for name in wanted:
        print(f"{known[name]} {build(known[name], RECIPES[name]())}", flush=True)
    # Images of ours that lost their name to a newer one.
    subprocess.run(
        ["docker", "image", "prune", "--force", "--filter", f"label={LABEL}"], capture_output=True, check=False
    )


if __name__ == "__main__":
    main(sys.argv[1:])
