# SPDX-License-Identifier: Apache-2.0
"""Why a request gets no answer, apart from the form in which its client is told."""

from __future__ import annotations

# As OpenAI's API names kinds of errors; clients choose their exception by the status.
_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
    504: "server_error",
}


class Refused(Exception):
    """A request that is not answered: an HTTP status, what is wrong, and the field where it is."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        field: str | None = None,
        code: str | None = None,
        retry_after_seconds: int | None = None,
    ) -> None:
        # Both may quote half of a surrogate pair, which JSON can spell and UTF-8 cannot.
        message, field = _sound(message), None if field is None else _sound(field)
        super().__init__(message)
        self.status = status
        self.message = message
        self.field = field
        self.code = code
        self.retry_after_seconds = retry_after_seconds

    @property
    def kind(self) -> str:
        return _KINDS.get(self.status, "invalid_request_error")

    @property
    def headers(self) -> dict[str, str]:
        """What the answer's head says of it."""
        if self.status == 401:
            return {"www-authenticate": "Bearer"}
        if self.retry_after_seconds is not None:
            return {"retry-after": str(self.retry_after_seconds)}
        if self.status in (408, 413):  # the rest of the body would be read, though for nothing
            return {"connection": "close"}
        return {}


def _sound(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
