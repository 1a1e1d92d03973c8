"""openapi.yaml is right, whole, what the service serves, and good enough to make a client of.

That every answer of every test conforms to it is checked by the fixture "exchanges" (conftest.py);
here the checker itself is checked: it must find what is wrong with wrong exchanges.
"""
import contextlib
import copy
import dataclasses
import fcntl
import json
import os
import re
import shutil
import subprocess

import pytest
import yaml

import harness
import spec
from harness import JSON, NDJSON, PROBLEM, TEXT

CLIENT = harness.ROOT / "tests/system/client"
ID = "b_01m83fnkjzsyhjfpgb5s5229y94ns1f6vw7r"
BATCH = f"/v1/batches/{ID}"


# ---- the document ----

def walk(node, path=""):
    """Every node of the document with its path."""
    yield path, node
    if isinstance(node, (dict, list)):
        for k, v in node.items() if isinstance(node, dict) else enumerate(node):
            yield from walk(v, f"{path}/{k}")


def schemas():
    """The outermost schemas, with their paths, and whether each is one line of its media type."""
    for path, node in walk(spec.document()):
        if not isinstance(node, dict) or "/example" in path:
            continue
        for key in ("schema", "x-oai-itemSchema"):
            if key in node:
                yield f"{path}/{key}", node[key]
        if path == "/components/schemas":
            for name, schema in node.items():
                yield f"{path}/{name}", schema


def subschemas(schema, path):
    yield path, schema
    if not isinstance(schema, dict):
        return
    for key in ("items", "not", "if", "then", "else", "propertyNames", "additionalProperties"):
        if key in schema:
            yield from subschemas(schema[key], f"{path}/{key}")
    for key in ("allOf", "anyOf", "oneOf"):
        for i, sub in enumerate(schema.get(key, [])):
            yield from subschemas(sub, f"{path}/{key}/{i}")
    for key in ("properties", "dependentSchemas"):
        for name, sub in schema.get(key, {}).items():
            yield from subschemas(sub, f"{path}/{key}/{name}")


def test_no_keyword_is_misspelt():
    """A validator passes over keywords that it does not know."""
    known = set("""$ref type description properties required additionalProperties propertyNames
        maxProperties items minItems maxItems uniqueItems enum const minimum maximum minLength maxLength pattern
        format contentEncoding default examples oneOf anyOf allOf if then else dependentRequired
        dependentSchemas""".split())
    seen = 0
    for path, schema in schemas():
        for where, sub in subschemas(schema, path):
            seen += 1
            if isinstance(sub, dict):
                assert set(sub) <= known, f"{where}: {set(sub) - known}"
                assert sub.get("format") is None or sub["format"] in spec.FORMATS.checkers, where
                assert isinstance(sub.get("required", []), list), where
        spec.Validator.check_schema(spec.inline(schema))
    assert seen > 300


def test_objects_have_no_undocumented_members():
    """Every object says what else it may have: nothing, or values of a schema."""
    for name, schema in spec.document()["components"]["schemas"].items():
        if schema.get("type") == "object":
            assert "additionalProperties" in schema, name
            assert schema["additionalProperties"] is not True, name
    for path, node in walk(spec.document()):
        if path.startswith("/components/schemas") and path.endswith("/properties"):
            parent = path.rsplit("/", 1)[0]
            # Branches only narrow what the schema around them lists.
            branch = re.search(r"/(if|then|else|allOf/\d+|dependentSchemas/\w+)$", parent)
            assert branch or "additionalProperties" in resolve(parent), path


def resolve(path):
    node = spec.document()
    for part in path.split("/")[1:]:
        node = node[int(part) if isinstance(node, list) else part.replace("~1", "/")]
    return node


