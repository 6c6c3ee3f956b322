"""Text and stop strings of an answer that grows token by token, against decoding the whole of it every time."""

from functools import cache

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from deltarl.model.tokenizer import byte_tokenizer
from deltarl.rollout.detokenizer import Detokenizer
from deltarl.rollout.stop_strings import StopStrings

HALF = "\N{REPLACEMENT CHARACTER}"


@cache
def byte_level() -> PreTrainedTokenizerBase:
    """As GPT-2, Qwen and Llama 3: pieces of bytes, some of several, cut across characters."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    by_byte = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)

    def letters(raw: bytes) -> str:
        return "".join(tokenizer_letters[b] for b in raw)

    tokenizer_letters = _gpt2_letters()
    pairs = [b"ab", b" a", b"\xe4\xbd", b"\xbd\xa0", b"a\xe4", b"\xa0b", b"\xf0\x9f", b"\x98\x80", b"\n\n", b"\xff\xe4"]
    merges = [(letters(x[:1]), letters(x[1:])) for x in pairs]
    vocab = {piece: i for i, piece in enumerate([*alphabet, *(a + b for a, b in merges)])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer, tokenizer.decoder = by_byte, decoders.ByteLevel()
    return _with_added(tokenizer)


def _gpt2_letters() -> dict[int, str]:
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}


@cache
def sentencepiece() -> PreTrainedTokenizerBase:
    """As Llama 2 and Mistral: words with their space, bytes for what has no piece, the first space left out."""
    words = ["▁", "▁▁", "a", "b", "▁a", "▁b", "ab", ".", "▁.", "你", "\n"]
    vocab = {piece: i for i, piece in enumerate([*words, *(f"<0x{b:02X}>" for b in range(256))])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True))
    strip = decoders.Strip(" ", 1, 0)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip])
    return _with_added(tokenizer)


@cache
def wordpiece() -> PreTrainedTokenizerBase:
    """As BERT: whether a space comes before a token depends on its being the first."""
    vocab = {piece: i for i, piece in enumerate(["[UNK]", "a", "b", "##a", "##b", ".", "你", "ab", "n", "'", "t"])}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece()
    return _with_added(tokenizer)


@cache
def word_ends() -> PreTrainedTokenizerBase:
    """As CLIP and GPT: the space after a word appears when another one follows."""
    vocab = {piece: i for i, piece in enumerate(["a", "b", "a</w>", "b</w>", "ab</w>", ".</w>"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], end_of_word_suffix="</w>"))
    tokenizer.decoder = decoders.BPEDecoder()
    return _with_added(tokenizer)


@cache
def unruly() -> PreTrainedTokenizerBase:
    """A decoder that changes what was there before: "a" and "b" change places."""
    vocab = {piece: i for i, piece in enumerate([" ", "a", "b", " a", "a ", "  "])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.decoder = decoders.Sequence([decoders.Fuse(), decoders.Replace("ab", "ba")])
    return _with_added(tokenizer)


def _with_added(tokenizer: Tokenizer) -> PreTrainedTokenizerBase:
    tokenizer.add_special_tokens([AddedToken("<eos>", special=True), AddedToken("<turn>", special=True)])
    tokenizer.add_tokens([AddedToken("<think>", normalized=False)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


KINDS = [byte_level, sentencepiece, wordpiece, word_ends, unruly]


def decode(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def by_decoding_everything(
    tokenizer, ids: list[int], stops: list[str], min_tokens: int
) -> list[tuple[str | None, str]]:
    """What `feed` returns and `text` is after every token."""
    out, least = [], 0
    for n in range(1, len(ids) + 1):
        whole = decode(tokenizer, ids[:n])
        text = whole.rstrip(HALF)
        if n <= min_tokens:
            least = len(text)
            out.append((None, whole))
            continue
        at = {stop: text.find(stop, max(0, least - len(stop) + 1)) for stop in stops}
        found = [stop for stop in stops if at[stop] >= 0]
        first = min(found, key=lambda stop: at[stop], default=None)
        out.append((first, whole if first is None else text[: at[first]]))
        if first is not None:
            break
    return out


def check(tokenizer: PreTrainedTokenizerBase, ids: list[int], stops: list[str], min_tokens: int) -> None:
    want = by_decoding_everything(tokenizer, ids, stops, min_tokens)
    one_by_one = StopStrings(tokenizer, stops, min_tokens)
    assert [(one_by_one.feed([token]), one_by_one.text) for token in ids[: len(want)]] == want
    at_once = StopStrings(tokenizer, stops, min_tokens)
    if want:
        assert (at_once.feed(ids), at_once.text) == want[-1]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_random_tokens(kind, data):
    tokenizer = kind()
    top = len(tokenizer) + 3  # some ids are of a padded vocabulary and have no token
    token = st.integers(0, top) | st.sampled_from(sorted({*range(12), top - 4, top - 5, top - 6} & {*range(top)}))
    ids = data.draw(st.lists(token, max_size=60))
    stops = data.draw(st.lists(st.text("ab .你\n", min_size=1, max_size=4), max_size=3))
    check(tokenizer, ids, stops, data.draw(st.integers(0, 10)))
    whole, cuts = Detokenizer(tokenizer), sorted(data.draw(st.lists(st.integers(0, len(ids)), max_size=8)))
    for begin, end in zip([0, *cuts], [*cuts, len(ids)], strict=True):
        whole.feed(ids[begin:end])
        assert (whole.text, whole.fed) == (decode(tokenizer, ids[:end]), end)
        assert decode(tokenizer, ids).startswith(whole.text[: whole.settled]) or kind is unruly


@settings(max_examples=150, deadline=None)
@given(st.text("ab 你😀é\n\0" + HALF, max_size=40), st.lists(st.text("ab 你😀é\n", min_size=1, max_size=3), max_size=3))
@example("a你😀b", ["😀b"])
def test_text_cut_anywhere_into_bytes(text, stops):
    for tokenizer in (byte_level(), byte_tokenizer()):
        ids = tokenizer.encode(text, add_special_tokens=False)
        check(tokenizer, ids, stops, 0)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([*b"\xe4\xbd\xa0\xf0\x9f\x98\x80\xef\xbf\xbd\xff\xc3\xed"]), min_size=20, max_size=80))
def test_long_runs_that_are_no_text(raw):
    """Half characters without end: settled points are found among them, and the text is still that of the whole."""
    letters = _gpt2_letters()
    tokenizer = byte_level()
    ids = tokenizer.convert_tokens_to_ids([letters[b] for b in raw])
    check(tokenizer, ids + tokenizer.encode("ab", add_special_tokens=False), ["ab"], 0)


def test_a_stop_string_split_across_tokens_and_one_inside_a_token():
    tokenizer = byte_tokenizer(["xyz.END.tail"])
    split = StopStrings(tokenizer, [".END."])
    ids = tokenizer.encode("some .END. more")
    assert [split.feed([i]) for i in ids].index(".END.") == len("some .END.") - 1
    assert split.text == "some "
    inside = StopStrings(tokenizer, [".END."])
    assert inside.feed(tokenizer.encode("1 xyz.END.tail")) == ".END."
    assert inside.text == "1 xyz"


def test_of_several_the_first_in_the_text_counts():
    tokenizer = byte_tokenizer(["uvwxyz"])
    stop = StopStrings(tokenizer, ["z", "wx", "vw"])
    assert stop.feed(tokenizer.encode("uvwxyz")) == "vw"
    assert stop.text == "u"


def test_min_tokens_hides_what_ends_in_them_but_not_what_ends_after():
    tokenizer = byte_tokenizer()
    ids = tokenizer.encode("##.##")
    assert StopStrings(tokenizer, ["##"], 1).feed(ids[:2]) == "##"
    late = StopStrings(tokenizer, ["##"], 2)
    assert late.feed(ids[:4]) is None
    assert late.feed(ids[4:]) == "##"
    assert late.text == "##."


def test_a_stop_string_that_begins_in_the_prompt_does_not_count():
    tokenizer = byte_tokenizer()
    stop = StopStrings(tokenizer, ["\n\n"])  # the prompt ends with one of them
    assert stop.feed(tokenizer.encode("\nanswer")) is None
    assert stop.text == "\nanswer"


def test_after_a_stop_string_nothing_changes():
    tokenizer = byte_tokenizer()
    stop = StopStrings(tokenizer, ["b"])
    assert [stop.feed(tokenizer.encode(x)) for x in ("a", "bc", "d")] == [None, "b", "b"]
    assert stop.text == "a"


def test_a_token_costs_the_same_late_in_the_answer(monkeypatch):
    tokenizer = byte_tokenizer()
    lengths: list[int] = []
    decode_slice = Detokenizer._text

    def counting(self: Detokenizer, begin: int, end: int) -> str:
        lengths.append(end - begin)
        return decode_slice(self, begin, end)

    monkeypatch.setattr(Detokenizer, "_text", counting)
    for text in ("ab 你" * 500, b"\xe4".decode("latin1") * 500):
        ids = tokenizer.encode(text) if text.isascii() or "你" in text else [tokenizer.convert_tokens_to_ids("ä")] * 500
        StopStrings(tokenizer, ["never"]).feed(ids)
        assert max(lengths) < 40
        assert len(lengths) < 4 * len(ids)
        lengths.clear()
