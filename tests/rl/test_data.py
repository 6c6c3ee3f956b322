"""Datasets from files, prompts within their limit, and the order of batches."""

import gzip
import json
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from deltarl.rl.data import Example, batch_indices, encode_prompts, epoch_of, from_problems, load_file, render_prompt
from deltarl.rl.problems import ProblemSource, generate

GSM8K = Path(__file__).parents[2] / "data" / "gsm8k"
ROWS = [
    {"problem": "1+1", "answer": "2", "solution": "1+1=2", "topic": "sums"},
    {"problem": "2*3", "answer": "6", "solution": None, "topic": "products"},
    {"problem": "9-4", "answer": "5", "solution": "", "topic": None},
]


def write(path: Path, rows: list[dict]) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


@pytest.mark.parametrize("name", ["d.jsonl", "d.jsonl.gz", "d.parquet"])
def test_a_file_of_any_kind_gives_the_same_examples(tmp_path, name):
    path = write(tmp_path / name, ROWS)
    assert load_file(path, solution_column="solution") == [
        Example("1+1", "2", "1+1=2", {"topic": "sums"}),
        Example("2*3", "6", None, {"topic": "products"}),
        Example("9-4", "5", None, {"topic": None}),
    ]
    assert [e.columns for e in load_file(path, limit=2)] == [
        {"solution": "1+1=2", "topic": "sums"},
        {"solution": None, "topic": "products"},
    ]


def test_columns_go_by_the_names_given_and_are_the_same_for_every_row(tmp_path):
    rows = [{"q": "1+1", "gold": 2, "date": "2024-01-02"}, {"q": "1/2", "gold": 0.5, "hint": "half"}]
    assert load_file(write(tmp_path / "d.jsonl", rows), problem_column="q", answer_column="gold") == [
        Example("1+1", "2", None, {"date": "2024-01-02", "hint": None}),
        Example("1/2", "0.5", None, {"date": None, "hint": "half"}),
    ]


def test_blank_lines_byte_order_mark_and_line_separators_in_strings_are_no_trouble(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_bytes('\ufeff{"problem": "a\u2028b", "answer": "1"}\r\n\n{"problem": "c", "answer": "2"}'.encode())
    assert [e.problem for e in load_file(path)] == ["a\u2028b", "c"]


def test_answer_pattern_takes_the_answer_out(tmp_path):
    rows = [{"problem": "p", "answer": "2+3=5, 5*2=10\n#### 10 "}, {"problem": "q", "answer": "####1,200"}]
    answers = [e.answer for e in load_file(write(tmp_path / "d.jsonl", rows), answer_pattern=r"####\s*(.+)$")]
    assert answers == ["10", "1,200"]


def test_an_answer_the_pattern_does_not_match_is_refused(tmp_path):
    rows = [{"problem": "p", "answer": "#### 1"}, {"problem": "q", "answer": "so it is 7"}]
    with pytest.raises(ValueError, match=r"row 1, column 'answer'.*####.*'so it is 7'"):
        load_file(write(tmp_path / "d.jsonl", rows), answer_pattern=r"####\s*(.+)$")


@pytest.mark.parametrize(
    ("pattern", "message"), [("####", "has 0 groups"), ("(a)(b)", "has 2 groups"), ("(", "not a regular expression")]
)
def test_a_pattern_without_one_group_is_refused(tmp_path, pattern, message):
    with pytest.raises(ValueError, match=message):
        load_file(write(tmp_path / "d.jsonl", ROWS), answer_pattern=pattern)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"problem": None, "answer": "1"}, "row 1: column 'problem' is null"),
        ({"answer": "1"}, "row 1: column 'problem' is null"),
        ({"problem": "p", "answer": float("nan")}, "row 1: column 'answer' is null"),
        ({"problem": " \n", "answer": "1"}, "row 1: column 'problem' is empty"),
        ({"problem": "p", "answer": ""}, "row 1: column 'answer' is empty"),
        ({"problem": "p", "answer": ["1"]}, "row 1: column 'answer' is a list"),
        ({"problem": "p", "answer": True}, "row 1: column 'answer' is a bool"),
    ],
)
def test_a_row_without_problem_or_answer_is_refused(tmp_path, row, message):
    path = write(tmp_path / "d.jsonl", [ROWS[0], row])
    with pytest.raises(ValueError, match=message):
        load_file(path)


@pytest.mark.parametrize("column", ["problem_column", "answer_column", "solution_column"])
def test_a_missing_column_is_named_with_those_there_are(tmp_path, column):
    path = write(tmp_path / "d.parquet", ROWS)
    with pytest.raises(ValueError, match=r"no column 'topik', it has 'problem', .*'topic'; did you mean 'topic'"):
        load_file(path, **{column: "topik"})


