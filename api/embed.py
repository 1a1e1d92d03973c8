"""Usage: embed.py openapi.yaml openapi_data.c

Writes the specification as two C arrays: its text as it is, and the same as JSON."""

import json
import re
import sys

import yaml


class Loader(yaml.SafeLoader):
    """YAML 1.2's core types, as OpenAPI wants them: PyYAML's own would make dates of timestamps,
    booleans of "no" and "on", and numbers of "12:30"."""

    yaml_implicit_resolvers = {}


for tag, pattern, first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(0|[1-9][0-9]*)", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
):
    Loader.add_implicit_resolver("tag:yaml.org,2002:" + tag, re.compile(rf"(?:{pattern})\Z"), first)


def mapping(loader, node):
    names = [loader.construct_object(key) for key, _ in node.value]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise yaml.constructor.ConstructorError(
                None, None, f"{name!r} is there twice", node.value[i][0].start_mark)
        # A status that is not quoted would be a number here and a string in JSON.
        if not isinstance(name, str):
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {name!r} needs quotes", node.value[i][0].start_mark)
    return loader.construct_mapping(node, deep=True)


Loader.add_constructor("tag:yaml.org,2002:map", mapping)


def array(name, data):
    lines = [", ".join(str(byte) for byte in data[i : i + 24]) for i in range(0, len(data), 24)]
    return (f"const unsigned char {name}[] = {{\n    " + ",\n    ".join(lines) + "};\n"
            f"const size_t {name}_len = {len(data)};\n")


def main(source, target):
    with open(source, "rb") as file:
        text = file.read()
    try:
        tree = yaml.load(text.decode("utf-8"), Loader)
    except yaml.YAMLError as e:
        sys.exit(f"{source}: {e}")
    if not isinstance(tree, dict) or "openapi" not in tree:
        sys.exit(f"{source}: this is no OpenAPI document")
    document = json.dumps(tree, ensure_ascii=False, separators=(",", ":"), allow_nan=False) + "\n"
    with open(target, "w", encoding="ascii") as file:
        file.write("/* Made by api/embed.py from openapi.yaml. */\n"
                   '#include "api/openapi_data.h"\n\n'
                   + array("openapi_yaml", text) + "\n"
                   + array("openapi_json", document.encode("utf-8")))


if __name__ == "__main__":
    main(*sys.argv[1:])
