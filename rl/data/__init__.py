"""Problems for the run: read or taken from the generator, rendered into prompts, and put in batch order."""

from deltarl.rl.data.draw import Draw
from deltarl.rl.data.examples import Example, from_problems, load_file
from deltarl.rl.data.order import batch_indices, epoch_of
from deltarl.rl.data.prompts import EncodedPrompt, encode_prompts, render_prompt, token_counter

__all__ = [
    "Draw",
    "EncodedPrompt",
    "Example",
    "batch_indices",
    "encode_prompts",
    "epoch_of",
    "from_problems",
    "load_file",
    "render_prompt",
    "token_counter",
]
