"""A checkpoint behind an OpenAI-compatible HTTP endpoint.

deltarl-serve runs/quickstart/checkpoints/step-200
curl http://127.0.0.1:8000/v1/completions -H 'Content-Type: application/json' -d '{"prompt": "12+34=", "max_tokens": 8}'
"""

import argparse
import copy
import ipaddress
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PROGRAM = "deltarl-serve"


def main(argv: Sequence[str] | None = None) -> int:
    """Console script `deltarl-serve`. 0: ended by a signal, 2: it cannot be served."""
    args = _parser().parse_args(argv)
    from aiohttp import web

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)  # /metrics counts requests
    try:
        app = _app(args)
    except (OSError, ValueError) as error:
        print(f"{PROGRAM}: error: {error}", file=sys.stderr)
        return 2
    if not _is_loopback(args.host):
        print(f"{PROGRAM}: warning: whoever reaches {args.host} can use it, nobody is asked for a key", file=sys.stderr)
    try:
        web.run_app(app, host=args.host, port=args.port, handler_cancellation=True, print=_flushed)
    except OSError as error:  # the port is taken, no such address
        print(f"{PROGRAM}: error: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, help="folder with config.json, *.safetensors and a tokenizer")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (%(default)s: this machine only)")
    parser.add_argument("--port", type=int, default=8000, help="(%(default)s; 0: any that is free)")
    parser.add_argument("--max-num-seqs", type=_positive, default=64, help="answers decoded at once (%(default)s)")
    parser.add_argument("--max-model-len", type=_positive, help="tokens of prompt and answer (the model's limit)")
    parser.add_argument(
        "--max-queue", type=_positive, default=256, help="requests at work or waiting; more get a 429 (%(default)s)"
    )
    parser.add_argument("--served-model-name", help="what requests call the model (the name of the folder)")
    parser.add_argument("--device", help="such as cuda or cpu (cuda if there is one)")
    return parser


def _app(args: argparse.Namespace) -> Any:
    import torch
    from transformers import AutoTokenizer

    from deltarl.model.checkpoint import load_model
    from deltarl.rollout.engine import Engine
    from deltarl.rollout.serving.app import ServedModel, Server

    model = load_model(args.checkpoint)
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    torch.nn.Module.to(model, device)  # transformers' own `to` is hidden from mypy by a decorator
    tokenizer = AutoTokenizer.from_pretrained(args.checkpoint)
    if len(tokenizer) > model.config.vocab_size:
        raise ValueError(
            f"the tokenizer in {args.checkpoint} has {len(tokenizer)} tokens, its model {model.config.vocab_size}"
        )
    engine = Engine(model, max_num_seqs=args.max_num_seqs, max_model_len=args.max_model_len, tokenizer=tokenizer)
    served = ServedModel(
        name=args.served_model_name or args.checkpoint.resolve().name,
        tokenizer=copy.deepcopy(tokenizer),  # the engine's is used in another thread
        max_model_len=engine.max_model_len,
        vocab_size=model.config.vocab_size,
        eos_token_ids=eos_token_ids(model.config.eos_token_id, tokenizer.eos_token_id),
    )
    return Server(engine, served, max_queue=args.max_queue).app()


def eos_token_ids(*sources: int | Sequence[int] | None) -> tuple[int, ...]:
    """End-of-sequence tokens that a config (one, a list or none) and a tokenizer name, each once."""
    ids = [[] if s is None else [s] if isinstance(s, int) else list(s) for s in sources]
    return tuple(dict.fromkeys(token for some in ids for token in some))


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def _flushed(*lines: object) -> None:
    """What a supervisor waits for must not sit in a buffer."""
    print(*lines, flush=True)


if __name__ == "__main__":
    sys.exit(main())
