"""The running batch's sampling: every option against numpy, and every row as if it were alone."""

from dataclasses import dataclass
from random import Random

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from deltarl.rollout.params import RepetitionDetection, SamplingParams
from deltarl.rollout.repetition import RepetitionRows
from deltarl.rollout.sampling_rows import SamplingRows, penalise

VOCAB = 23


def logits_of(rows: int, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed))


def start(rows: SamplingRows, params: list[SamplingParams], prompts=None, answers=None, first: int = 0) -> None:
    n = len(params)
    seeds = [1000 + 7 * (first + i) for i in range(n)]
    rows.start(torch.arange(first, first + n), params, seeds, prompts or [[1]] * n, answers or [[]] * n)


def one_step(params: SamplingParams, logits: torch.Tensor, draws: int, prompt=(1,), answer=()):
    """Draws of many samples with the same parameters in the same place."""
    rows = SamplingRows(draws, VOCAB)
    start(rows, [params] * draws, [prompt] * draws, [answer] * draws)
    return rows.draw(draws, logits.expand(draws, -1), torch.full((draws,), len(answer)))[0]


def distribution(params: SamplingParams, logits: np.ndarray, prompt: list[int], answer: list[int]) -> np.ndarray:
    """Written token by token, in the order of vLLM."""
    x = logits.astype(np.float64).copy()
    if len(answer) < params.min_tokens:
        x[list(params.stop_token_ids)] = -np.inf
    for token, bias in params.logit_bias.items():
        x[token] += bias
    for token in range(len(x)):
        if token in prompt or token in answer:
            x[token] = x[token] / params.repetition_penalty if x[token] > 0 else x[token] * params.repetition_penalty
        x[token] -= params.frequency_penalty * answer.count(token)
        x[token] -= params.presence_penalty * (token in answer)
    if params.temperature == 0:
        return np.eye(len(x))[x.argmax()]
    x = x / params.temperature
    probs = np.exp(x - x.max())
    probs /= probs.sum()
    probs[probs < params.min_p * probs.max()] = 0
    order = sorted(range(len(x)), key=lambda token: (-probs[token], token))
    if params.top_k > 0:
        probs[order[params.top_k :]] = 0
    probs /= probs.sum()
    reached = 0.0
    for token in order:
        if reached >= params.top_p:
            probs[token] = 0
        reached += probs[token]
    return probs / probs.sum()


OPTIONS = {
    "temperature": SamplingParams(temperature=0.6),
    "greedy": SamplingParams(temperature=0),
    "top_k": SamplingParams(top_k=4),
    "top_k beyond the vocabulary": SamplingParams(top_k=VOCAB + 50),
    "top_p": SamplingParams(top_p=0.7),
    "min_p": SamplingParams(min_p=0.1),
    "repetition": SamplingParams(repetition_penalty=1.8),
    "repetition wanted": SamplingParams(repetition_penalty=0.7),
    "presence": SamplingParams(presence_penalty=1.5),
    "frequency": SamplingParams(frequency_penalty=-0.8),
    "bias": SamplingParams(logit_bias={0: 1.5, 4: -2.0, VOCAB - 1: 3.0}),
    "bias that forces": SamplingParams(logit_bias={5: 100.0}),
    "bias that forbids": SamplingParams(logit_bias=dict.fromkeys(range(0, VOCAB, 2), -100.0)),
    "min_tokens": SamplingParams(min_tokens=8, stop_token_ids=(0, 3, 9), max_tokens=20),
    "min_tokens reached": SamplingParams(min_tokens=4, stop_token_ids=(0, 3, 9)),
    "greedy, adjusted": SamplingParams(temperature=0, logit_bias={2: 6.0}, repetition_penalty=2.0, top_k=3),
    "all": SamplingParams(
        temperature=0.9,
        top_k=9,
        top_p=0.95,
        min_p=0.01,
        repetition_penalty=1.2,
        presence_penalty=0.3,
        frequency_penalty=0.2,
        logit_bias={7: 2.0, 8: -torch.inf},
        min_tokens=8,
        max_tokens=20,
        stop_token_ids=(1, 2),
        logprobs=3,
    ),
}
PROMPT, ANSWER = [1, 4, 4, 11, 17], [4, 9, 9, 9, 20]