def test_every_example_is_valid():
    seen = 0

    def check(schema, value, path):
        nonlocal seen
        seen += 1
        why = spec.Schema(spec.inline(schema)).why_not(value)
        assert why is None, f"{path}: {why}"

    for path, node in walk(spec.document()):
        if not isinstance(node, dict) or "/example" in path:
            continue
        if "/content/" in path and path.rsplit("/content/", 1)[1].count("/") <= 1 and \
                ("example" in node or isinstance(node.get("examples"), dict)):
            values = [node["example"]] if "example" in node else \
                [e["value"] for e in node["examples"].values()]
            for value in values:
                check(node["schema"], value, path)
                if "x-oai-itemSchema" in node:
                    lines = value.splitlines()
                    assert lines
                    for line in lines:
                        check(node["x-oai-itemSchema"], json.loads(line), path)
        elif "schema" in node and "example" in node:  # a parameter or a header
            check(node["schema"], node["example"], path)
    for path, schema in schemas():
        for where, sub in subschemas(schema, path):
            for value in sub.get("examples", []) if isinstance(sub, dict) else []:
                check(sub, value, where)
    assert seen >= 45, f"only {seen} examples were found"


def test_every_operation_is_described():
    names = set()
    for path, methods in spec.operations().items():
        for method, op in methods.items():
            raw = spec.document()["paths"][path][method.lower()]
            assert raw["summary"] and raw["description"] and len(raw["tags"]) == 1, op.name
            names.add(op.name)
            placeholders = set(re.findall(r"{(\w+)}", path))
            assert placeholders == {p["name"] for p, _ in op.parameters if p["in"] == "path"}
            # What any request may be answered with.
            assert {"400", "403", "413", "421", "422", "500", "503"} <= set(op.responses), op.name
            for status, response in op.responses.items():
                assert {"cache-control", "x-content-type-options"} <= set(response.headers)
                problem = list(response.bodies) == [PROBLEM]
                assert problem == (int(status) >= 400), (op.name, status)
    assert len(names) == sum(map(len, spec.operations().values()))


def c_table(path, macro):
    """The rows of an X macro table of ours."""
    text = (harness.ROOT / path).read_text()
    body = re.search(rf"#define {macro}\(X\)(.*?[^\\])\n", text, re.S)[1]
    return [[c.strip().strip('"') for c in row.split(",")]
            for row in re.findall(r"X\((.*?)\)", body)]


def test_the_names_of_errors_and_problems_are_those_of_the_code():
    components = spec.document()["components"]["schemas"]
    codes = {row[2] for row in c_table("server/outcome.h", "OUTCOMES")} - {""}
    assert codes == set(components["ErrorCode"]["enum"])
    problems = {row[1]: int(row[2]) for row in c_table("api/problem.h", "PROBLEM_TYPES") if row[1]}
    assert {f"/problems/{name}" for name in problems} == \
        set(components["Problem"]["properties"]["type"]["enum"])
    # Each is documented with its own status.
    found = set()
    for path, node in walk(spec.document()):
        if path.endswith("/allOf/1/properties") and "type" in node and "const" in \
                node.get("status", {}):
            for name in node["type"].get("enum", [node["type"].get("const")]):
                found.add((name.removeprefix("/problems/"), node["status"]["const"]))
    assert found == set(problems.items())


# ---- what the service says about itself ----

def test_routes_are_those_of_the_document():
    listed = subprocess.run([harness.BINARY, "--list-routes"], capture_output=True, text=True,
                            check=True, timeout=60).stdout
    documented = {f"{method} {path}" for path, methods in spec.operations().items()
                  for method in methods}
    assert sorted(listed.splitlines()) == sorted(documented)


def test_the_document_is_served(service):
    text = spec.SPEC.read_bytes()
    answer = service.get("/openapi.yaml", keep=1024).expect(200)
    assert answer.header("Content-Type") == "application/yaml"
    assert answer.body == text
    answer = service.get("/openapi.json", keep=1024).expect(200)
    assert answer.json() == yaml.safe_load(text)
    for path in ("/openapi.yaml", "/openapi.json"):
        head = service.request("HEAD", path).expect(200)
        assert head.body == b"" and int(head.header("Content-Length")) > 10000


# ---- the checker finds what is wrong ----

