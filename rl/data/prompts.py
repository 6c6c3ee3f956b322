"""Problems to prompts: the chat or Jinja template, and token ids within the length limit."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

from jinja2 import StrictUndefined, Template, TemplateError, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from deltarl.rl.data.examples import Example
from deltarl.rl.problems import utf8_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class EncodedPrompt:
    row: int
    """Index of the example in the list that was encoded; dropped prompts leave gaps."""
    example: Example
    text: str
    token_ids: list[int]


def render_prompt(
    problem: str, tokenizer: "PreTrainedTokenizerBase", *, template: str | None, system_prompt: str | None
) -> str:
    """The text that the model is asked to continue.

    Args:
        problem: the problem.
        tokenizer: whose chat template is used if `template` is None; without one, the prompt is the problem itself.
        template: Jinja template with the variable `problem`.
        system_prompt: system message of the chat template.

    Raises:
        ValueError: the template is no valid Jinja, uses another variable or leaves the problem out; or there is a
            system prompt but no chat template to put it in.
    """
    if _has_chat_template(tokenizer, template):
        system = [] if system_prompt is None else [{"role": "system", "content": system_prompt}]
        messages = [*system, {"role": "user", "content": problem}]
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    if system_prompt is not None:
        raise ValueError("there is no chat template to put the system prompt in; write it into the prompt template")
    if template is None:
        return problem
    try:
        return _compile(template).render(problem=problem)
    except TemplateError as error:
        raise ValueError(f"the prompt template {template!r} cannot be rendered: {error}") from error


def encode_prompts(
    examples: Sequence[Example],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    template: str | None,
    system_prompt: str | None,
    max_prompt_tokens: int,
    on_long: Literal["error", "drop"],
) -> list[EncodedPrompt]:
    """Render and tokenize the prompts of `examples`, in their order.

    Special tokens are added as the tokenizer does by default, except to a chat template, which writes its own, and to
    a text that begins with the BOS token already.

    Args:
        examples: what to encode.
        tokenizer: of the model.
        template: see `render_prompt`.
        system_prompt: see `render_prompt`.
        max_prompt_tokens: longest prompt allowed, in tokens.
        on_long: refuse the data at a longer prompt, or leave the prompt out.

    Raises:
        ValueError: a prompt is too long and `on_long` is "error", none is left, or what `render_prompt` raises.
    """
    prompts = []
    for row, example in enumerate(examples):
        text = render_prompt(example.problem, tokenizer, template=template, system_prompt=system_prompt)
        has_bos = bool(tokenizer.bos_token) and text.startswith(str(tokenizer.bos_token))
        special = not has_bos and not _has_chat_template(tokenizer, template)
        prompts.append(EncodedPrompt(row, example, text, tokenizer.encode(text, add_special_tokens=special)))
    kept = [prompt for prompt in prompts if len(prompt.token_ids) <= max_prompt_tokens]
    if len(kept) < len(prompts) and on_long == "error":
        long = [prompt for prompt in prompts if len(prompt.token_ids) > max_prompt_tokens]
        longest = max(len(prompt.token_ids) for prompt in long)
        raise ValueError(
            f"row {long[0].row}: the prompt has {len(long[0].token_ids)} tokens, more than max_prompt_tokens = "
            f"{max_prompt_tokens}; {len(long)} of {len(prompts)} prompts are too long, the longest has {longest}. "
            "Raise max_prompt_tokens, or drop long prompts"
        )
    if not kept:
        raise ValueError(f"no prompt of {len(prompts)} has at most max_prompt_tokens = {max_prompt_tokens} tokens")
    return kept


def token_counter(tokenizer: "PreTrainedTokenizerBase") -> Callable[[str], int]:
    """Tokens of a text, special ones apart: for `generate`, which asks it of every piece that it puts together."""
    if len(tokenizer.get_vocab()) - len(tokenizer.get_added_vocab()) <= 256:
        return utf8_bytes  # what has no token of two bytes need not be asked, which takes far longer
    return lru_cache(maxsize=100_000)(lambda text: len(tokenizer.encode(text, add_special_tokens=False)))


def _has_chat_template(tokenizer: "PreTrainedTokenizerBase", template: str | None) -> bool:
    return template is None and bool(tokenizer.chat_template)


@lru_cache(maxsize=8)
def _compile(template: str) -> Template:
    # Sandboxed as transformers' chat templates are: a recipe from elsewhere must not run code.
    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
    used = meta.find_undeclared_variables(environment.parse(template))
    unknown = sorted(used - {"problem"} - environment.globals.keys())
    if unknown:
        raise ValueError(
            f"the prompt template {template!r} uses {', '.join(map(repr, unknown))}; the only variable is 'problem'"
        )
    if "problem" not in used:
        raise ValueError(
            f"the prompt template {template!r} leaves the problem out; write {{{{ problem }}}} where it goes"
        )
    return environment.from_string(template)
