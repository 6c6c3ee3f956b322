"""What a client is told when its request cannot be served, in the format of OpenAI's API."""

from typing import Any

from pydantic import ValidationError


class ApiError(Exception):
    """An answer other than 200.

    Attributes:
        status: the HTTP status.
        param: the field of the request that is at fault, if one is.
        code: a word for programs, such as "context_length_exceeded".
        retry_after: seconds to wait before asking again, if that can help.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ):
        super().__init__(message)
        self.status, self.param, self.code, self.retry_after = status, param, code, retry_after

    def body(self) -> dict[str, Any]:
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        if self.status == 429:
            kind = "rate_limit_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """400: the request has to be changed."""
    return ApiError(400, message, param=param, code=code)


def invalid(error: ValidationError) -> ApiError:
    """422: what is wrong with the fields of a request, or one thing of several."""
    # Of a union's alternatives, the one that was understood furthest is the one that was meant.
    worst = max(error.errors(), key=lambda e: len(e["loc"]))
    param = str(worst["loc"][0]) if worst["loc"] else None
    where = ".".join(str(part) for part in worst["loc"])
    value = "" if worst["type"] == "missing" else f", got {_short(worst['input'])}"
    return ApiError(422, f"{where or 'the body'}: {worst['msg']}{value}", param=param, code=worst["type"])


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