@dataclasses.dataclass
class Exchange:
    method: str
    path: str
    request_headers: list
    request_body: object
    status: int
    headers: list
    body: bytes
    raw: bool = False

    def but(self, **changes):
        return dataclasses.replace(copy.deepcopy(self), **changes)

    def header(self, name, value):
        """With this header; None: without it."""
        kept = [(n, v) for n, v in self.headers if n.lower() != name.lower()]
        return self.but(headers=kept + ([] if value is None else [(name, value)]))

    def doc(self, change):
        """With its JSON body changed in place."""
        doc = json.loads(self.body)
        change(doc)
        return self.but(body=json.dumps(doc).encode()).header("Content-Length", None)


ALWAYS = [("X-Content-Type-Options", "nosniff"), ("Cache-Control", "no-store")]


def example(path, method, status, media=JSON, name=None):
    content = spec.document()["paths"][path][method]["responses"][status]["content"][media]
    return content["examples"][name]["value"] if name else content["example"]


def accepted(path="/v1/batches", body=None, media=JSON, **more):
    body = json.dumps({"urls": ["http://a.example/"]}).encode() if body is None else body
    answer = json.dumps(example("/v1/batches", "post", "202")).encode()
    return Exchange("POST", path, [("Content-Type", media)], body, 202,
                    [("Content-Type", JSON), ("Location", BATCH), *ALWAYS], answer, **more)


def got_batch(change=None):
    doc = example("/v1/batches/{id}", "get", "200")
    x = Exchange("GET", BATCH, [], None, 200,
                 [("Content-Type", JSON), ("ETag", 'W/"1"'), ("Cache-Control", "no-cache"),
                  ("X-Content-Type-Options", "nosniff")], json.dumps(doc).encode())
    return x.doc(change) if change else x


def got_page(change=None, query=""):
    doc = example("/v1/batches/{id}/results", "get", "200", name="page")
    x = Exchange("GET", f"{BATCH}/results{query}", [], None, 200,
                 [("Content-Type", JSON), *ALWAYS], json.dumps(doc).encode())
    return x.doc(change) if change else x


def got_lines(*lines):
    return got_page().but(body=b"".join(json.dumps(line).encode() + b"\n" for line in lines)) \
        .header("Content-Type", NDJSON)


def got_problem(status=404, path=BATCH, name="not-found", media=PROBLEM, method="GET", extra=()):
    doc = {"type": f"/problems/{name}", "title": "T", "status": status, "detail": "d"}
    return Exchange(method, path, [], None, status,
                    [("Content-Type", media), *ALWAYS, *extra], json.dumps(doc).encode())


def got_body(status=200, body=b"hello", media="text/plain", extra=()):
    return Exchange("GET", f"{BATCH}/results/7/body", [], None, status, [
        ("Content-Type", media), ("Accept-Ranges", "bytes"), ("ETag", f'"{ID}-7"'),
        ("Content-Disposition", 'attachment; filename="7"'), ("Referrer-Policy", "no-referrer"),
        ("Content-Security-Policy", "sandbox; default-src 'none'"),
        ("Cross-Origin-Resource-Policy", "same-origin"), ("Cache-Control", "private, no-cache"),
        ("X-Content-Type-Options", "nosniff"), *extra], body)


def no_such_part():
    path = "/v1/batches/{id}/results/{index}/body"
    raw = spec.inline(spec.document()["paths"][path]["get"])["responses"]["416"]
    return got_problem(416, f"{BATCH}/results/7/body", "range-not-satisfiable",
                       extra=[("Content-Range", "bytes */5000")]).but(
                           body=json.dumps(raw["content"][PROBLEM]["example"]).encode())


def result(**changes):
    page = example("/v1/batches/{id}/results", "get", "200", name="page")
    return {**copy.deepcopy(page["data"][0]), **changes}


def without(member):
    return lambda doc: doc.pop(member)


def with_(**members):
    return lambda doc: doc.update(members)