@pytest.mark.parametrize("name", OPTIONS)
def test_draws_follow_the_distribution_of_numpy(name):
    params, draws = OPTIONS[name], 5_000
    logits = logits_of(1, 5)[0]
    token, logprob, sampling_logprob = one_step(params, logits, draws, PROMPT, ANSWER)
    want = distribution(params, logits.numpy(), PROMPT, ANSWER)
    possible = want * draws > 1e-9
    counts = np.bincount(token.numpy(), minlength=VOCAB)
    assert (counts[~possible] == 0).all()
    freedom = max(1, possible.sum() - 1)
    chi_square = ((counts - draws * want)[possible] ** 2 / (draws * want)[possible]).sum()
    assert chi_square < freedom + 6 * (2 * freedom) ** 0.5
    np.testing.assert_allclose(sampling_logprob.numpy(), np.log(want[token.numpy()]), atol=3e-6)
    assert torch.equal(logprob, (logits / (params.temperature or 1.0)).log_softmax(-1)[token])


@dataclass
class Sample:
    """One sample on its way: what it drew so far."""

    params: SamplingParams
    seed: int
    prompt: list[int]
    logits: torch.Tensor  # [steps, vocab]
    answer: list[int]
    draws: list[tuple]

    def alone(self) -> list[tuple]:
        rows = SamplingRows(1, VOCAB)
        rows.start(torch.tensor([0]), [self.params], [self.seed], [self.prompt], [[]])
        out = []
        for step in range(len(self.draws)):
            draw, top = rows.draw(1, self.logits[step : step + 1], torch.tensor([step]))
            out.append((*(x.item() for x in draw), top_of(self.params, top, 0)))
        return out


def top_of(params: SamplingParams, top, row: int):
    if params.logprobs is None:
        return None
    n = params.logprobs
    return top.ids[row, :n].tolist(), top.logprobs[row, :n].tolist()


def any_params(random: Random) -> SamplingParams:
    pick = random.choice
    return SamplingParams(
        temperature=pick([0.0, 0.3, 1.0, 1.0, 1.7]),
        top_k=pick([-1, 0, 0, 1, 5, 99]),
        top_p=pick([1.0, 1.0, 0.8, 0.1]),
        min_p=pick([0.0, 0.0, 0.05, 1.0]),
        repetition_penalty=pick([1.0, 1.0, 1.3, 0.8]),
        presence_penalty=pick([0.0, 0.0, 1.0]),
        frequency_penalty=pick([0.0, 0.0, -0.5]),
        logit_bias={random.randrange(VOCAB): pick([-100.0, -1.0, 2.0, 100.0]) for _ in range(pick([0, 0, 1, 3]))},
        stop_token_ids=tuple(random.sample(range(VOCAB), pick([0, 0, 1, 3]))),
        min_tokens=pick([0, 0, 3]),
        logprobs=pick([None, None, 0, 2, 20]),
    )


@pytest.mark.parametrize("seed", range(40))
def test_a_row_is_sampled_as_if_it_were_alone(seed):
    """Samples come, go, move and are interrupted at random; each one draws what it draws alone, to the bit."""
    random = Random(seed)
    capacity, steps = 4, 6
    params = [any_params(random) for _ in range(random.randint(1, 8))]
    waiting = []
    for i, p in enumerate(params):
        prompt = [random.randrange(VOCAB) for _ in range(3)]
        logits = logits_of(steps, 50 + i)
        logits[random.randrange(steps), random.randrange(VOCAB)] = -torch.inf
        waiting.append(Sample(p, random.getrandbits(60), prompt, logits, [], []))
    everything, running = list(waiting), []
    rows = SamplingRows(capacity, VOCAB)
    while waiting or running:
        new = [waiting.pop(0) for _ in range(min(len(waiting), capacity - len(running), random.randint(0, 3)))]
        if new:
            index = torch.arange(len(running), len(running) + len(new))
            fields = ([getattr(s, name) for s in new] for name in ("params", "seed", "prompt", "answer"))
            rows.start(index, *fields)
            running += new
        if not running:
            continue
        position = torch.tensor([len(s.answer) for s in running])
        logits = torch.stack([s.logits[len(s.answer)] for s in running])
        draw, top = rows.draw(len(running), logits, position)
        for row, s in enumerate(running):
            s.draws.append((*(x[row].item() for x in draw), top_of(s.params, top, row)))
            s.answer.append(int(draw.token[row]))
        gone = {row for row, s in enumerate(running) if len(s.answer) == steps}
        paused = {row for row in range(len(running)) if row not in gone and random.random() < 0.15}
        waiting += [running[row] for row in sorted(paused)]
        remaining = len(running) - len(gone | paused)
        holes = [row for row in range(remaining) if row in gone | paused]
        movers = [row for row in range(remaining, len(running)) if row not in gone | paused]
        rows.move(torch.tensor(movers, dtype=torch.int64), torch.tensor(holes, dtype=torch.int64))
        for hole, mover in zip(holes, movers, strict=True):
            running[hole] = running[mover]
        del running[remaining:]
    for s in everything:
        assert s.draws == s.alone()


