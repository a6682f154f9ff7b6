"""`openapi.json` (OpenAPI 3.1) and `asyncapi.json` (AsyncAPI 3.0), generated from the types that the server decodes with.

Nothing is described twice: bodies, answers and frames come from their structs, calls from `halo/routes.py`, codes from
`halo/errors.py`. Pure; the documents are built once, when an application is made. Read next: `halo/routes.py`.
"""

import re
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any, Final, TypeAlias, get_args

import msgspec

from halo import __version__, protocol
from halo.errors import Refusal
from halo.resources import Problem
from halo.routes import Query, Route, Who, refusals_of

Document: TypeAlias = dict[str, Any]

TITLE: Final = "halo"
_REF: Final = "#/components/schemas/{name}"
_PLACE: Final = re.compile(r"\{(\w+)\}")
_PROBLEM: Final = "application/problem+json"

_SCHEMES: Final[Mapping[str, Document]] = {
    "accessToken": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWT",
        "description": "of a customer or a mitra",
    },
    "serverKey": {"type": "apiKey", "in": "header", "name": "X-Halo-Key", "description": "of the app's backend"},
    "webhookSignature": {
        "type": "apiKey",
        "in": "header",
        "name": "webhook-signature",
        "description": "Standard Webhooks, with webhook-id and webhook-timestamp",
    },
    "adminKey": {"type": "http", "scheme": "bearer", "description": "of the operators"},
}
_SCHEME_OF: Final = {
    Who.CUSTOMER: "accessToken",
    Who.MITRA: "accessToken",
    Who.USER: "accessToken",
    Who.BACKEND: "serverKey",
    Who.PROVIDER: "webhookSignature",
    Who.OPERATOR: "adminKey",
}


def openapi(routes: Iterable[Route], description: str) -> Document:
    """The OpenAPI 3.1 document of these calls, with every refusal that each may say."""
    routes = tuple(routes)
    types = [Problem, *(kind for route in routes for kind in (route.body, route.answer) if kind is not None)]
    refs, components = _components(types)
    paths: Document = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, refs)
    schemes = {_SCHEME_OF[route.who] for route in routes if route.who in _SCHEME_OF}
    return {
        "openapi": "3.1.0",
        "info": {"title": TITLE, "version": __version__, "description": description},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {name: _SCHEMES[name] for name in _SCHEMES if name in schemes},
        },
    }


def asyncapi() -> Document:
    """The AsyncAPI 3.0 document of both sockets: what clients send (`receive`, as the server sees it) and what they get."""
    sockets = {
        "chat": ("/v1/chat/{session_id}", protocol.ChatFrame, protocol.ChatServerFrame),
        "lobby": ("/v1/lobby", protocol.LobbyFrame, protocol.LobbyServerFrame),
    }
    frames = [frame for _, *unions in sockets.values() for union in unions for frame in get_args(union)]
    refs, components = _components(frames)
    messages: Document = {
        frame.__name__: {
            "name": frame.__struct_config__.tag,
            "title": frame.__name__,
            "contentType": "application/json",
            "payload": refs[frame],
        }
        for frame in frames
    }
    channels: Document = {}
    operations: Document = {}
    for name, (address, incoming, outgoing) in sockets.items():
        sent, received = ([frame.__name__ for frame in get_args(union)] for union in (outgoing, incoming))
        channels[name] = {
            "address": address,
            "messages": {key: {"$ref": f"#/components/messages/{key}"} for key in dict.fromkeys([*received, *sent])},
            "bindings": {"ws": {"method": "GET", "bindingVersion": "0.1.0"}},
        }
        if places := _PLACE.findall(address):
            channels[name]["parameters"] = {place: {"description": "a UUID"} for place in places}
        for verb, action, keys in (("take", "receive", received), ("tell", "send", sent)):
            operations[f"{verb}_{name}"] = {
                "action": action,
                "channel": {"$ref": f"#/channels/{name}"},
                "messages": [{"$ref": f"#/channels/{name}/messages/{key}"} for key in keys],
            }
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": TITLE,
            "version": __version__,
            "description": "Text frames, one flat JSON object each, `type` first. Clients pass over fields that they do not know.",
        },
        "defaultContentType": "application/json",
        "channels": channels,
        "operations": operations,
        "components": {"schemas": components, "messages": messages},
    }


def _components(types: Iterable[Any]) -> tuple[dict[Any, Document], Document]:
    """Where each type's schema stands, and all schemas by name."""
    unique = tuple(dict.fromkeys(types))
    refs, components = msgspec.json.schema_components(unique, ref_template=_REF)
    plain: Document = msgspec.json.decode(
        msgspec.json.encode(components)
    )  # defaults come as Python values: tuples, enums
    return dict(zip(unique, refs, strict=True)), plain


def _operation(route: Route, refs: Mapping[Any, Document]) -> Document:
    operation: Document = {
        "operationId": route.name,
        "summary": route.about,
        "description": f"For {route.who.value}." + (" Only with HALO_SANDBOX=1." if route.sandbox else ""),
        "responses": _responses(route, refs),
    }
    parameters = [*_path_parameters(route), *map(_query_parameter, route.query)]
    if route.creates:
        parameters.append(
            {
                "name": "Idempotency-Key",
                "in": "header",
                "required": False,
                "description": "The same key and body again get the same answer.",
                "schema": {"type": "string", "minLength": 1, "maxLength": 255},
            }
        )
    if parameters:
        operation["parameters"] = parameters
    if route.body is not None:
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": refs[route.body]}}}
    if route.who in _SCHEME_OF:
        operation["security"] = [{_SCHEME_OF[route.who]: []}]
    return operation


def _path_parameters(route: Route) -> list[Document]:
    return [
        {"name": place, "in": "path", "required": True, "schema": {"type": "string", "format": "uuid"}}
        for place in _PLACE.findall(route.path)
    ]


def _query_parameter(query: Query) -> Document:
    schema: Document = {"type": "string", "format": "uuid"}
    if query.values:
        schema = {"type": "string", "enum": list(query.values)}
    if query.range is not None:
        schema = {"type": "integer", "minimum": query.range[0], "maximum": query.range[1]}
    if query.default is not None:
        schema["default"] = query.default
    return {"name": query.name, "in": "query", "required": False, "description": query.about, "schema": schema}


def _responses(route: Route, refs: Mapping[Any, Document]) -> Document:
    answer: Document = {"description": HTTPStatus(route.status).phrase}
    if route.answer is not None:
        answer["content"] = {"application/json": {"schema": refs[route.answer]}}
    responses: Document = {str(route.status): answer}
    by_status: dict[int, list[type[Refusal]]] = {}
    for refusal in refusals_of(route):
        by_status.setdefault(refusal.status, []).append(refusal)
    for status, refusals in sorted(by_status.items()):
        responses[str(status)] = {
            "description": "; ".join(f"`{refusal.code}`: {(refusal.__doc__ or '').strip()}" for refusal in refusals),
            "content": {_PROBLEM: {"schema": {"allOf": [refs[Problem], _codes(refusals)]}}},
        }
    return responses


def _codes(refusals: Iterable[type[Refusal]]) -> Document:
    return {"properties": {"code": {"enum": list(dict.fromkeys(refusal.code for refusal in refusals))}}}