RIGHT = {
    "batch": got_batch(),
    "batch after waiting": got_batch().but(path=BATCH + "?wait=5"),
    "ended batch": got_batch(with_(status="completed", ended_at="2026-11-23T06:00:00.000Z",
                                   eta_s=None, progress=1)),
    "not modified": got_batch().but(status=304, body=b""),
    "HEAD": got_batch().but(method="HEAD", body=b""),
    "page": got_page(),
    "page by include": got_page(lambda d: [r.update(headers={"a": ["b"]}) for r in d["data"]],
                                "?include=headers&limit=5&order=index"),
    "lines": got_lines(result(), result(index=1)),
    "no lines": got_lines(),
    "submission": accepted(),
    "replay": accepted().header("Idempotent-Replayed", "true"),
    "submission, streamed": accepted(body=b"").but(request_body=None),
    "submission with numbers as JSON allows": accepted(
        body=b'{"urls": ["x"], "max_redirects": 1.0, "limits": {"max_parallel": 1e3}}'),
    "lines submitted": accepted("/v1/batches?name=n&metadata.a%20b=1&limits.max_per_host=4"
                                "&limits.rate_per_host=0.5&priority=0&retry.on_status=429,503",
                                b'\xef\xbb\xbf"http://a.example/"\n\n {"url": "x"} \r\n', NDJSON),
    "text submitted": accepted("/v1/batches?defaults.headers.X-A=%20b&ignore_invalid_urls=true",
                               b"# a\nhttp://a.example/", "text/plain; charset=\"UTF-8\""),
    "problem": got_problem(),
    "problem on HEAD": got_problem(method="HEAD").but(body=b""),
    "unknown path": got_problem(path="/nowhere"),
    "an index spelt otherwise": got_problem(path=f"{BATCH}/results/01"),
    "wrong method": got_problem(405, "/healthz", "method-not-allowed", method="PUT",
                                extra=[("Allow", "GET, HEAD, OPTIONS")]),
    "options": Exchange("OPTIONS", "/healthz", [], None, 204,
                        [("Allow", "GET, HEAD, OPTIONS"), *ALWAYS], b""),
    "busy": got_problem(503, name="busy", extra=[("Retry-After", "1")]),
    "library's own": Exchange("GET", "/healthz", [], None, 414, [("Connection", "close")],
                              b"<html>too long</html>"),
    "body": got_body(),
    "empty body": got_body(body=b""),
    "body with charset": got_body(media="text/plain; charset=utf-8"),
    "bytes that are not UTF-8": got_body(body=b"\xff\xfe", media="application/json"),
    "part": got_body(206, b"el", extra=[("Content-Range", "bytes 1-2/5")]),
    "no such part": no_such_part(),
    "no such part on HEAD": no_such_part().but(method="HEAD", body=b""),
}

WRONG = {
    # members
    "undocumented member": (got_batch(with_(secret=1)), "secret"),
    "undocumented member within": (got_batch(lambda d: d["limits"].update(x=1)), "'x'"),
    "missing member": (got_batch(without("eta_s")), "'eta_s' is a required property"),
    "missing member within": (got_page(lambda d: d["data"][1]["timing"].pop("dns_ms")), "dns_ms"),
    "wrong type": (got_batch(with_(bytes_received="1")), "is not of type 'integer'"),
    "fraction": (got_batch(with_(bytes_received=1.5)), "is not of type 'integer'"),
    "null": (got_batch(with_(metadata=None)), "is not of type 'object'"),
    "no null": (got_batch(with_(ended_at="2026-11-23T05:57:09.855Z")), "'null'"),
    "unknown status": (got_batch(with_(status="done")), "is not one of"),
    "out of range": (got_batch(with_(progress=1.01)), "maximum"),
    "time without milliseconds": (got_batch(with_(created_at="2026-11-23T05:57:09Z")), "date-time"),
    "time of no day": (got_batch(with_(created_at="2026-02-30T05:57:09.855Z")), "date-time"),
    "time elsewhere": (got_batch(with_(created_at="2026-11-23T05:57:09.855+01:00")), "date-time"),
    "other id": (got_batch(with_(id="batch-1")), "does not match"),
    "success with an error": (got_lines(result(error={"code": "dns", "message": "m",
                                                      "retryable": True})), "null"),
    "failure without an error": (got_lines(result(status="failed", http_status=500)), "object"),
    "success of 404": (got_lines(result(http_status=404)), "maximum"),
    "unknown code": (got_lines(result(status="failed", error={
        "code": "oops", "message": "m", "retryable": False})), "'oops'"),
    "not base64": (got_page(lambda d: d["data"][0].update(body_base64="a"), "?include=body"),
                   "is not base64"),
    "body twice": (got_page(lambda d: d["data"][0].update(body="a", body_base64="YQ=="),
                            "?include=body"), "body_base64"),
    "no address": (got_lines(result(remote_ip="somewhere")), "somewhere"),
    "header name in capitals": (got_page(lambda d: [r.update(headers={"A": ["b"]})
                                                    for r in d["data"]], "?include=headers"),
                                "does not match"),
    "no cursor although there is more": (got_page(with_(has_more=True, next=None)), "string"),
    "undocumented member in line 300": (got_lines(
        *[result(index=i) for i in range(299)], result(index=300, extra=1),
        *[result(index=i) for i in range(301, 700)]), "extra"),
    "wrong type in line 300": (got_lines(
        *[result(index=i) for i in range(299)], result(index=300, attempts="1"),
        *[result(index=i) for i in range(301, 700)]), "integer"),
    "undocumented problem member": (got_problem().doc(with_(instance="/x")), "instance"),
    "problem without detail": (got_problem().doc(without("detail")), "detail"),
    "problem of another type": (got_problem(name="no-body"), "not '/problems/no-body'"),
    "problem of another status": (got_problem().doc(with_(status=400)), "404 was expected"),
    "fault without detail": (got_problem().doc(with_(errors=[{"line": 1}])), "detail"),
    # JSON
    "no JSON": (got_batch().but(body=b"{"), "is not JSON"),
    "member twice": (got_batch().but(body=b'{"id":1,' + got_batch().body[1:]), "twice"),
    "no number": (got_batch().but(body=got_batch().body.replace(b"310.5", b"NaN")), "NaN"),
    "no UTF-8": (got_batch().but(body=got_batch().body.replace(b"nightly", b"\xff")), "JSON"),
    "line without end": (got_lines(result()).but(body=json.dumps(result()).encode()), "no end"),
    "broken line": (got_lines(result()).but(body=b'{"index":\n'), "is not JSON"),
    # status, content type, headers
    "undocumented status": (got_batch().but(status=201), "status 201 is not documented"),
    "undocumented error": (got_problem(409, name="conflict"), "status 409 is not documented"),
    "404 where all is there": (got_problem(path="/healthz"), "status 404 is not documented"),
    "200 at an unknown path": (got_batch().but(path="/nowhere"), "status 200"),
    "200 of a wrong method": (got_batch().but(method="PUT"), "status 200"),
    "wrong content type": (got_batch().header("Content-Type", "text/html"), "content type"),
    "content type with charset": (got_batch().header("Content-Type", JSON + "; charset=utf-8"),
                                  "parameter"),
    "no content type": (got_batch().header("Content-Type", None), "0 Content-Types"),
    "problem as JSON": (got_problem(media=JSON), "content type"),
    "body of an active type": (got_body(media="text/html"), "content type"),
    "missing header": (got_batch().header("ETag", None), "header ETag is missing"),
    "wrong header": (got_batch().header("ETag", '"1"'), "header ETag"),
    "header twice": (got_batch().but(headers=got_batch().headers + [("etag", 'W/"1"')]), "2 times"),
    "undocumented header": (got_body(extra=[("X-Batchfetch-Content-Type", "a")]), "undocumented"),
    "not nosniff": (got_body().header("X-Content-Type-Options", None), "X-Content-Type-Options"),
    "other cache control": (got_body().header("Cache-Control", "public"), "Cache-Control"),
    "no Retry-After": (got_problem(503, name="busy"), "Retry-After"),
    "wrong Retry-After": (got_problem(503, name="busy", extra=[("Retry-After", "soon")]), "number"),
    "405 without Allow": (got_problem(405, "/healthz", "method-not-allowed", method="PUT"),
                          "Allow"),
    "no Location": (accepted().header("Location", None), "Location"),
    "wait too long": (got_batch().header("Preference-Applied", "wait=61"), "Preference-Applied"),
    "part without range": (got_body(206), "Content-Range"),
    "part of another size": (got_body(206, b"e", extra=[("Content-Range", "bytes 1-2/5")]),
                             "1 bytes"),
    "no such part without content": (no_such_part().but(body=b""), "is not JSON"),
    "no such part, but no size": (no_such_part().header("Content-Range", None), "Content-Range"),
    "no such part, but a range": (no_such_part().header("Content-Range", "bytes 0-4/5"),
                                  "header Content-Range"),
    "no such part as the body was": (got_body(416, b"", extra=[("Content-Range", "bytes */5")]),
                                     "header Cache-Control"),
    "no such part of a known body": (no_such_part().header("ETag", f'"{ID}-7"'), "undocumented"),
    "no such part to be kept": (no_such_part().header("Cache-Control", "private, no-cache"),
                                "header Cache-Control"),
    "no such part, another problem": (no_such_part().doc(with_(type="/problems/bad-request")),
                                      "not '/problems/bad-request'"),
    "length": (got_batch().header("Content-Length", "1"), "Content-Length"),
    "304 with a body": (got_batch().but(status=304), "no body"),
    "HEAD with a body": (got_batch().but(method="HEAD"), "HEAD"),
    "the library's 400 to a right request": (Exchange(
        "GET", "/healthz", [], None, 400, [], b"<html>bad</html>"), "missing"),
    # what was accepted
    "unknown member accepted": (accepted(body=b'{"urls": ["x"], "timeout": 1}'), "accepted|valid"),
    "nothing accepted": (accepted(body=b'{"urls": []}'), "request body"),
    "both accepted": (accepted(body=b'{"urls": ["x"], "requests": [{"url": "x"}]}'),
                      "request body"),
    "bad bound accepted": (accepted(body=b'{"requests": [{"url": "x", "timeout_ms": 0}]}'),
                           "request body"),
    "body of a GET accepted": (accepted(
        body=b'{"requests": [{"url": "x", "method": "GET", "body": ""}]}'), "request body"),
    "two bodies accepted": (accepted(body=b'{"requests": [{"url": "x", "method": "PUT", '
                                          b'"body": "", "body_base64": ""}]}'), "request body"),
    "header with a line end accepted": (accepted(
        body=b'{"requests": [{"url": "x", "headers": {"a": "b\\r\\nc"}}]}'), "request body"),
    "malformed line accepted": (accepted(body=b'"x"\n{"url": 5}\n', media=NDJSON), "request body"),
    "other type accepted": (accepted(media="text/csv"), "text/csv"),
    "other charset accepted": (accepted(media="text/plain; charset=latin1", body=b"x"), "latin1"),
    "no type accepted": (accepted().but(request_headers=[]), "0 Content-Types"),
    "query with JSON accepted": (accepted("/v1/batches?name=x"), "query parameters"),
    "bad key accepted": (accepted().but(request_headers=[
        ("Content-Type", JSON), ("Idempotency-Key", "a b")]), "Idempotency-Key"),
    "unknown parameter accepted": (got_batch().but(path=BATCH + "?x=1"), "undocumented"),
    "unknown setting accepted": (accepted("/v1/batches?urls=x", b"x", TEXT), "undocumented"),
    "parameter twice accepted": (got_batch().but(path=BATCH + "?wait=1&wait=1"), "2 times"),
    "wait over its bound accepted": (got_batch().but(path=BATCH + "?wait=61"), "maximum"),
    "no number accepted": (got_batch().but(path=BATCH + "?wait=x"), "whole number"),
    "bad setting accepted": (accepted("/v1/batches?ignore_invalid_urls=1", b"x", TEXT), "neither"),
    "bad id accepted": (got_batch().but(path="/v1/batches/x"), "path parameter id"),
    # what was asked for
    "headers that no one asked for": (got_page(lambda d: d["data"][0].update(headers={})),
                                    "headers"),
    "no headers although asked for": (got_page(query="?include=headers"), "headers"),
    "no body although asked for": (got_page(query="?include=body"), "a body"),
    "more than the limit": (got_page(query="?limit=1"), "limit"),
    "other results than asked for": (got_page(query="?status=failed"), "another status"),
    "not in order": (got_page(lambda d: d["data"].reverse(), "?order=index"), "order"),
}


