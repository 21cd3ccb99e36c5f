"""The page for people shows all that an OpenAPI document knows. Its script runs in Node, with hardly a page around."""

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
from services.inference_server import openapi as facade
from services.inference_server.routes import PRIVATE, PUBLIC, VERSION_2

NODE = shutil.which("node")
API: dict[str, Any] = json.loads(json.dumps(openapi.document(ROUTES)))
FACADE = {
    "public": facade.document("public", PUBLIC),
    "private": facade.document("private", PRIVATE),
    "v2": facade.document("v2", VERSION_2),
}
SCHEMAS: dict[str, Any] = API["components"]["schemas"]

#: What a browser gives to the script, and what a reader does: he opens one thing after another, down to this depth.
BROWSER = r"""
const DEPTH = 8;
class Node_ {
  constructor(tag) { Object.assign(this, {tag, children: [], heard: {}, textContent: "", value: ""}); }
  append(...more) { this.children.push(...more); }
  replaceChildren(...more) { this.children = more; }
  addEventListener(name, heard) { this.heard[name] = heard; }
  get childElementCount() { return this.children.filter((each) => each instanceof Node_).length; }
}
const given = JSON.parse(require("fs").readFileSync(0, "utf-8"));
const known = {};
globalThis.sessionStorage = { getItem: () => given.token || null, setItem: () => null };
globalThis.document = {
  createElement: (tag) => new Node_(tag),
  getElementById: (id) => known[id] ??= new Node_(id),
  querySelector: (selector) => known[selector] ??= new Node_(selector),
};
const sent = [];
globalThis.fetch = async (url, request) => {
  const body = request && request.body instanceof FormData ? [...request.body.keys()] : request && request.body;
  if (request) sent.push({ url, ...request, body });
  const headers = new Headers({ "Content-Type": "application/json" });
  return { json: async () => given.api, status: 200, statusText: "", headers };
};
const below = (node) => node instanceof Node_ ? [node, ...node.children.flatMap(below)] : [];
// Fills in a route's form, in the order of its fields, and sends it.
async function send(route) {
  route.heard.toggle();
  const form = below(route).find((each) => each.tag === "form");
  const fields = below(form).filter((each) => each.tag === "input" || each.tag === "textarea");
  fields.forEach((each, at) => {
    if (each.type === "file") each.files = given.fill[at] ? [new Blob(["zip"])] : [];
    else each.value = given.fill[at];
  });
  await form.heard.submit({ preventDefault() {} });
}
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
setTimeout(async () => {
  const routes = known.routes.children.flatMap((noun) => noun.children.slice(1));
  const route = given.fill && routes.find((each) => route_of(each) === given.route);
  if (route) await send(route);
  console.log(JSON.stringify({
    sent, title: known.title.textContent, about: known.about.textContent, hidden: known.access.hidden,
    label: (known["label[for=token]"] || {}).textContent,
    routes: given.fill ? [] : routes.map((route) => read(route, 0)),
  }));
}, 0);
function route_of(details) {
  const [method, path] = details.children[0].children.map((each) => each.textContent);
  return `${method} ${path}`;
}
"""


@pytest.fixture(scope="module")
def routes() -> list[str]:
    """What a reader sees of each route when he has opened all there is."""
    return texts(opened(API))


def opened(api: Any, **given: Any) -> dict[str, Any]:
    """Return what the page shows of an API; with `route` and `fill`, what it sends when that is tried."""
    if NODE is None:
        pytest.skip("the page's script needs Node to run outside a browser")
    match = re.search(r"<script>(.*)</script>", PAGE.read_text("utf-8"), re.DOTALL)
    assert match is not None
    told = json.dumps({"script": match[1], "api": api, **given})
    done = subprocess.run([NODE, "-e", BROWSER], input=told, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    page: dict[str, Any] = json.loads(done.stdout)
    return page


def texts(page: dict[str, Any]) -> list[str]:
    return [" ".join(text.split()) for text in page["routes"]]


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


@pytest.mark.parametrize("listener", FACADE)
def test_the_page_of_a_listener(listener: str) -> None:
    """Who opens it reads whose routes these are, what each takes and answers, and is asked for a token that counts."""
    page = opened(FACADE[listener])
    assert page["title"] == f"InferenceServer, {listener}"
    assert page["about"]
    assert page["hidden"] == (listener != "v2")
    assert page.get("label") == ("X-Token; it stays in this tab" if listener == "v2" else None)
    shown = texts(page)
    assert len(shown) == sum(map(len, FACADE[listener]["paths"].values()))
    posted = of(shown, "POST", "/api/tasks/")
    assert ("tar_file (file)" if listener == "v2" else "zip_file (file)") in posted
    assert "550 Model not found" in posted
    assert "container_tag (query, string)" in of(shown, "POST", "/api/models/")
    assert "Needs no token." in posted
    assert ("Needs X-Token." in of(shown, "POST", "/api/models/")) == (listener == "v2")


@pytest.mark.parametrize(
    ("api", "route", "fill", "wanted"),
    [
        ("public", "POST /api/tasks/", ["a b/c", "file"],
         {"url": "/api/tasks/?model_human_readable_id=a+b%2Fc", "method": "POST", "headers": {}, "body": ["zip_file"]}),
        ("public", "POST /api/models/", ["image:1", "x", "", "", "False", None],
         {"url": "/api/models/?container_tag=image%3A1&human_readable_id=x&use_gpu=False", "method": "POST",
          "headers": {}}),
        ("private", "GET /api/models/human_readable_id/{name}", ["a b/c"],
         {"url": "/api/models/human_readable_id/a%20b%2Fc", "method": "GET", "headers": {}}),
        ("v2", "POST /api/tasks/", ["x", "file"],
         {"url": "/api/tasks/?human_readable_id=x", "method": "POST", "headers": {"X-Token": "secret"},
          "body": ["tar_file"]}),
    ],
)  # fmt: skip
def test_what_is_tried_is_sent_as_the_listener_takes_it(
    api: str, route: str, fill: list[str | None], wanted: dict[str, Any]
) -> None:
    """A file goes as the part of its name, what is left empty does not go, and a token where there is one."""
    page = opened(FACADE[api], route=route, fill=fill, token="secret")
    (sent,) = page["sent"]
    assert {key: value for key, value in sent.items() if value is not None} == wanted


def test_a_token_of_the_edge_is_sent_as_one() -> None:
    """As the bearer's, with a JSON body where there is one."""
    page = opened(API, route="POST /v1/tokens", fill=['{"subject": "x"}'], token="gurney_x")
    (sent,) = page["sent"]
    assert sent["headers"] == {"Authorization": "Bearer gurney_x", "Content-Type": "application/json"}
    assert sent["body"] == '{"subject": "x"}'
