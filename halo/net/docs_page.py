"""`/docs`: the two descriptions as one page for people, rendered from the documents themselves.

One file, no script, nothing fetched from anywhere; its one style sheet is named to the browser by its hash, so the page may be
shown under a policy that allows nothing else. Read next: `halo/schema.py`.
"""

import base64
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from typing import Any, Final

from halo.schema import Document

_STYLE: Final = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif }
body { margin: 0 auto; max-width: 60rem; padding: 1rem }
h2 { border-bottom: 1px solid #8886; margin-top: 2.5rem }
details { border: 1px solid #8886; border-radius: .4rem; margin: .4rem 0; padding: .4rem .7rem }
summary { cursor: pointer } summary code { font-weight: 600 }
table { border-collapse: collapse; width: 100% } td, th { border-top: 1px solid #8884; padding: .2rem .5rem .2rem 0; text-align: left; vertical-align: top }
pre { background: #8881; border-radius: .4rem; overflow: auto; padding: .7rem } small { opacity: .75 }
"""


@dataclass(frozen=True, slots=True)
class DocsPage:
    """The page, and the Content-Security-Policy that it needs and no more."""

    html: bytes
    policy: str


def docs_page(openapi: Document, asyncapi: Document) -> DocsPage:
    """Render both documents."""
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>halo API</title><style>{_STYLE}</style><body><h1>halo {escape(openapi['info']['version'])}</h1>",
        f"<p>{escape(openapi['info']['description'])}</p>",
        "<p><a href=/openapi.json>openapi.json</a> · <a href=/asyncapi.json>asyncapi.json</a></p><h2>HTTP</h2>",
        *(
            _operation(method, path, operation)
            for path, item in openapi["paths"].items()
            for method, operation in item.items()
        ),
        *(_channel(asyncapi, name) for name in asyncapi["channels"]),
        "<h2>Types</h2>",
        *_schemas(openapi["components"]["schemas"] | asyncapi["components"]["schemas"]),
        "</body></html>",
    ]
    digest = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return DocsPage("".join(parts).encode(), policy)


def _operation(method: str, path: str, operation: Document) -> str:
    rows = [
        (
            f"<code>{escape(parameter['name'])}</code>",
            f"{parameter['in']}: {escape(parameter.get('description', 'id'))}",
        )
        for parameter in operation.get("parameters", ())
    ]
    if "requestBody" in operation:
        rows.append(("body", _link(operation["requestBody"]["content"]["application/json"]["schema"])))
    for status, answer in operation["responses"].items():
        content = answer.get("content", {}).get("application/json")
        rows.append((status, _code_words(answer["description"]) + (" " + _link(content["schema"]) if content else "")))
    return (
        f"<details><summary><code>{method.upper()} {escape(path)}</code> {escape(operation['summary'])}</summary>"
        f"<p><small>{escape(operation['description'])}</small></p>{_table(rows)}</details>"
    )


def _channel(asyncapi: Document, name: str) -> str:
    channel = asyncapi["channels"][name]
    parts = [f"<h2>WebSocket <code>{escape(channel['address'])}</code></h2>"]
    for operation in asyncapi["operations"].values():
        if operation["channel"]["$ref"] != f"#/channels/{name}":
            continue
        keys = [message["$ref"].rpartition("/")[2] for message in operation["messages"]]
        rows = [
            (
                f"<code>{escape(asyncapi['components']['messages'][key]['name'])}</code>",
                f"<a href='#{key}'>{escape(key)}</a>",
            )
            for key in keys
        ]
        who = "clients send" if operation["action"] == "receive" else "the server sends"
        parts.append(f"<details><summary>what {who}</summary>{_table(rows)}</details>")
    return "".join(parts)


def _schemas(schemas: Document) -> Iterable[str]:
    for name, schema in sorted(schemas.items()):
        text = escape(json.dumps(schema, indent=2, ensure_ascii=False))
        yield f"<details id='{escape(name)}'><summary>{escape(name)}</summary><pre>{text}</pre></details>"


def _table(rows: Iterable[tuple[str, str]]) -> str:
    return "<table>" + "".join(f"<tr><td>{left}<td>{right}" for left, right in rows) + "</table>"


def _link(schema: Any) -> str:
    name = str(schema.get("$ref", "")).rpartition("/")[2]
    return f"<a href='#{escape(name)}'>{escape(name)}</a>" if name else "<code>JSON</code>"


def _code_words(text: str) -> str:
    """Escaped, with what stands between backticks as code."""
    pieces = escape(text).split("`")
    return "".join(f"<code>{piece}</code>" if number % 2 else piece for number, piece in enumerate(pieces))