@pytest.mark.parametrize("name", ["d.jsonl", "d.jsonl.gz", "d.parquet"])
def test_files_that_are_missing_empty_or_damaged_are_refused(tmp_path, name):
    path = tmp_path / name
    with pytest.raises(FileNotFoundError, match=name):
        load_file(path)
    write(path, [])
    with pytest.raises(ValueError, match="has no rows"):
        load_file(path)
    path.write_bytes(b"\x1f\x8b\xff not what the suffix says")
    with pytest.raises(ValueError, match="cannot be read"):
        load_file(path)


def test_a_file_cut_short_is_refused_rather_than_read_in_part(tmp_path):
    plain, packed = write(tmp_path / "d.jsonl", ROWS), write(tmp_path / "d.jsonl.gz", ROWS)
    plain.write_bytes(plain.read_bytes()[:-10])
    with pytest.raises(ValueError, match="line 3: not JSON"):
        load_file(plain)
    packed.write_bytes(packed.read_bytes()[:-10])
    with pytest.raises(ValueError, match="cannot be read"):
        load_file(packed)


def test_other_nonsense_is_refused(tmp_path):
    path = write(tmp_path / "d.jsonl", ROWS)
    with pytest.raises(ValueError, match="has no split or subset"):
        load_file(path, split="train")
    with pytest.raises(ValueError, match="limit must be at least 1, got 0"):
        load_file(path, limit=0)
    path.write_text("[1, 2]\n")
    with pytest.raises(ValueError, match=r"line 1: expected a JSON object, got '\[1, 2\]"):
        load_file(path)
    (tmp_path / "d.csv").write_text("problem,answer\n1+1,2\n")
    with pytest.raises(ValueError, match=r"d\.csv: unsupported suffix; .*\.jsonl\.gz, \.parquet"):
        load_file(tmp_path / "d.csv")
    with pytest.raises(FileNotFoundError, match=r"no/such/file\.csv"):
        load_file("no/such/file.csv")


