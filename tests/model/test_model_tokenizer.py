"""The byte tokenizer loses nothing."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from deltarl.model.tokenizer import byte_tokenizer

EXTRA = ["\\boxed{", "<think>", "</think>", "ab"]
TOKENIZERS = {"plain": byte_tokenizer(), "extra": byte_tokenizer(EXTRA)}


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=150, deadline=None)
@given(text=st.text() | st.text(alphabet="ab \\boxed{}<think>\n\t é漢🙂"))
def test_any_text_round_trips(name, text):
    tokenizer = TOKENIZERS[name]
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(0 <= i < len(tokenizer) for i in ids)


def test_spaces_before_punctuation_and_line_ends_survive():
    for text in [" a ,b !", "x\r\n\ty  ", " \n", "don 't", "\u00a0\u2028\ufeff"]:
        assert TOKENIZERS["plain"].decode(TOKENIZERS["plain"].encode(text)) == text


def test_ids_are_the_special_tokens_then_the_bytes_then_the_extra_tokens():
    tokenizer = TOKENIZERS["extra"]
    assert [tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id] == [0, 1, 2]
    assert len(tokenizer) == 3 + 256 + len(EXTRA)
    assert len(TOKENIZERS["plain"].encode("é漢🙂")) == 2 + 3 + 4  # one id a byte
    seen = {i for c in range(0x800) for i in tokenizer.encode(chr(c))}
    assert seen <= set(range(3, 259))


def test_extra_tokens_are_single_tokens_wherever_they_stand():
    tokenizer = TOKENIZERS["extra"]
    for i, token in enumerate(EXTRA):
        assert tokenizer.encode(token) == [259 + i]
        assert tokenizer.encode(f"1{token}2")[1:-1] == [259 + i]
    assert tokenizer.encode("<eos>") == [2]
    answer = [*tokenizer.encode("\\boxed{5}"), tokenizer.eos_token_id]
    assert tokenizer.decode(answer, skip_special_tokens=True) == "\\boxed{5}"


@pytest.mark.parametrize("bad", ["", "two words", "é", "tab\t", "\n", " "])
def test_extra_tokens_that_cannot_be_tokens_are_refused(bad):
    with pytest.raises(ValueError, match="printable ASCII strings without spaces"):
        byte_tokenizer(["fine", bad])


def test_an_extra_token_given_twice_is_refused():
    with pytest.raises(ValueError, match="distinct"):
        byte_tokenizer(["a1", "a1"])


def test_a_special_token_cannot_be_an_extra_token():
    with pytest.raises(ValueError, match="<eos>"):
        byte_tokenizer(["<eos>"])


def test_a_saved_tokenizer_comes_back_the_same(tmp_path):
    tokenizer = TOKENIZERS["extra"]
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for text in ["what is 2 + 3 ?\n", "<think>x</think> \\boxed{5}<eos>", "é漢🙂\u0301  \r\n"]:
        assert loaded.encode(text) == tokenizer.encode(text)
        assert loaded.decode(loaded.encode(text)) == text
    assert (loaded.pad_token_id, loaded.eos_token_id, len(loaded)) == (0, 2, len(tokenizer))
    messages = [{"role": "user", "content": "1+1?"}]
    assert loaded.apply_chat_template(messages, tokenize=False) == "1+1?\n"


def test_the_chat_template_is_the_content_line_by_line():
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"}]
    tokenizer = TOKENIZERS["plain"]
    assert tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == "Be brief.\n1+1?\n"
    ids = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
    assert ids == tokenizer.encode("Be brief.\n1+1?\n")
