"""The API's reference as one plain page, drawn from its own OpenAPI document. It needs nothing from outside."""

from __future__ import annotations

from html import escape
from typing import Any

STYLE = """
body { font: 14px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem;
       color: #1f2328; background: #fff }
@media (prefers-color-scheme: dark) { body { color: #e6edf3; background: #0d1117 } }
code { font: 13px ui-monospace, monospace } td { padding: .2rem 1rem .2rem 0; vertical-align: top }
"""


def docs_page(document: dict[str, Any]) -> str:
    """HTML with a row per operation: method, path, parameters and what it does."""
    rows = [
        f"<tr><td><code>{method.upper()}</code></td><td><code>{escape(path)}</code><br>{_parameters(operation)}</td>"
        f"<td>{escape(operation.get('description', operation.get('summary', '')))}</td></tr>"
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    ]
    title = escape(f"{document['info']['title']} {document['info']['version']}")
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{STYLE}</style>"
        f"<h1>{title}</h1><p>{escape(document['info'].get('description', ''))} "
        f"Machine-readable: <a href=/openapi.json>/openapi.json</a>.</p><table>{''.join(rows)}</table></html>"
    )


def _parameters(operation: dict[str, Any]) -> str:
    names = [each["name"] + ("" if each.get("required") else "?") for each in operation.get("parameters", [])]
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {}).get("$ref")
    if body:
        names.append(body.rpartition("/")[2])
    return escape(", ".join(names))
