"""The page for people shows all that the OpenAPI document knows. Its script runs in Node, with hardly a page around."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from gurney.docs_page import PAGE
from services.edge import openapi
from services.edge.routes import ROUTES

NODE = shutil.which("node")
API: dict[str, Any] = json.loads(json.dumps(openapi.document(ROUTES)))
SCHEMAS: dict[str, Any] = API["components"]["schemas"]

#: What a browser gives to the script, and what a reader does: he opens one thing after another, down to this depth.
BROWSER = r"""
const DEPTH = 8;
class Node_ {
  constructor(tag) { Object.assign(this, {tag, children: [], heard: {}, textContent: ""}); }
  append(...more) { this.children.push(...more); }
  replaceChildren(...more) { this.children = more; }
  addEventListener(name, heard) { this.heard[name] = heard; }
  get childElementCount() { return this.children.filter((each) => each instanceof Node_).length; }
}
const given = JSON.parse(require("fs").readFileSync(0, "utf-8"));
const known = {};
globalThis.sessionStorage = { getItem: () => null, setItem: () => null };
globalThis.document = {
  createElement: (tag) => new Node_(tag),
  getElementById: (id) => known[id] ??= new Node_(id),
  querySelector: (selector) => new Node_(selector),
};
globalThis.fetch = async () => ({ json: async () => given.api });
function read(node, depth) {
  if (!(node instanceof Node_)) return String(node);
  if (node.tag === "details") {
    if (depth === DEPTH) return "";
    if (node.heard.toggle) node.heard.toggle();
    depth += 1;
  }
  return [node.textContent, ...node.children.map((each) => read(each, depth))].join(" ");
}
(0, eval)(given.script);
setTimeout(() => console.log(JSON.stringify(
  known.routes.children.flatMap((noun) => noun.children.slice(1)).map((route) => read(route, 0)))), 0);
"""


@pytest.fixture(scope="module")
def routes() -> list[str]:
    """What a reader sees of each route when he has opened all there is."""
    if NODE is None:
        pytest.skip("the page's script needs Node to run outside a browser")
    match = re.search(r"<script>(.*)</script>", PAGE.read_text("utf-8"), re.DOTALL)
    assert match is not None
    told = json.dumps({"script": match[1], "api": API})
    done = subprocess.run([NODE, "-e", BROWSER], input=told, capture_output=True, text=True, timeout=30, check=True)
    return [" ".join(text.split()) for text in json.loads(done.stdout)]


def of(routes: list[str], method: str, path: str) -> str:
    """Return what is shown of one route."""
    return next(text for text in routes if text.startswith(f"{method} {path} "))


def reachable(node: Any, seen: frozenset[str] = frozenset()) -> Iterator[str]:
    """Iterate over the names of all fields that a schema has, at any depth."""
    match node:
        case {"$ref": str(reference)} if reference not in seen:
            yield from reachable(SCHEMAS[reference.rpartition("/")[2]], seen | {reference})
        case dict():
            yield from node.get("properties", {})
            for value in node.values():
                yield from reachable(value, seen)
        case list():
            for value in node:
                yield from reachable(value, seen)


def test_every_field_is_shown_at_any_depth(routes: list[str]) -> None:
    """Whatever a body or an answer holds, however deep, has its name on the page."""
    operations = [(path, method, each) for path, methods in API["paths"].items() for method, each in methods.items()]
    assert len(routes) == len(operations)
    for path, method, operation in operations:
        wanted = set(reachable(operation.get("requestBody"))) | set(reachable(operation["responses"]))
        assert wanted - set(of(routes, method.upper(), path).split()) == set(), path


def test_the_resources_of_a_job_are_told(routes: list[str]) -> None:
    """Who submits a job reads what resources he may ask for, and that labels are texts."""
    shown = of(routes, "POST", "/v1/jobs")
    assert "shared_memory integer or null" in shown
    assert "labels map of string" in shown
