"""Holds exchanges with the service against openapi.yaml.

validate_exchange(exchange) raises AssertionError when the answer is not one that openapi.yaml
describes for that request: another status, header, content type, a member too many, missing or of
the wrong type. What the service accepted must have been a right request, too.

An exchange has the attributes method, path (with query), request_headers (pairs), request_body
(bytes; None: none, or streamed), status, headers (pairs), body (bytes), and optionally raw (True:
sent as bytes that may be no correct request; its request_headers and request_body are unknown).
"""
import base64
import binascii
import datetime
import functools
import ipaddress
import json
import pathlib
import re
import urllib.parse

import jsonschema
import yaml

SPEC = pathlib.Path(__file__).parents[2] / "openapi.yaml"

# Of every answer of HTTP/1.1; openapi.yaml doesn't name them.
ORDINARY_HEADERS = {"date", "connection", "keep-alive", "content-length", "content-type",
                    "transfer-encoding", "x-request-id"}
# What libmicrohttpd answers by itself: without a type, and without our headers.
LIBRARY_ALWAYS = {414, 431}
LIBRARY_RAW = {400, 413, 414, 431, 501, 505}

# Of a longer list only so many at each end, and one of each shape between, are judged in full.
LIST_ENDS = 50


@functools.lru_cache(maxsize=None)
def document():
    return yaml.safe_load(SPEC.read_text(encoding="utf-8"))


# ---- schemas ----

FORMATS = jsonschema.FormatChecker(formats=())
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", re.ASCII)


@FORMATS.checks("date-time", raises=ValueError)
def _is_time(text):
    if not isinstance(text, str):
        return True
    if not TIME.fullmatch(text):
        return False
    return bool(datetime.datetime.strptime(text, "%Y-%m-%dT%H:%M:%S.%fZ"))


@FORMATS.checks("uri-reference")
def _is_reference(text):
    return not isinstance(text, str) or \
        re.fullmatch(r"[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=%-]*", text) is not None


@FORMATS.checks("ipv4", raises=ValueError)
def _is_ipv4(text):
    return not isinstance(text, str) or bool(ipaddress.IPv4Address(text))


@FORMATS.checks("ipv6", raises=ValueError)
def _is_ipv6(text):
    return not isinstance(text, str) or bool(ipaddress.IPv6Address(text))


def _content_encoding(validator, encoding, instance, schema):
    if encoding != "base64" or not isinstance(instance, str):
        return
    try:
        base64.b64decode(instance, validate=True)
    except (binascii.Error, ValueError) as e:
        yield jsonschema.ValidationError(f"{instance[:60]!r} is not base64: {e}")


Validator = jsonschema.validators.extend(
    jsonschema.Draft202012Validator, {"contentEncoding": _content_encoding})


def inline(node, doc=None):
    """The node with every $ref replaced by what it points to (there are no circles)."""
    doc = doc or document()
    if isinstance(node, list):
        return [inline(v, doc) for v in node]
    if not isinstance(node, dict):
        return node
    if "$ref" not in node:
        return {k: inline(v, doc) for k, v in node.items()}
    target = doc
    assert node["$ref"].startswith("#/"), node
    for part in node["$ref"][2:].split("/"):
        target = target[part.replace("~1", "/").replace("~0", "~")]
    target = inline(target, doc)
    rest = {k: inline(v, doc) for k, v in node.items() if k not in ("$ref", "description")}
    return {"allOf": [target], **rest} if rest else target


class Schema:
    """A schema with its $refs inlined, ready to judge values."""

    def __init__(self, schema):
        self.schema = schema
        self.validator = Validator(schema, format_checker=FORMATS)

    def why_not(self, value):
        """None, or why the value does not conform."""
        value = thinned(value)
        if next(self.validator.iter_errors(value), None) is None:
            return None
        error = jsonschema.exceptions.best_match(self.validator.iter_errors(value))
        where = "".join(f"/{p}" for p in error.absolute_path) or "the value"
        was = f", not {error.instance!r}"[:200] if error.validator == "const" else ""
        return f"{where}: {error.message[:600]}{was}"


@functools.lru_cache(maxsize=None)
def enumerated():
    """Every string that some enum or const of the document names."""
    found = set()

    def walk(node):
        if isinstance(node, dict):
            values = list(node["enum"]) if isinstance(node.get("enum"), list) else []
            values.append(node.get("const"))
            found.update(v for v in values if isinstance(v, str))
            for v in node.values():
                walk(v)
        elif isinstance(node, list):
            for v in node:
                walk(v)

    walk(document())
    return found


