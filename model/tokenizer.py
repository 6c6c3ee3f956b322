"""A byte-level tokenizer that needs no files: any text round-trips, and chosen strings become single tokens."""

from collections.abc import Sequence

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>")
CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"


def byte_tokenizer(extra_tokens: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """256 byte tokens after `<pad>` 0, `<bos>` 1, `<eos>` 2, then `extra_tokens`, e.g. `\\boxed{`.

    Raises:
        ValueError: an extra token that is not printable ASCII without spaces, is given twice, or is a special one.
    """
    bad = [t for t in extra_tokens if not (t.isascii() and t.isprintable() and t and " " not in t)]
    bad += [t for t in extra_tokens if t in SPECIAL_TOKENS]
    if bad or len(set(extra_tokens)) < len(extra_tokens):
        raise ValueError(
            f"extra tokens must be distinct, not special, printable ASCII strings without spaces; got {extra_tokens!r}"
        )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*SPECIAL_TOKENS, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in extra_tokens])
    pad, bos, eos = SPECIAL_TOKENS
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        bos_token=bos,
        eos_token=eos,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast
