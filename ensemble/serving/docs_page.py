"""Page of requests and answers at ``/docs``: the OpenAPI document as one HTML page without script.

FastAPI's own page loads its viewer from a public server; this one loads nothing.
"""

from __future__ import annotations

import json
from html import escape
from typing import Any

from oof.common.digests import content_hash

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #fff; --line: #d0d7de; --soft: #57606a; --link: #0b57b0; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e7ea; --paper: #14171a; --line: #3a424a; --soft: #a3adb8; --link: #7ab8ff; }
}
body { margin: 0 auto; max-width: 60rem; padding: 1rem; font: 16px/1.5 system-ui, sans-serif; }
html, body { background: var(--paper); color: var(--ink); }
a { color: var(--link); }
.soft { color: var(--soft); }
pre { padding: .75rem; border: 1px solid var(--line); border-radius: 6px; overflow-x: auto; }
code { font: .9em ui-monospace, monospace; overflow-wrap: break-word; }
section { border-top: 1px solid var(--line); }
table { border-collapse: collapse; width: 100%; }
th, td { padding: .35rem .5rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
@media (max-width: 640px) {
  th, td { display: block; border: 0; padding: 0 .5rem; }
  tr { border-bottom: 1px solid var(--line); }
}
"""
UNUSED = ("HTTPValidationError", "ValidationError")  # FastAPI lists them; this service answers {"error": …}
NAMES = {"array": "list", "number": "number", "integer": "integer", "string": "text", "boolean": "true or false"}


def docs_page(document: dict[str, Any]) -> str:
    """Return the page of an OpenAPI document."""
    title = escape(f"{document['info']['title']} {document['info']['version']}")
    paths = "".join(
        _operation(method, path, operation)
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    )
    schemas = document["components"]["schemas"]
    models = "".join(_model(name, schema) for name, schema in schemas.items() if name not in UNUSED)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width, initial-scale=1"><title>{title}: requests and answers</title>'
        f'<link rel="icon" href="data:,"><style>{STYLE}</style></head><body><main><h1>Requests and answers</h1>'
        '<p>The same as an OpenAPI document, for tools: <a href="openapi.json">openapi.json</a>. An error is '
        "<code>{&quot;error&quot;: {&quot;message&quot;, &quot;type&quot;, &quot;code&quot;}}</code>. A service with a "
        "key asks for the header <code>Authorization: Bearer KEY</code>.</p>"
        f"{paths}<h2>Models</h2>{models}</main></body></html>"
    )


def docs_headers() -> dict[str, str]:
    """Return the page's headers: a policy that lets nothing run or load but its own style."""
    policy = f"default-src 'none'; style-src {content_hash(STYLE)}; img-src data:; base-uri 'none'; form-action 'none'"
    return {"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}


def _operation(method: str, path: str, operation: dict[str, Any]) -> str:
    answer = operation["responses"]["200"]["content"]["application/json"]["schema"]
    lines = [f"<h2><code>{method.upper()} {escape(path)}</code></h2><p>{escape(operation['summary'])}</p>"]
    if "requestBody" in operation:
        lines.append(f"<p>Request: {_kind(operation['requestBody']['content']['application/json']['schema'])}</p>")
    lines.append(f"<p>Answer: {_kind(answer)}</p>")
    return f"<section>{''.join(lines)}</section>"


def _model(name: str, schema: dict[str, Any]) -> str:
    required = schema.get("required", [])
    rows = "".join(
        f"<tr><th scope=row><code>{escape(field)}</code></th><td>{_kind(value)}</td><td>"
        f"{escape(value.get('description', ''))}{'' if field in required else _default(value)}</td></tr>"
        for field, value in schema["properties"].items()
    )
    example = (
        f"<pre><code>{escape(json.dumps(schema['example'], indent=2))}</code></pre>" if "example" in schema else ""
    )
    about = escape(schema.get("description", "").replace("``", ""))
    return f'<section id="{escape(name)}"><h3>{escape(name)}</h3><p>{about}</p><table>{rows}</table>{example}</section>'


def _default(value: dict[str, Any]) -> str:
    default = json.dumps(value["default"]) if "default" in value else "may be left out"
    return f' <span class="soft">({escape(default)})</span>'


def _kind(schema: dict[str, Any]) -> str:
    """Return a schema's type in words, with links to models."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    if "enum" in schema or "const" in schema:
        return " or ".join(f"<code>{escape(json.dumps(v))}</code>" for v in schema.get("enum", [schema.get("const")]))
    for union in ("anyOf", "oneOf"):
        if union in schema:
            return " or ".join(dict.fromkeys(map(_kind, schema[union])))
    if schema.get("type") == "array":
        return f"list of {_kind(schema['items'])}"
    if "role" in schema.get("properties", {}):
        return "messages <code>{role, content}</code>"
    return escape(NAMES.get(schema.get("type", ""), schema.get("type", "object")))