def shape(value):
    """What a value looks like: two of the same shape differ in numbers and free text only."""
    if isinstance(value, dict):
        return tuple((k, shape(v)) for k, v in sorted(value.items()))
    if isinstance(value, list):
        return frozenset(shape(v) for v in value)
    if isinstance(value, str):
        return value if value in enumerated() else str
    if isinstance(value, bool) or value is None:
        return value
    return type(value), value < 0


def representatives(values):
    if len(values) <= 2 * LIST_ENDS:
        return values
    seen, chosen = set(), []
    for value in values[LIST_ENDS:-LIST_ENDS]:
        looks = shape(value)
        if looks not in seen:
            seen.add(looks)
            chosen.append(value)
    return values[:LIST_ENDS] + chosen + values[-LIST_ENDS:]


def thinned(value):
    """The value without the many list elements that look like others."""
    if isinstance(value, dict):
        return {k: thinned(v) for k, v in value.items()}
    if isinstance(value, list):
        return [thinned(v) for v in representatives(value)]
    return value


# ---- strict JSON ----

def _no_duplicates(pairs):
    members = dict(pairs)
    assert len(members) == len(pairs), f"a member is there twice: {[k for k, _ in pairs]}"
    return members


def _no_constant(text):
    raise AssertionError(f"{text} is not JSON")


def parse_json(data, what):
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_no_duplicates,
                          parse_constant=_no_constant)
    except (UnicodeDecodeError, json.JSONDecodeError) as e:
        raise AssertionError(f"{what} is not JSON: {e}: {data[:200]!r}") from None


# ---- operations ----

class Body:
    """One media type of a request or response."""

    def __init__(self, name, media):
        self.name = name
        self.is_json = name == "application/json" or name.endswith("+json")
        self.schema = Schema(media["schema"]) if "schema" in media else None
        self.item = Schema(media["x-oai-itemSchema"]) if "x-oai-itemSchema" in media else None

    def check(self, data, what):
        """-> the parsed body: a value, a list of items, text, or the bytes."""
        if self.item is not None:
            assert data == b"" or what == "request body" or data.endswith(b"\n"), \
                f"the {what}'s last line has no end"
            lines = [line.strip(b" \t\r") for line in data.split(b"\n")]
            items = [parse_json(line, f"a line of the {what}") for line in lines if line]
            for n, item in enumerate(representatives(items)):
                why = self.item.why_not(item)
                assert why is None, f"{what}, line {n + 1} or one like it: {why}"
            return items
        if self.schema is None:
            return data
        if self.is_json:
            value = parse_json(data, f"the {what}")
        else:
            try:
                value = data.decode("utf-8")
            except UnicodeDecodeError as e:
                raise AssertionError(f"the {what} is not UTF-8: {e}") from None
        why = self.schema.why_not(value)
        assert why is None, f"{what}: {why}"
        return value


def bodies(content):
    return {name: Body(name, media) for name, media in (content or {}).items()}


def media_type(text):
    """-> (type without parameters, parameters), in lower case."""
    name, *params = [part.strip().lower() for part in text.split(";")]
    return name, [p.replace('"', "") for p in params if p]


class Header:
    def __init__(self, name, header):
        self.name = name
        self.required = header.get("required", False)
        self.schema = Schema(header["schema"])

    def check(self, values):
        if not values:
            assert not self.required, f"header {self.name} is missing"
            return
        assert len(values) == 1, f"header {self.name} is there {len(values)} times: {values}"
        why = self.schema.why_not(from_text(values[0], self.schema.schema, self.name))
        assert why is None, f"header {self.name}: {why}"


class Response:
    def __init__(self, response):
        self.headers = {n.lower(): Header(n, h) for n, h in response.get("headers", {}).items()}
        self.bodies = bodies(response.get("content"))


class Operation:
    def __init__(self, path, item, method):
        op = inline(item[method])
        self.name = op["operationId"]
        both = [*op.get("parameters", []), *inline(item.get("parameters", []))]
        self.parameters = [(p, Schema(p["schema"])) for p in both]
        self.request = op.get("requestBody")
        self.bodies = bodies(self.request["content"]) if self.request else {}
        self.responses = {s: Response(r) for s, r in op["responses"].items()}


METHODS = ("get", "put", "post", "delete", "options", "head", "patch", "trace")


@functools.lru_cache(maxsize=None)
def operations():
    """{path template: {METHOD: Operation}}"""
    return {path: {m.upper(): Operation(path, item, m) for m in METHODS if m in item}
            for path, item in document()["paths"].items()}


@functools.lru_cache(maxsize=None)
def outside(kind):
    """The responses where no operation applies, and those that anything may be answered with."""
    groups = inline(document()["x-outside-operations"])
    return {s: Response(r) for s, r in {**groups["any"], **groups[kind]}.items()}