@pytest.mark.parametrize("exchange", RIGHT.values(), ids=RIGHT.keys())
def test_the_checker_passes_what_is_right(exchange):
    spec.validate_exchange(exchange)


@pytest.mark.parametrize("exchange, message", WRONG.values(), ids=WRONG.keys())
def test_the_checker_finds_what_is_wrong(exchange, message):
    with pytest.raises(AssertionError, match=message) as caught:
        spec.validate_exchange(exchange)
    assert "against openapi.yaml" in str(caught.value)


# ---- many ways of asking ----

ASKED_WITH = [
    [], [("Accept", "application/x-ndjson")], [("Accept", "text/html")],
    [("Accept", "application/json;q=0.1, application/x-ndjson;q=0.5")],
    [("Range", "bytes=0-3")], [("Range", "bytes=5000-")], [("Range", "bytes=-5")],
    [("Range", "bytes=0-1,3-4")], [("Range", "lines=1-2")], [("Range", "bytes=0-1"),
                                                             ("If-Range", '"other"')],
    [("If-None-Match", "*")], [("If-None-Match", 'W/"x", "y"')],
    [("Prefer", "respond-async, wait=0")], [("Origin", "http://other.example")],
    [("Sec-Fetch-Site", "cross-site")], [("Host", "other.example")],
]


