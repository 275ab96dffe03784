"""Errors as OpenAI's clients read them: `{"error": {"message", "type", "param", "code"}}` with a status."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from editar_rt.errors import EditarError, OptionError, PictureError

TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
NO_RETRY = {"x-should-retry": "false"}  # the stock clients repeat 408, 409, 429 and 5xx unless told not to


class ApiError(Exception):
    """A request that is answered by an error.

    Args:
        code: a word for programs.
        param: the field that is wrong.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """The JSON document of the answer."""
        kind = TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def bad(message: str, param: str | None = None, code: str | None = "invalid_value") -> ApiError:
    """A request that is wrong."""
    return ApiError(400, message, code, param)


def from_error(error: BaseException, param: str | None = None) -> ApiError:
    """The answer to an error of the runtime. What is not the client's fault says nothing about the machine."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, (OptionError, PictureError)):
        return bad(str(error), param)
    kind = "edit_failed" if isinstance(error, EditarError) else "internal_error"
    return ApiError(500, "the edit failed; the server's log says why", kind, headers=NO_RETRY)


def queue_full(seconds: int) -> ApiError:
    return ApiError(
        429,
        f"all places are taken; try again in {seconds} s",
        "queue_full",
        headers={"retry-after": str(seconds)},
    )


def queue_timeout(seconds: float) -> ApiError:
    return ApiError(503, f"the edit waited {seconds:g} s without getting a place", "queue_timeout")


def too_late(seconds: float) -> ApiError:
    return ApiError(504, f"the edit was not finished after {seconds:g} s", "deadline_exceeded", headers=NO_RETRY)


def cancelled() -> ApiError:
    return ApiError(499, "the edit was cancelled", "cancelled")


def shutting_down() -> ApiError:
    return ApiError(
        503, "the server is stopping; send the request again", "shutting_down", headers={"retry-after": "2"}
    )


def no_space() -> ApiError:
    return ApiError(507, "the server has no room for the upload, which it keeps on disk while it reads it", "no_space")


def engine_dead() -> ApiError:
    return ApiError(503, "the engine failed, and the server ends; send the request again", "engine_failed")


def starting() -> ApiError:
    return ApiError(503, "the server is loading its bundle", "starting", headers={"retry-after": "2"})