def split_target(target):
    """-> (path, query) of a request target."""
    target = re.sub(r"^https?://[^/?#]*", "", target, flags=re.I)
    path, _, query = target.partition("?")
    return path, query


def find_path(path):
    """-> (template, {name: text}), or (None, {})"""
    parts = path.split("/")
    for template in operations():
        names = template.split("/")
        if len(names) != len(parts):
            continue
        values = {}
        for name, part in zip(names, parts):
            text = urllib.parse.unquote_to_bytes(part).decode("latin-1")
            if name.startswith("{"):
                # An index in another spelling is another path: there is nothing at it.
                good = r"0|[1-9]\d{0,17}" if name == "{index}" else r"[^/]+"
                if not re.fullmatch(good, text, re.ASCII):
                    break
                values[name[1:-1]] = text
            elif name != text:
                break
        else:
            return template, values
    return None, {}


def from_text(text, schema, name):
    """The value that a parameter's text stands for."""
    kind = schema.get("type")
    for part in schema.get("allOf", []):
        kind = kind or part.get("type")
    if kind == "integer":
        assert re.fullmatch(r"\d+", text, re.ASCII), f"{name}: {text!r} is not a whole number"
        return int(text)
    if kind == "number":
        assert re.fullmatch(r"\d+(\.\d+)?", text, re.ASCII), f"{name}: {text!r} is not a number"
        return float(text)
    if kind == "boolean":
        assert text in ("true", "false"), f"{name}: {text!r} is neither true nor false"
        return text == "true"
    if kind == "array":
        items = schema.get("items", {})
        return [from_text(part, items, name) for part in text.split(",") if part]
    return text


# ---- judging ----

def validate_exchange(exchange):
    """Raises AssertionError, with what is wrong, unless openapi.yaml allows this exchange."""
    try:
        _judge(exchange)
    except AssertionError as e:
        raise AssertionError(f"{exchange.method} {exchange.path[:200]} -> {exchange.status}, "
                             f"against openapi.yaml: {e}") from None


def _header(pairs, name):
    return [v for n, v in pairs if n.lower() == name.lower()]


def _judge(x):
    if _is_librarys_own(x):
        return
    path, query = split_target(x.path)
    template, values = find_path(path)
    methods = operations().get(template, {})
    op = methods.get("GET" if x.method == "HEAD" else x.method)
    if op:
        responses, what = op.responses, op.name
    elif x.method == "OPTIONS" and (template or path == "*"):
        responses, what = outside("options"), "OPTIONS"
    elif template:
        responses, what = outside("other-method"), "a method that the path does not have"
    else:
        responses, what = outside("unknown-path"), "an unknown path"
    response = responses.get(str(x.status))
    assert response, f"status {x.status} is not documented for {what}: {x.body[:500]!r}"
    _judge_headers(x, response)
    answer = _judge_body(x, response, path)
    if op and x.status < 400:
        parameters = _judge_request(x, op, values, query)
        _judge_relation(x, op, parameters, answer)


def _is_librarys_own(x):
    """An answer that libmicrohttpd made before our code saw the request."""
    if _header(x.headers, "Content-Type") or _header(x.headers, "X-Content-Type-Options"):
        return False
    known = LIBRARY_RAW if getattr(x, "raw", False) else LIBRARY_ALWAYS
    # After a malformed Content-Length, 0.9.75 sends its header twice: the second for a body.
    return x.status in known and (x.body == b"" or x.body.startswith(b"<html>") or
                                  x.body.startswith(b"HTTP/1.1 %d " % x.status))


def _judge_headers(x, response):
    names = {n.lower() for n, _ in x.headers}
    for name, header in response.headers.items():
        header.check(_header(x.headers, name))
    unknown = names - set(response.headers) - ORDINARY_HEADERS
    assert not unknown, f"undocumented header {', '.join(sorted(unknown))}"
    length = _header(x.headers, "Content-Length")
    assert len(length) <= 1, f"Content-Length is there {len(length)} times"
    if length and x.method != "HEAD" and x.status != 304:
        assert length[0] == str(len(x.body)), \
            f"Content-Length is {length[0]}, but the body has {len(x.body)} bytes"


def _judge_body(x, response, path):
    """-> the parsed body; None: none"""
    if not response.bodies:
        assert x.body == b"", f"there should be no body: {x.body[:200]!r}"
        return None
    types = _header(x.headers, "Content-Type")
    assert len(types) == 1, f"{len(types)} Content-Types: {types}"
    name, params = media_type(types[0])
    assert name in response.bodies, \
        f"content type {types[0]!r} is not documented, but {', '.join(response.bodies)}"
    allowed = [[], ["charset=utf-8"], ["version=0.0.4", "charset=utf-8"]]  # the last: of /metrics
    assert params in allowed[:1 if name != "text/plain" else 3 if path == "/metrics" else 2], \
        f"content type {types[0]!r} has a parameter"
    if x.method == "HEAD":
        assert x.body == b"", f"an answer to HEAD has a body: {x.body[:200]!r}"
        return None
    return response.bodies[name].check(x.body, "body")


