"""How the trainer's process and vLLM's talk: calls and answers as JSON, arrays as safetensors, over one pipe.

Nothing is unpickled on either side. A message is one frame of JSON, followed by one of safetensors if it says so.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from safetensors.numpy import load, save

Handler = Callable[..., Any]


class RemoteError(RuntimeError):
    """An error that the other side did not mean to raise."""


def send(pipe: Connection, message: Mapping[str, Any], arrays: Mapping[str, np.ndarray] | None = None) -> None:
    """Sends one message: anything that JSON can hold, and arrays beside it."""
    pipe.send_bytes(json.dumps({**message, "arrays": arrays is not None}).encode())
    if arrays is not None:
        pipe.send_bytes(save({name: np.ascontiguousarray(array) for name, array in arrays.items()}))


def receive(pipe: Connection) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The next message and its arrays. Raises `EOFError` when the other side is gone."""
    message = json.loads(pipe.recv_bytes())
    return message, load(pipe.recv_bytes()) if message.pop("arrays") else {}


def call(
    pipe: Connection, name: str, arguments: Mapping[str, Any], arrays: Mapping[str, np.ndarray] | None = None
) -> None:
    """Asks the other side, which is in `serve`, to call one of its handlers."""
    send(pipe, {"call": name, "with": arguments}, arrays)


def result(pipe: Connection, errors: Sequence[type[Exception]]) -> Any:
    """Waits for the answer to a call: what it returned, or raises what it raised if it is one of `errors`.

    Anything else is raised as a RemoteError, with the name of its class.
    """
    answer, _ = receive(pipe)
    if "result" in answer:
        return answer["result"]
    names, text = answer["error"], answer["message"]
    known = next((cls for cls in errors if cls.__name__ in names), RemoteError)
    raise known(text if known.__name__ == names[0] else f"{names[0]}: {text}")


def reply(pipe: Connection, function: Handler, *args: Any, **kwargs: Any) -> Any:
    """Calls `function` and sends what it returns or raises; returns the former and raises the latter again."""
    try:
        value = function(*args, **kwargs)
    except Exception as error:
        send(pipe, {"error": [cls.__name__ for cls in type(error).__mro__], "message": str(error)})
        raise
    send(pipe, {"result": value})
    return value


def serve(pipe: Connection, handlers: Mapping[str, Handler], refusals: tuple[type[Exception], ...]) -> None:
    """Answers calls one after the other until the other side hangs up. Arrays come as the argument `arrays`.

    After an error that is not one of `refusals`, what the handlers share may be in any state: it is sent and raised.
    """

    def handle(name: str, arguments: dict[str, Any]) -> Any:
        return handlers[name](**arguments)

    while True:
        try:
            message, arrays = receive(pipe)
            reply(pipe, handle, message["call"], message["with"] | ({"arrays": arrays} if arrays else {}))
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return
        except refusals as error:
            print(f"refused {message['call']}: {error}", flush=True)  # for the log