def test_a_plain_row_is_the_same_beside_every_option():
    plain = SamplingParams(temperature=0.8)
    params = [plain, *OPTIONS.values()]
    logits = logits_of(1, 3).expand(len(params), -1)
    rows, alone = SamplingRows(len(params), VOCAB), SamplingRows(1, VOCAB)
    start(rows, params)
    start(alone, [plain])
    for position in range(300):
        together = rows.draw(len(params), logits, torch.full((len(params),), position))[0]
        single = alone.draw(1, logits[:1], torch.tensor([position]))[0]
        assert all(torch.equal(x[:1], y) for x, y in zip(together, single, strict=True))
        assert torch.equal(single.logprob, single.sampling_logprob)


def test_penalties_by_hand():
    logits = torch.tensor([[4.0, -4.0, 4.0, 1.0, 0.5]])
    in_prompt = torch.tensor([[True, True, False, False, False]])
    count = torch.tensor([[0, 0, 2, 1, 0]], dtype=torch.int32)
    one = torch.ones(1)
    got = penalise(logits, in_prompt, count, 2 * one, 0.25 * one, 0.5 * one)
    assert got.tolist() == [[2.0, -8.0, 2.0 - 1.0 - 0.25, 0.5 - 0.5 - 0.25, 0.5]]
    assert torch.equal(penalise(logits, in_prompt, count, one, 0 * one, 0 * one), logits)


def test_drawn_tokens_are_counted():
    params = SamplingParams(temperature=0, presence_penalty=2.0, frequency_penalty=2.0)
    rows = SamplingRows(1, VOCAB)
    start(rows, [params])
    logits = torch.zeros(1, VOCAB)
    logits[0, 3], logits[0, 8] = 9.0, 4.0
    tokens = [rows.draw(1, logits, torch.tensor([i]))[0].token.item() for i in range(4)]
    assert tokens == [3, 3, 8, 3]  # 9, 9-4, 9-6 < 4, then 8 at 4-4 against 3 at 9-6


def test_stop_tokens_and_the_mask_before_min_tokens():
    params = [
        SamplingParams(stop_token_ids=(2, 5), min_tokens=2, temperature=0),
        SamplingParams(temperature=0),
        SamplingParams(stop_token_ids=(2,), temperature=0),
    ]
    rows = SamplingRows(3, VOCAB)
    start(rows, params)
    logits = torch.zeros(3, VOCAB)
    logits[:, 2], logits[:, 5], logits[:, 6] = 3.0, 2.0, 1.0
    for position, want in enumerate([[6, 2, 2], [6, 2, 2], [2, 2, 2]]):
        token = rows.draw(3, logits, torch.full((3,), position))[0].token
        assert token.tolist() == want
        assert rows.stopped(3, token).tolist() == [want[0] == 2, False, True]
    assert rows.stopped(2, torch.tensor([5, 0])).tolist() == [True, False]


class Operations(TorchDispatchMode):
    """Names of the operations that were called."""

    def __init__(self):
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.overloadpacket.__name__)
        indices = [x for arg in args if isinstance(arg, list) for x in arg if isinstance(x, torch.Tensor)]
        if any(x.dtype == torch.bool for x in indices):
            self.names.add("mask")  # an index of unknown size
        return func(*args, **(kwargs or {}))