def _judge_request(x, op, values, query):
    """The service accepted it: was it right? -> its parameters"""
    raw = getattr(x, "raw", False)
    given = {"path": {n: [v] for n, v in values.items()}, "query": {}, "header": {}}
    try:
        pairs = urllib.parse.parse_qsl(query, keep_blank_values=True, errors="strict",
                                       max_num_fields=10000)
    except (ValueError, UnicodeDecodeError) as e:
        raise AssertionError(f"accepted, although the query is malformed: {e}") from None
    for name, value in pairs:
        given["query"].setdefault(name, []).append(value)
    for name, value in [] if raw else x.request_headers:
        given["header"].setdefault(name.lower(), []).append(value)

    found = {}
    for parameter, schema in op.parameters:
        name, place = parameter["name"], parameter["in"]
        there = given[place]
        if place == "query" and schema.schema.get("type") == "object":
            # An exploded object: its members are parameters of their own.
            pattern = schema.schema["propertyNames"]["pattern"]
            value = {n: v for n, v in there.items() if re.search(pattern, n)}
            for n, v in value.items():
                assert len(v) == 1, f"accepted, although {n} is given {len(v)} times"
                del there[n]
            value = {n: v[0] for n, v in value.items()}
        else:
            texts = there.pop(name.lower() if place == "header" else name, [])
            if not texts:
                assert raw or not parameter.get("required"), f"accepted without {name}"
                continue
            if place == "header":
                texts = [", ".join(texts)]
            assert len(texts) == 1, f"accepted, although {name} is given {len(texts)} times"
            value = from_text(texts[0], schema.schema, f"accepted parameter {name}")
        why = schema.why_not(value)
        assert why is None, f"accepted, although the {place} parameter {name} is wrong: {why}"
        found[name] = value
    assert not given["query"], f"accepted with undocumented parameters {list(given['query'])}"
    if op.request and not raw:
        _judge_request_body(x, op)
    return found


def _judge_request_body(x, op):
    types = _header(x.request_headers, "Content-Type")
    assert len(types) == 1, f"accepted with {len(types)} Content-Types"
    name, params = media_type(types[0])
    assert name in op.bodies, f"accepted, although the content type is {types[0]!r}"
    charsets = [p for p in params if p.startswith("charset=")]
    assert all(c == "charset=utf-8" for c in charsets), f"accepted with {types[0]!r}"
    if name == "application/json":
        assert not split_target(x.path)[1], "accepted JSON with query parameters"
    if x.request_body is not None:
        data = x.request_body
        op.bodies[name].check(data[3:] if data.startswith(b"\xef\xbb\xbf") else data,
                              "request body")


def _judge_relation(x, op, parameters, answer):
    """What the text of openapi.yaml says about the answer to this very request."""
    if x.status == 206:
        first, last, size = map(int, re.findall(r"\d+", _header(x.headers, "Content-Range")[0]))
        assert first <= last < size, "Content-Range is impossible"
        assert x.method == "HEAD" or len(x.body) == last - first + 1, \
            f"{len(x.body)} bytes came for {_header(x.headers, 'Content-Range')[0]}"
    if op.name == "listBatches" and answer:
        assert len(answer["data"]) <= parameters.get("limit", 20), "more batches than the limit"
    if op.name not in ("listResults", "getResult") or answer is None:
        return
    include = parameters.get("include", [])
    if op.name == "getResult":
        results = [answer]
    elif isinstance(answer, dict):
        results = answer["data"]
        assert len(results) <= parameters.get("limit", 100), "more results than the limit"
    else:
        results = answer
        assert len(results) <= parameters.get("limit", len(results)), "more results than the limit"
    for r in results:
        assert ("headers" in r) == (op.name == "getResult" or "headers" in include), \
            f"headers are asked for or not, but: {list(r)}"
        assert ("body" in r or "body_base64" in r) == \
            ("body" in include and r["body_url"] is not None), \
            f"a body is asked for or not, there or not, but: {list(r)}"
        assert r["status"] == parameters.get("status", r["status"]), "another status came"
        assert r["custom_id"] == parameters.get("custom_id", r["custom_id"]), \
            "another custom_id came"
    if parameters.get("order") == "index":
        indexes = [r["index"] for r in results]
        assert indexes == sorted(set(indexes)), "results are not in order of index"