@pytest.fixture
def dataset_folder(tmp_path, monkeypatch):
    """A dataset with two splits that `datasets` loads without a network."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    folder = tmp_path / "dataset"
    folder.mkdir()
    write(folder / "train.jsonl", ROWS)
    write(folder / "test.jsonl", ROWS[:1])
    return folder


def test_a_dataset_is_loaded_through_the_datasets_library(dataset_folder):
    assert load_file(dataset_folder, split="train") == load_file(dataset_folder / "train.jsonl")
    with pytest.raises(ValueError, match="has the splits train, test; set `split`"):
        load_file(dataset_folder)
    with pytest.raises(ValueError, match=r"cannot be loaded as a HuggingFace dataset.*'dev'"):
        load_file(dataset_folder, split="dev")
    (dataset_folder / "test.jsonl").unlink()
    assert len(load_file(dataset_folder)) == 3


def test_a_dataset_id_with_its_subset_goes_to_the_datasets_library(monkeypatch):
    import datasets

    calls = []
    fake = datasets.Dataset.from_list([{"question": "p", "answer": "#### 3"}])
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: calls.append((args, kwargs)) or fake)
    examples = load_file(
        "openai/gsm8k", split="test", subset="main", problem_column="question", answer_pattern="#### (.+)"
    )
    assert examples == [Example("p", "3", None, {})]
    assert calls == [(("openai/gsm8k",), {"name": "main", "split": "test"})]


def test_gsm8k_is_whole_and_its_splits_are_disjoint():
    train, test = load_file(GSM8K / "train.jsonl.gz"), load_file(GSM8K / "test.jsonl.gz")
    assert (len(train), len(test)) == (7473, 1319)
    assert train[0].problem.startswith("Natalia sold clips")
    assert train[0].answer == "72"
    assert set(train[0].columns) == {"source"}
    assert all(e.answer.lstrip("-").isdigit() for e in train + test)
    assert not {e.problem for e in train} & {e.problem for e in test}


def test_generated_problems_become_examples():
    problems = generate([ProblemSource("arithmetic", 4)], "train", 3, seed=0)
    example = from_problems(problems)[2]
    assert (example.problem, example.answer, example.solution) == (
        problems[2].problem,
        problems[2].answer,
        problems[2].solution,
    )
    assert example.columns == {"family": "arithmetic", "level": 4, "unordered": False}


class CharTokenizer:
    """One token a character, BOS before a text unless told otherwise; a chat template if given one."""

    bos_token = "^"

    def __init__(self, chat_template: str | None = None) -> None:
        self.chat_template = chat_template

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [ord(c) for c in ("^" if add_special_tokens else "") + text]

    def apply_chat_template(self, messages, tokenize, add_generation_prompt):
        assert not tokenize
        assert add_generation_prompt
        return "".join(f"<{m['role']}>{m['content']}" for m in messages) + "<assistant>"


PLAIN, CHAT = CharTokenizer(), CharTokenizer(chat_template="...")


def test_prompt_is_the_chat_template_the_problem_or_the_given_template():
    def render(tokenizer, template=None, system_prompt=None):
        return render_prompt("1<2 & 3", tokenizer, template=template, system_prompt=system_prompt)

    assert render(PLAIN) == "1<2 & 3"
    assert render(CHAT) == "<user>1<2 & 3<assistant>"
    assert render(CHAT, system_prompt="Be brief.") == "<system>Be brief.<user>1<2 & 3<assistant>"
    for tokenizer in (PLAIN, CHAT):
        assert render(tokenizer, "Q: {{ problem }}\nA:\n") == "Q: 1<2 & 3\nA:\n"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ problm }}", "uses 'problm'; the only variable is 'problem'"),
        ("{{ problem.text }}", "cannot be rendered.*text"),
        ("Solve:", "leaves the problem out"),
        ("{{ problem", "cannot be rendered"),
        ("{{ problem.__class__.__mro__ }}", "cannot be rendered.*unsafe"),
    ],
)
def test_a_bad_template_is_refused(template, message):
    with pytest.raises(ValueError, match=message):
        render_prompt("1+1", PLAIN, template=template, system_prompt=None)


@pytest.mark.parametrize(("tokenizer", "template"), [(PLAIN, None), (CHAT, "{{ problem }}")])
def test_a_system_prompt_that_nothing_would_use_is_refused(tokenizer, template):
    with pytest.raises(ValueError, match="no chat template to put the system prompt in"):
        render_prompt("1+1", tokenizer, template=template, system_prompt="Be brief.")


def encode(texts, tokenizer=PLAIN, template=None, limit=100, on_long="error"):
    examples = [Example(text, "0", None, {}) for text in texts]
    options = {"template": template, "system_prompt": None, "max_prompt_tokens": limit, "on_long": on_long}
    return encode_prompts(examples, tokenizer, **options)


def decode(prompt):
    return "".join(map(chr, prompt.token_ids))


def test_special_tokens_are_added_once_and_not_to_a_chat():
    assert decode(encode(["1+1"])[0]) == "^1+1"
    assert decode(encode(["1+1"], template="^Q {{ problem }}")[0]) == "^Q 1+1"
    assert decode(encode(["1+1"], CHAT)[0]) == "<user>1+1<assistant>"


def test_a_long_prompt_is_refused_with_the_remedy():
    with pytest.raises(ValueError, match=r"row 1: the prompt has 6 tokens.*max_prompt_tokens = 5; 2 of 4.*has 8.*drop"):
        encode(["abcd", "abcde", "ab", "abcdefg"], limit=5)


def test_dropping_long_prompts_says_which_stay():
    prompts = encode(["abcde", "abcd", "abcdefg", "ab"], limit=5, on_long="drop")
    assert [(p.row, p.example.problem, decode(p)) for p in prompts] == [(1, "abcd", "^abcd"), (3, "ab", "^ab")]
    with pytest.raises(ValueError, match="no prompt of 2 has at most max_prompt_tokens = 2"):
        encode(["abc", "abcd"], limit=2, on_long="drop")


@pytest.mark.parametrize(("num_examples", "batch_size"), [(10, 3), (12, 4), (7, 7), (5, 1)])
def test_every_epoch_is_a_permutation(num_examples, batch_size):
    steps = num_examples * 3
    stream = [i for step in range(steps) for i in batch_indices(num_examples, batch_size, step, seed=5)]
    assert len(stream) == steps * batch_size
    epochs = [stream[start : start + num_examples] for start in range(0, len(stream), num_examples)]
    assert all(sorted(epoch) == list(range(num_examples)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs[:3]}) > 1, "every epoch has the same order"


def test_batch_is_a_function_of_step_and_seed_alone():
    later_first = [batch_indices(50, 8, step, seed=1) for step in (9, 2)]
    assert later_first == [batch_indices(50, 8, step, seed=1) for step in (9, 2)]
    assert batch_indices(50, 8, 2, seed=2) != later_first[1]
    assert all(type(i) is int for i in later_first[0])


def test_epochs_are_counted_in_examples():
    assert [epoch_of(10, 4, step) for step in (0, 5, 10)] == [0.0, 2.0, 4.0]


def test_an_impossible_batch_is_refused():
    for call in (lambda n: batch_indices(10, n, 0, seed=0), lambda n: epoch_of(10, n, 0)):
        for size in (0, 11):
            with pytest.raises(ValueError, match=f"batch of {size} cannot be drawn from 10"):
                call(size)
    with pytest.raises(ValueError, match="step -1"):
        batch_indices(10, 2, -1, seed=0)


def test_reading_a_file_does_not_import_the_datasets_library(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert len(load_file(write(tmp_path / "d.jsonl", ROWS))) == 3
