"""Errors as OpenAI's API has them: a status, and `{"error": {...}}`."""

from starlette.responses import JSONResponse

from edgelm.errors import BadInput, Busy, ContextFull, DoesNotFit, EdgeLMError


class ApiError(Exception):
    """An answer that is an error.

    Args:
        status: the HTTP status.
        message: what was wrong, what was expected and what to do.
        kind: OpenAI's `type`.
        code: OpenAI's `code`.
        param: the field of the request.
        retry_after: seconds after which the same request may succeed.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind, self.code, self.param = kind, code, param
        self.retry_after = retry_after

    def body(self) -> dict[str, dict[str, str | None]]:
        """The JSON of the answer."""
        return {
            "error": {
                "message": str(self),
                "type": self.kind,
                "param": self.param,
                "code": self.code,
            }
        }

    def response(self) -> JSONResponse:
        """The answer."""
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(self.body(), self.status, headers)


def as_api_error(error: Exception) -> ApiError:
    """What a client gets of an error; of unexpected ones only that they happened."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ContextFull):
        return ApiError(400, str(error), code="context_length_exceeded")
    if isinstance(error, Busy):
        return ApiError(503, str(error), kind="server_error", retry_after=1)
    if isinstance(error, BadInput):
        return ApiError(400, str(error))
    if isinstance(error, DoesNotFit):
        return ApiError(503, str(error), kind="server_error", retry_after=5)
    if isinstance(error, EdgeLMError):
        return ApiError(500, str(error), kind="server_error")
    return ApiError(500, "internal error; the server's log has it", kind="server_error")
