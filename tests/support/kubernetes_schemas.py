"""Objects against the schemas of Kubernetes and of the CRDs, and which of their fields no schema looks at.

The schemas of Kubernetes come with `kubernetes-validate`; those of the CRDs are in ``schemas/``, written by
hand and stricter than the CRDs: they know the fields that are used here, and no other.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

from .kubernetes import Object

Schema = dict[str, Any]

_OURS = Path(__file__).parent / "schemas"
_OBJECT_META = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"


def validate(found: Object, version: str) -> None:
    """Against the schema of this Kubernetes version, "1.30" say; unknown fields are errors.

    Raises:
        jsonschema.ValidationError: it does not fit.
        kubernetes_validate.SchemaNotFoundError: there is no schema for this kind.
    """
    own = _own_schema(found)
    if own is None:
        assert kubernetes_validate.validate(found, version, strict=True) == version, (
            "another version's schema"
        )
    else:
        definitions = _definitions(version)
        meta = {"$ref": f"urn:definitions#/$defs/{_OBJECT_META}"}
        resource = Resource.from_contents(definitions, default_specification=DRAFT202012)
        registry: Registry[Any] = Registry().with_resource("urn:definitions", resource)
        own["properties"]["metadata"] = meta
        jsonschema.Draft202012Validator(own, registry=registry).validate(found)


def skipped_fields(found: Object, version: str) -> Iterator[str]:
    """The paths in a valid object about whose name or value the schema says nothing.

    A field that may hold anything, and a key of a map, ``data[writebehind.toml]``: misspelt, nobody notices.
    The whole object, if there is no schema for its kind.
    """
    definitions = _definitions(version)
    schema = _own_schema(found)
    if schema is not None:
        schema["properties"]["metadata"] = {"$ref": f"#/$defs/{_OBJECT_META}"}
    else:
        schema = _schema_of_kubernetes(found, version)
    if schema is None:
        yield found["kind"]
        return
    for path in _skipped(found, schema, definitions["$defs"], found["kind"]):
        yield re.sub(r"^\w+\.metadata\.", "*.metadata.", path)


def _skipped(value: Any, schema: Schema, definitions: dict[str, Schema], path: str) -> Iterator[str]:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        yield from _skipped(value, definitions[name], definitions, path)
    elif isinstance(value, dict):
        for key, inner in value.items():
            if key in schema.get("properties", {}):
                yield from _skipped(inner, schema["properties"][key], definitions, f"{path}.{key}")
            else:  # `additionalProperties` at best: any key will do
                yield f"{path}[{key}]"
    elif isinstance(value, list):
        for inner in value:
            yield from _skipped(inner, schema.get("items", {}), definitions, f"{path}[]")
    elif not schema.keys() & {"type", "enum", "const", "oneOf", "anyOf"}:
        yield path


def _own_schema(found: Object) -> Schema | None:
    """A new one with each call."""
    name = f"{found['kind'].lower()}-{found['apiVersion'].replace('/', '-')}.json"
    path = _OURS / name
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _schema_of_kubernetes(found: Object, version: str) -> Schema | None:
    # The group's first part and the version, as kubernetes-validate names its files.
    group_version = re.sub(r"^([^./]*)[^/]*/", r"\1-", found["apiVersion"])
    path = _folder(version) / f"{found['kind'].lower()}-{group_version}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


@functools.cache
def _definitions(version: str) -> Schema:
    text = (_folder(version) / "_definitions.json").read_text(encoding="utf-8")
    definitions: Schema = json.loads(text)
    return definitions


def _folder(version: str) -> Any:
    return files("kubernetes_validate") / "kubernetes-json-schema" / f"v{version}.0-local-strict"