def test_whatever_is_asked_the_answer_is_documented(service, origin, exchanges):
    """Every path with results of every sort, every query, in many ways; the fixture judges."""
    urls = [origin.url(p) for p in (
        "/bytes/1000", "/text", "/status/404", "/status/204", "/redirect/3", "/loop", "/headers/5",
        "/gzip/5000", "/type?type=image%2Fpng", "/type?type=text%2Fhtml", "/type?type=",
        "/type?type=Text%2FPlain%3B%20charset%3D%22UTF-8%22")]
    urls += ["nonsense", "http://127.0.0.1:1/", "http://10.0.0.1/"]
    done = service.wait(service.submit(urls, ignore_invalid_urls=True, name="ü")["id"])["id"]
    slow = service.submit([origin.url("/delay/30")] * 3, limits={"max_parallel": 2})["id"]
    paths = ["/healthz", "/openapi.yaml", "/openapi.json", "/nowhere", "/v1/batches/none"]
    paths += ["/v1/batches" + q for q in (
        "", "?limit=1", "?status=completed", "?status=queued", "?status=x", "?limit=0", "?limit")]
    for batch in (done, slow):
        here = f"/v1/batches/{batch}"
        cursor = service.get(here + "/results?limit=2").json()["next"] or "none"
        paths += [here + p for p in (
            "", "?wait=0", "?wait=61", "/cancel", "/results", "/results?limit=3&order=index",
            "/results?include=body,headers", "/results?include=body&status=succeeded",
            "/results?include=all", "/results?status=failed", "/results?custom_id=x",
            "/results?limit=10001", f"/results?after={cursor}",
            f"/results?after={cursor}&order=index", "/results?wait=1", "/results/0?include=body",
            "/results/01", "/results/99", "/results/99/body")]
        paths += [f"{here}/results/{n}{p}" for n in range(len(urls)) for p in ("", "/body")]
    first = len(exchanges)
    for path in paths:
        for headers in ASKED_WITH:
            for method in ("GET", "HEAD"):
                service.request(method, path, headers=headers)
        for method in ("OPTIONS", "PUT", "PATCH", "BREW"):
            service.request(method, path)
    for verb in ("cancel", "pause", "resume"):
        service.post(f"/v1/batches/{done}/{verb}").expect(409)
    for verb in ("pause", "resume"):
        service.post(f"/v1/batches/{slow}/{verb}?x=1").expect(422)
        service.post(f"/v1/batches/{slow}/{verb}", b"x" * 65537).expect(413)
        service.post(f"/v1/batches/{slow}/{verb}").expect(200)
    service.post(f"/v1/batches/{slow}/cancel?x=1").expect(422)
    service.post(f"/v1/batches/{slow}/cancel", b"x" * 65537).expect(413)
    service.post(f"/v1/batches/{slow}/cancel", b"x" * 65536).expect(202)
    service.wait(slow)
    for path in ("/results?include=headers,body", "/results/0", "/results/0/body"):
        for headers in ASKED_WITH:
            service.get(f"/v1/batches/{slow}{path}", headers)
    service.request("DELETE", f"/v1/batches/{slow}", b"x" * 65537).expect(413)
    service.delete(f"/v1/batches/{slow}").expect(204)
    service.delete(f"/v1/batches/{slow}").expect(404)
    service.get("/" + "x" * 70000).expect(414)
    service.get("/healthz", {"X-Large": "x" * 70000}).expect(431)

    seen = {(x.method, x.status) for x in exchanges[first:]}
    for status in (200, 206, 304, 403, 404, 405, 406, 416, 421, 422):
        assert ("GET", status) in seen or ("PUT", status) in seen, status


