# SPDX-License-Identifier: Apache-2.0
"""The paths of the server, and what answers at each."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.routing import Route

from tools.serve_parts import ollama, openai_form
from tools.serve_parts.chat import Chat
from tools.serve_parts.chat_template import ChatTemplate
from tools.serve_parts.choices import TokenTexts
from tools.serve_parts.completions import Completions
from tools.serve_parts.endpoint import JSON, Endpoint
from tools.serve_parts.engine_thread import EngineThread
from tools.serve_parts.guard import Guard
from tools.serve_parts.refusal import Refused
from tools.serve_parts.wanted import Served

# Ollama's clients read a version here; this server is none of Ollama's, and says so.
OLLAMA_VERSION = "0.0.0-llemma"


@dataclass(frozen=True)
class Access:
    """Who may ask."""

    keys: tuple[str, ...]
    only_loopback_names: bool


def refusal_answer(path: str, refused: Refused) -> JSON:
    """The answer to a refused request, in the form of the path's clients."""
    form = ollama.refusal if path.startswith("/api/") else openai_form.refusal
    return JSON(form(refused), refused.status, refused.headers)


def application(
    served: Served,
    engine: EngineThread,
    template: ChatTemplate,
    access: Access,
    *,
    tactic_stop: str,
    model_details: dict[str, Any],
) -> Starlette:
    """The server as an ASGI application; it starts the engine's thread and ends it.

    `model_details` is what `/api/tags` tells of the model beside its name.
    """
    texts = TokenTexts(served.tokenizer)
    started = int(time.time())

    def post(path: str, form: Any) -> Route:
        return Route(path, Endpoint(form, served, engine, texts), methods=["POST"])

    def models() -> list[dict[str, Any]]:
        common = {"object": "model", "created": started, "owned_by": "local", "root": served.names[0]}
        return [{"id": name, **common, "max_model_len": served.context_tokens} for name in served.names]

    async def health(_: Request) -> JSON:
        if engine.error is not None:
            return JSON({"status": "the engine has failed"}, 503)
        return JSON({"status": "ok", "in_flight": engine.in_flight})

    async def list_models(_: Request) -> JSON:
        return JSON({"object": "list", "data": models()})

    async def one_model(request: Request) -> JSON:
        asked = request.path_params["name"]
        served.check_name(asked)
        return JSON(next((model for model in models() if model["id"] == asked), models()[0]))

    async def tags(_: Request) -> JSON:
        return JSON(ollama.tags(served, model_details))

    async def version(_: Request) -> JSON:
        return JSON({"version": OLLAMA_VERSION})

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        engine.start()
        try:
            yield
        finally:
            engine.stop()

    return Starlette(
        routes=[
            post("/v1/completions", Completions(served, tactic_stop)),
            post("/v1/chat/completions", Chat(served, template, tactic_stop)),
            post("/api/generate", ollama.Generate(served, template, tactic_stop)),
            Route("/v1/models", list_models),
            Route("/v1/models/{name:path}", one_model),
            Route("/api/tags", tags),
            Route("/api/version", version),
            Route("/health", health),
        ],
        middleware=[
            Middleware(
                Guard,
                keys=access.keys,
                only_loopback_names=access.only_loopback_names,
                refuse=refusal_answer,
            )
        ],
        exception_handlers={HTTPException: _no_such_path, Refused: _refused, Exception: _our_fault},
        lifespan=lifespan,
    )


async def _no_such_path(request: Request, error: Exception) -> JSON:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}"
    answer = refusal_answer(request.url.path, Refused(error.status_code, message))
    answer.headers.update(error.headers or {})
    return answer


async def _refused(request: Request, error: Exception) -> JSON:
    assert isinstance(error, Refused)
    return refusal_answer(request.url.path, error)


async def _our_fault(request: Request, _: Exception) -> JSON:
    return refusal_answer(request.url.path, Refused(500, "the server has made a mistake; its log says which"))