def test_a_step_never_waits_for_the_device():
    params = [*OPTIONS.values()]
    n = len(params)
    rows, repetition = SamplingRows(n, VOCAB), RepetitionRows(n)
    start(rows, params)
    repetition.start(torch.arange(n), [RepetitionDetection(3)] * n, [[]] * n)
    logits, position, tokens = logits_of(n), torch.zeros(n, dtype=torch.int64), torch.zeros(n, 9, dtype=torch.int64)
    rows.draw(n, logits, position)  # the first draw after a start may
    with Operations() as seen:
        draw, top = rows.draw(n, logits, position + 1)
        rows.stopped(n, draw.token)
        repetition.repeats(n, tokens, position + 2)
    assert top is not None
    assert {"searchsorted", "topk", "scatter_add_", "gather"} <= seen.names
    assert not seen.names & {"_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "equal", "mask", "unique"}


def test_top_logprobs_are_as_many_as_the_row_that_wants_most():
    rows = SamplingRows(3, VOCAB)
    start(rows, [SamplingParams(logprobs=2), SamplingParams(), SamplingParams(logprobs=5)])
    assert rows.draw(3, logits_of(3), torch.zeros(3, dtype=torch.int64))[1].ids.shape == (3, 5)
    assert rows.draw(2, logits_of(2), torch.ones(2, dtype=torch.int64))[1].ids.shape == (2, 2)
    start(rows, [SamplingParams(logprobs=0)])
    assert rows.draw(1, logits_of(1), torch.zeros(1, dtype=torch.int64))[1].ids.shape == (1, 0)
    start(rows, [SamplingParams()])
    assert rows.draw(1, logits_of(1), torch.zeros(1, dtype=torch.int64))[1] is None


def test_tables_exist_only_while_a_row_needs_them():
    rows = SamplingRows(3, VOCAB)
    position = torch.zeros(3, dtype=torch.int64)
    start(rows, [SamplingParams(), SamplingParams(logit_bias={1: 1.0, 2: 1.0})])
    rows.draw(2, logits_of(2), position[:2])
    assert rows._count is None
    start(rows, [SamplingParams(presence_penalty=1.0)], first=2)
    rows.draw(3, logits_of(3), position)
    assert rows._count.shape == rows._in_prompt.shape == (3, VOCAB)
    assert rows._bias.shape == (3, 2)
    rows.move(torch.tensor([2]), torch.tensor([1]))  # the biased row ends, the penalised one takes its place
    rows.draw(2, logits_of(2), position[:2])
    assert rows._count.sum() > 0
    assert rows._bias.shape == (3, 0)
    rows.draw(1, logits_of(1), position[:1])
    assert rows._count is rows._in_prompt is None


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (SamplingParams(logit_bias={0: 1.0, VOCAB: 1.0}), f"logit_bias has token id {VOCAB}, outside the vocabulary"),
        (SamplingParams(logit_bias={-1: 1.0}), "logit_bias has token id -1"),
        (SamplingParams(stop_token_ids=(3, 999)), "stop_token_ids has token id 999"),
        (SamplingParams(logit_bias={3: float("nan")}), "logit_bias of token 3 is nan"),
        (SamplingParams(logit_bias={3: float("inf")}), "logit_bias of token 3 is inf"),
        (SamplingParams(stop_token_ids=tuple(range(VOCAB)), min_tokens=1), "forbid every token"),
        (SamplingParams(logit_bias={i: -float("inf") for i in range(VOCAB)}), "forbid every token"),
    ],
)
def test_what_a_vocabulary_does_not_have_is_refused_before_anything_changes(params, message):
    rows = SamplingRows(2, VOCAB)
    start(rows, [SamplingParams(temperature=0.5)])
    before = rows.draw(1, logits_of(1), torch.zeros(1, dtype=torch.int64))[0]
    with pytest.raises(ValueError, match=message):
        start(rows, [SamplingParams(temperature=0), params])
    after = rows.draw(1, logits_of(1), torch.zeros(1, dtype=torch.int64))[0]
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))


def test_ids_to_penalise_must_be_in_the_vocabulary():
    rows = SamplingRows(1, VOCAB)
    with pytest.raises(ValueError, match=f"prompt has token id {VOCAB}"):
        start(rows, [SamplingParams(presence_penalty=1.0)], prompts=[[0, VOCAB]])


def test_all_but_one_token_forbidden_by_bias():
    params = SamplingParams(
        logit_bias={i: -float("inf") for i in range(VOCAB) if i != 6}, top_k=3, top_p=0.9, min_p=0.1
    )
    token, _, sampling_logprob = one_step(params, logits_of(1)[0], 50)
    assert (token == 6).all()
    assert (sampling_logprob == 0).all()


def test_no_rows_at_all():
    rows = SamplingRows(2, VOCAB)
    draw, top = rows.draw(0, torch.zeros(0, VOCAB), torch.zeros(0, dtype=torch.int64))
    assert [len(x) for x in draw] == [0, 0, 0]
    assert top is None
    none = torch.zeros(0, dtype=torch.int64)
    rows.start(none, [], [], [], [])
    rows.move(none, none)