# ---- lint, and the client made of the document ----

@contextlib.contextmanager
def build_lock():
    """Two runs of the tests must not write the same files at once."""
    (CLIENT / "build").mkdir(exist_ok=True)
    with open(CLIENT / "build/.lock", "w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="module")
def tools():
    """The npm packages of client/package-lock.json; -> run(program, *args)"""
    assert shutil.which("npm"), "npm is missing: install Node.js 18.17 or later"
    lock = CLIENT / "package-lock.json"
    assert b"resolved" not in lock.read_bytes(), "the lock file must name no registry"
    stamp = CLIENT / "node_modules/.installed"
    # Nothing from outside may change how programs behave, and none may call home.
    env = {k: v for k, v in os.environ.items() if not k.startswith(("NODE_", "npm_"))}
    env.update(REDOCLY_TELEMETRY="off", REDOCLY_SUPPRESS_UPDATE_NOTICE="true", NO_COLOR="1")

    def run(*command, timeout=300):
        done = subprocess.run(command, cwd=CLIENT, env=env, capture_output=True, text=True,
                              timeout=timeout)
        text = done.stdout + done.stderr
        assert done.returncode == 0, f"{command}: status {done.returncode}\n{text[-8000:]}"
        return text

    with build_lock():
        if not stamp.exists() or stamp.read_bytes() != lock.read_bytes():
            run("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error")
            shutil.copyfile(lock, stamp)
    return lambda program, *args: run(f"node_modules/.bin/{program}", *map(str, args))


def test_redocly_finds_no_fault(tools):
    text = tools("redocly", "lint", "--config", CLIENT.parent / "redocly.yaml", "--format=json",
                 spec.SPEC)
    report = json.loads(text[text.index("{\n"):text.rindex("}") + 1])
    assert report["totals"] == {"errors": 0, "warnings": 0, "ignored": 0}, report["problems"]


@pytest.fixture(scope="module")
def program(tools):
    """The client made of openapi.yaml, and a program that uses it, compiled."""
    with build_lock():
        tools("openapi-typescript", spec.SPEC, "--output", "build/api.ts")
        tools("tsc", "--project", ".", "--strict")
    return CLIENT / "build/js/main.js"


def test_a_generated_client_works(program, service, origin):
    done = subprocess.run(["node", program, service.url, origin.url("")], capture_output=True,
                          text=True, timeout=120 * harness.SLOWER)
    assert done.returncode == 0, done.stdout + done.stderr[-8000:]
    assert done.stdout == "everything works\n"
