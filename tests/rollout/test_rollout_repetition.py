"""Answers that go round in circles, found at the token that completes the repetition."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deltarl.rollout.params import RepetitionDetection
from deltarl.rollout.repetition import RepetitionRows


def repeats(answer: list[int], d: RepetitionDetection | None) -> bool:
    """The definition: the end is one pattern, min_count times."""
    if d is None:
        return False
    sizes = range(d.min_pattern_size, d.max_pattern_size + 1)
    return any(
        len(answer) >= p * d.min_count and answer[-p * d.min_count :] == answer[-p:] * d.min_count for p in sizes
    )


def table_of(answers: list[list[int]]) -> torch.Tensor:
    table = torch.full((len(answers), 80), 1)  # rubbish beyond the end, such as an earlier sample's tokens
    for row, answer in zip(table, answers, strict=True):
        row[: len(answer)] = torch.tensor(answer)
    return table


def detections() -> st.SearchStrategy[RepetitionDetection | None]:
    sizes = st.tuples(st.integers(1, 6), st.integers(1, 6)).map(sorted)
    some = st.builds(lambda s, c: RepetitionDetection(s[1], s[0], c), sizes, st.integers(2, 4))
    return st.one_of(st.none(), some)


# Few different tokens, and repeated pieces: repetitions are common.
answers = st.lists(
    st.tuples(st.lists(st.integers(0, 2), min_size=1, max_size=4), st.integers(1, 5)).map(lambda x: x[0] * x[1]),
    min_size=1,
    max_size=4,
).map(lambda pieces: [token for piece in pieces for token in piece][:60])


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(answers, detections(), st.integers(0, 20)), min_size=1, max_size=5))
def test_every_length_of_every_row_is_judged_by_the_definition(samples):
    """Each row starts with some tokens already there (a resumed sample) and gets the others one by one."""
    rows = RepetitionRows(len(samples))
    done = [min(start, len(answer) - 1) for answer, _, start in samples]
    begun = [answer[:n] for (answer, _, _), n in zip(samples, done, strict=True)]
    rows.start(torch.arange(len(samples)), [d for _, d, _ in samples], begun)
    for step in range(1, 61):
        so_far = [answer[: n + step] for (answer, _, _), n in zip(samples, done, strict=True)]
        length = torch.tensor([len(x) for x in so_far])
        got = rows.repeats(len(samples), table_of(so_far), length)
        going = [n + step <= len(answer) for (answer, _, _), n in zip(samples, done, strict=True)]
        if not any(going):
            break
        want = [repeats(x, d) for x, (_, d, _) in zip(so_far, samples, strict=True)]
        if all(d is None for _, d, _ in samples):
            assert got is None
        else:
            assert [w for w, g in zip(got.tolist(), going, strict=True) if g] == [
                w for w, g in zip(want, going, strict=True) if g
            ]


def test_rows_move_and_start_again():
    loop, free = RepetitionDetection(2, min_count=3), None
    rows = RepetitionRows(3)
    rows.start(torch.arange(3), [free, free, loop], [[], [], [7, 8, 7, 8]])
    rows.move(torch.tensor([2]), torch.tensor([0]))
    both = [[7, 8, 7, 8, 7], [1]]
    assert rows.repeats(2, table_of(both), torch.tensor([5, 1])).tolist() == [False, False]
    rows.start(torch.tensor([2]), [RepetitionDetection(5, min_count=2)], [[]])  # a wider one comes meanwhile
    every = [[7, 8, 7, 8, 7, 8], [1, 1], [4]]
    assert rows.repeats(3, table_of(every), torch.tensor([6, 2, 1])).tolist() == [True, False, False]
    rows.start(torch.tensor([0]), [loop], [[]])  # nothing of the earlier sample is left
    every = [[8], [1, 1, 1], [4, 4]]
    assert rows.repeats(3, table_of(every), torch.tensor([1, 3, 2])).tolist() == [False, False, True]
    rows.start(torch.tensor([0]), [free], [[]])
    assert rows.repeats(2, table_of(every[:2]), torch.tensor([1, 3])) is None
    assert rows._run.numel() == 0
