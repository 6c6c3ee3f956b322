"""Requests while others run: few pages, long prompts, pauses, new weights, shared beginnings, aborts."""

import gc
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rollout_models import CONTEXT, VOCAB, GroupEngine, Trajectory, largest_gap, policy, random_prompts

from deltarl.model.cache import PAGE_SIZE
from deltarl.model.tokenizer import byte_tokenizer
from deltarl.model.weights import WeightMismatchError, WeightUpdate, checksum
from deltarl.rollout.engine import Engine
from deltarl.rollout.params import RepetitionDetection, SamplingParams
from deltarl.rollout.snapshot import Snapshot

KINDS = ["hybrid", "attention"]


def params_of(i: int, n: int = 2, max_tokens: int = 40, **options) -> SamplingParams:
    return SamplingParams(n=n, max_tokens=max_tokens, seed=100 + i, **options)


def run(engine: Engine, steps: int = 10_000) -> dict[str, list[Trajectory]]:
    """Steps until all is done, or so many times."""
    done = {}
    for _ in range(steps):
        if not engine.has_unfinished_requests():
            break
        for output in engine.step():
            assert output.finished
            done[output.request_id] = Trajectory.of(output)
    return done


def assert_same(got: list[Trajectory], want: list[Trajectory], tolerance: float = 1e-6) -> None:
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        assert (a.completion_ids, a.finish_reason) == (b.completion_ids, b.finish_reason)
        assert a.logprobs == pytest.approx(b.logprobs, abs=tolerance, rel=0)
        assert a.sampling_logprobs == pytest.approx(b.sampling_logprobs, abs=tolerance, rel=0)


def everything_is_back(engine: Engine) -> None:
    stats = engine.stats()
    assert (stats.running, stats.waiting, stats.free_pages) == (0, 0, stats.total_pages)
    assert not engine.has_unfinished_requests()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_pages", [6, 7, 9, 14])
def test_few_pages_change_no_answer(kind, num_pages):
    model, prompts = policy(kind), random_prompts([5, 31, 40, 33, 64, 1])
    params = [params_of(i) for i in range(len(prompts))]
    want = GroupEngine(model).generate(prompts, params)
    engine = GroupEngine(model, max_num_seqs=8, num_pages=num_pages)
    for got, expected in zip(engine.generate(prompts, params), want, strict=True):
        assert_same(got, expected)
    assert engine.stats().preemptions > 0 or num_pages > 9
    everything_is_back(engine)


def test_a_request_that_can_never_fit_is_refused_at_once():
    engine = Engine(policy(), num_pages=4)
    with pytest.raises(ValueError, match=r"may need 6 pages of 32 tokens and there are 4: raise num_pages"):
        engine.add_request("long", [3] * 40, params_of(0, max_tokens=80))
    engine.add_request("short", [3] * 40, params_of(0, max_tokens=20))
    assert len(run(engine)["short"]) == 2


@pytest.mark.parametrize("kind", [*KINDS, "forgetful"])
def test_long_prompts_come_in_pieces_while_others_decode(kind):
    model, prompts = policy(kind), random_prompts([100, 3, 77, 90])
    params = [params_of(i, max_tokens=20) for i in range(4)]
    want = GroupEngine(model).generate(prompts, params)
    engine = Engine(model, max_prefill_tokens=16)
    engine.add_request("1", prompts[1], params[1])
    engine.step()
    for i in (0, 2, 3):
        engine.add_request(str(i), prompts[i], params[i])
    engine.step()
    engine.step()
    assert len(engine.progress("1").outputs[0].token_ids) == 3  # nobody waits for a prompt
    got = run(engine)
    for i in range(4):
        assert_same(got[str(i)], want[i])
        assert max(largest_gap(model, t) for t in got[str(i)]) <= 1e-5


def test_requests_may_come_at_any_time_and_progress_can_be_watched():
    model, prompts = policy(), random_prompts([9, 20, 30, 4])
    want = GroupEngine(model).generate(prompts, [params_of(i) for i in range(4)])
    engine = Engine(model, max_num_seqs=3)
    got, seen = {}, 0
    for i, prompt in enumerate(prompts):
        engine.add_request(str(i), prompt, params_of(i))
        for _ in range(7):
            got |= {o.request_id: Trajectory.of(o) for o in engine.step()}
            if "0" not in got:
                now = engine.progress("0").outputs[0].token_ids
                assert now == want[0][0].completion_ids[: len(now)]
                assert len(now) >= seen
                seen = len(now)
    got |= run(engine)
    for i in range(4):
        assert_same(got[str(i)], want[i])
    with pytest.raises(KeyError):
        engine.progress("0")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [0, 1, 13, 25])
def test_a_paused_request_goes_on_in_another_engine_to_the_same_tokens(kind, steps):
    model, prompts = policy(kind), random_prompts([9, 33])
    params = params_of(0, n=3, stop_token_ids=(3, 4), repetition_penalty=1.2)
    want = GroupEngine(model).generate(prompts, params)
    first, second = Engine(model), Engine(model, max_num_seqs=2)
    for i, prompt in enumerate(prompts):
        first.add_request(str(i), prompt, params)
    done = run(first, steps)
    for i in range(2):
        snapshots = [Snapshot.from_bytes(s.to_bytes()) for s in first.pause(str(i))] if str(i) not in done else []
        rest = {s.index for s in snapshots}
        if snapshots:
            second.resume(str(i), snapshots)
        finished = {o.request_id: Trajectory.of(o) for o in first.step()}.get(str(i), done.get(str(i), []))
        resumed = run(second).get(str(i), [])
        by_index = dict(zip(sorted(rest), resumed, strict=True))
        by_index |= dict(zip((k for k in range(3) if k not in rest), finished, strict=True))
        assert_same([by_index[k] for k in range(3)], want[i])
    everything_is_back(first)
    everything_is_back(second)


def test_the_size_of_a_snapshot_grows_with_the_latents_alone():
    sizes = {}
    for kind in KINDS:
        engine = Engine(policy(kind))
        engine.add_request("", random_prompts([9])[0], SamplingParams(max_tokens=100))
        run(engine, 5)
        early = engine.pause("")
        engine.resume("", early)
        run(engine, 40)
        sizes[kind] = early[0].nbytes, engine.pause("")[0].nbytes
    latent = (16 + 4) * 8
    assert sizes["hybrid"][1] - sizes["hybrid"][0] == 40 * latent
    assert sizes["attention"][1] - sizes["attention"][0] == 2 * 40 * latent


def test_a_state_is_not_taken_to_other_weights_unless_computed_again():
    model, other, params = policy(), policy(seed=1), params_of(0, n=1)
    first, second = Engine(model), Engine(policy())
    first.add_request("", random_prompts([9])[0], params)
    run(first, 10)
    (snapshot,) = first.pause("")
    second.load_weights(WeightUpdate.of(other, 5))
    with pytest.raises(ValueError, match="comes from weights version 0, this engine has 5"):
        second.resume("", [snapshot])
    second.resume("", [snapshot.without_state()])
    (answer,) = run(second)[""]
    assert answer.completion_ids[:10] == snapshot.answer.token_ids
    assert answer.weight_versions == [0] * 10 + [5] * 30
    tail = Trajectory(
        answer.prompt_ids + answer.completion_ids[:10], answer.completion_ids[10:], answer.logprobs[10:], [], [], ""
    )
    assert largest_gap(other, tail) <= 1e-5


def test_a_state_that_was_kept_names_the_weights_it_comes_from():
    other, prompt, params = policy(seed=1), random_prompts([9])[0], params_of(0, n=1)
    engine = Engine(policy())
    engine.add_request("", prompt, params)
    run(engine, 10)
    engine.load_weights(WeightUpdate.of(other, 3))
    (snapshot,) = engine.pause("")
    assert (snapshot.weight_version, snapshot.state_versions) == (3, (0,))  # nothing of it is of version 3
    engine.resume("", [snapshot])
    run(engine, 4)
    (snapshot,) = engine.pause("")
    snapshot = Snapshot.from_bytes(snapshot.to_bytes())
    assert (snapshot.weight_version, snapshot.state_versions) == (3, (0, 3))
    assert snapshot.without_state().state_versions == ()
    engine.resume("", [snapshot])
    want = run(engine)[""]

    keeping, replaying, old = Engine(policy()), Engine(policy(), in_flight="replay"), Engine(policy())
    for e in (keeping, replaying):
        e.load_weights(WeightUpdate.of(other, 3))
    keeping.resume("", [snapshot])
    assert_same(run(keeping)[""], want)
    for e in (replaying, old):
        with pytest.raises(ValueError, match=f"comes from weights version 0 and 3, this engine has {e.weight_version}"):
            e.resume("", [snapshot])

    replaying.resume("", [snapshot.without_state()])
    run(replaying, 3)
    (computed_again,) = replaying.pause("")
    assert (computed_again.answer.weight_versions, computed_again.state_versions) == ([0] * 10 + [3] * 7, (3,))


def test_going_on_leaves_the_snapshot_as_it_was():
    engine = Engine(policy())
    engine.add_request("", random_prompts([9])[0], params_of(0, n=1, logprobs=1))
    run(engine, 5)
    (snapshot,) = engine.pause("")
    before = snapshot.to_bytes()
    answers = []
    for _ in range(2):
        engine.resume("", [snapshot])
        answers += run(engine)[""]
    assert snapshot.to_bytes() == before
    assert_same(answers[:1], answers[1:])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("in_flight", ["keep", "replay"])
def test_new_weights_between_two_steps(kind, in_flight):
    model, other, prompts = policy(kind), policy(kind, seed=1), random_prompts([9, 20, 33])
    before = GroupEngine(model).generate(prompts, params_of(0))
    engine = Engine(policy(kind), in_flight=in_flight, max_num_seqs=4)
    for i, prompt in enumerate(prompts):
        engine.add_request(str(i), prompt, params_of(0))
    run(engine, 12)
    engine.load_weights(WeightUpdate.of(other, 3))
    got = run(engine)
    for i in range(3):
        for a, b in zip(got[str(i)], before[i], strict=True):
            old = a.weight_versions.count(0)
            assert a.weight_versions == [0] * old + [3] * (40 - old)
            assert a.completion_ids[:old] == b.completion_ids[:old]
            new = Trajectory(
                a.prompt_ids + a.completion_ids[:old], a.completion_ids[old:], a.logprobs[old:], [], [], ""
            )
            assert (largest_gap(other, new) <= 1e-5) == (in_flight == "replay" or old == 0)
    assert [t.weight_versions[0] for t in got["2"]] == [3, 3]  # had not started
    everything_is_back(engine)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("in_flight", ["keep", "replay"])
def test_new_weights_while_a_prompt_is_half_prefilled(kind, in_flight):
    other, prompt = policy(kind, seed=1), random_prompts([100])[0]
    engine = Engine(policy(kind), max_prefill_tokens=32, in_flight=in_flight)
    engine.add_request("", prompt, params_of(0))
    engine.step()
    engine.step()
    assert engine.stats().prompt_tokens == 64
    engine.load_weights(WeightUpdate.of(other, 3))
    got = run(engine)[""]
    assert_same(got, GroupEngine(other).generate([prompt], params_of(0))[0], 1e-5)
    assert all(t.weight_versions == [3] * 28 for t in got)


def test_unfinished_answers_go_on_in_the_next_iteration():
    model, prompts = policy(), random_prompts([9, 20, 33])
    params = [params_of(i, max_tokens=10 + 20 * i) for i in range(3)]
    want = GroupEngine(model).generate(prompts, params)
    engine, got, calls = Engine(model), {}, 0
    for i, prompt in enumerate(prompts):
        engine.add_request(str(i), prompt, params[i])
    while engine.has_unfinished_requests():
        before = engine.stats().generated_tokens
        got |= {o.request_id: Trajectory.of(o) for o in engine.run(40)}
        assert engine.stats().generated_tokens - before < 40 + 6
        calls += 1
    assert calls > 3
    for i in range(3):
        assert_same(got[str(i)], want[i])


def of_another_shape() -> WeightUpdate:
    arrays = dict(WeightUpdate.of(policy(seed=1), 3).arrays)
    arrays["lm_head.weight"] = arrays["lm_head.weight"][:-1]
    return WeightUpdate(3, checksum(arrays), arrays)


@pytest.mark.parametrize(
    ("update", "message"),
    [
        (lambda: WeightUpdate.of(policy("attention"), 3), "version 3 and the model differ in"),
        (of_another_shape, r"lm_head.weight: got shape \(36, 32\), the model has \(37, 32\)"),
        (
            lambda: replace(WeightUpdate.of(policy(seed=1), 3), checksum="0" * 32),
            "do not have their published checksum",
        ),
    ],
    ids=["names", "shape", "checksum"],
)
def test_weights_that_do_not_fit_change_nothing(update, message):
    engine = Engine(policy())
    engine.add_request("", random_prompts([9])[0], params_of(0))
    run(engine, 5)
    with pytest.raises(WeightMismatchError, match=message):
        engine.load_weights(update())
    assert engine.weight_version == 0
    assert_same(run(engine)[""], GroupEngine(policy()).generate(random_prompts([9]), params_of(0))[0])


@pytest.mark.parametrize("kind", KINDS)
def test_beginnings_that_prompts_share_are_computed_once(kind):
    model = policy(kind)
    system, turns = random_prompts([70])[0], random_prompts([9, 12, 20, 5], seed=3)
    prompts = [system + turn for turn in turns]
    want = GroupEngine(model).generate(prompts, params_of(0, max_tokens=15))
    engine = GroupEngine(model, prefix_cache_bytes=1 << 20)
    for i, prompt in enumerate(prompts):
        before = engine.stats().prompt_tokens
        assert_same(engine.generate([prompt], params_of(0, max_tokens=15))[0], want[i])
        computed = engine.stats().prompt_tokens - before
        assert computed == len(prompt) - (64 if i >= 2 else 0)  # the second left the state, the third found it
    assert engine.stats().prefix_cache_hits == 2
    assert 0 < engine.stats().prefix_cache_bytes <= 1 << 20
    engine.load_weights(WeightUpdate.of(policy(kind, seed=1), 2))
    assert engine.stats().prefix_cache_bytes == 0
    fresh = GroupEngine(policy(kind, seed=1)).generate([prompts[0]], params_of(0, max_tokens=15))
    assert_same(engine.generate([prompts[0]], params_of(0, max_tokens=15))[0], fresh[0])
    everything_is_back(engine)


def test_the_prefix_cache_stays_within_its_bound():
    model = policy()
    one = Engine(model).stats().recurrent_bytes_per_row + 32 * 20 * 8
    engine = GroupEngine(model, prefix_cache_bytes=3 * one)
    for seed in range(6):
        for _ in range(2):
            engine.generate([random_prompts([40], seed=seed)[0]], SamplingParams(max_tokens=1))
            assert engine.stats().prefix_cache_bytes <= 3 * one
    assert engine.stats().prefix_cache_bytes == 3 * one


@pytest.mark.parametrize("steps", [0, 1, 2, 20])
def test_an_aborted_request_returns_what_there_is_and_leaves_the_others_alone(steps):
    model, prompts = policy(), random_prompts([60, 20])
    want = GroupEngine(model).generate(prompts, params_of(0))
    engine = Engine(model, max_num_seqs=3, max_prefill_tokens=32)
    for i, prompt in enumerate(prompts):
        engine.add_request(str(i), prompt, params_of(0))
    run(engine, steps)
    engine.abort_request("0")
    engine.abort_request("nobody")
    got = run(engine)
    for a, b in zip(got["0"], want[0], strict=True):
        assert a.finish_reason == "abort"
        assert a.completion_ids == b.completion_ids[: len(a.completion_ids)]
    assert_same(got["1"], want[1])
    everything_is_back(engine)


def test_rows_whose_logits_are_not_finite_end_alone():
    model, prompts = policy(), random_prompts([9, 20])
    poison = next(t for t in range(VOCAB) if all(t not in p for p in prompts))
    with torch.no_grad():
        model.model.embed_tokens.weight[poison] = float("nan")
    params = params_of(0, n=1, max_tokens=12, logit_bias={poison: -100.0})
    engine = Engine(model)
    engine.add_request("bad", [*prompts[0], poison], params)
    engine.add_request("good", prompts[1], params)
    got = run(engine)
    assert [t.finish_reason for t in got["bad"]] == ["error"]
    assert [len(t.completion_ids) for t in got["good"]] == [12]
    with pytest.raises(FloatingPointError, match="not finite under weights version 0"):
        engine.generate([[*prompts[0], poison]], params)
    everything_is_back(engine)


def resident_bytes() -> int:
    """Of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.slow
def test_ten_thousand_requests_leave_memory_where_it_was():
    engine = Engine(policy(), max_num_seqs=64, num_pages=200, tokenizer=byte_tokenizer())
    prompts = random_prompts([1 + i % 40 for i in range(1000)])
    objects, memory = [], []
    for k in range(10):
        for i, prompt in enumerate(prompts):
            stop = ("never",) if i % 3 else ()
            engine.add_request(f"{k}-{i}", prompt, SamplingParams(max_tokens=1 + i % 5, seed=k, logprobs=1, stop=stop))
        assert len(run(engine)) == 1000
        everything_is_back(engine)
        gc.collect()
        objects.append(len(gc.get_objects()))
        memory.append(resident_bytes())
    assert objects[-1] - objects[2] < 100  # of 7,000 requests
    assert memory[-1] - memory[2] < 4 << 20


def test_ten_thousand_samples_leave_everything_where_it_was():
    engine = GroupEngine(policy(), max_num_seqs=64, num_pages=200)
    prompts = random_prompts([1 + i % 40 for i in range(200)])
    for k in range(5):
        engine.generate(prompts, [SamplingParams(n=10, max_tokens=1 + i % 3, seed=k) for i in range(200)])
        everything_is_back(engine)
    assert engine.stats().generated_tokens == 5 * 10 * sum(1 + i % 3 for i in range(200))


def test_ids_are_unique_and_generate_wants_the_engine_for_itself():
    engine = Engine(policy())
    engine.add_request("a", [3, 4], SamplingParams())
    with pytest.raises(ValueError, match="there is a request 'a' already"):
        engine.add_request("a", [3, 4], SamplingParams())
    with pytest.raises(RuntimeError, match="the engine has other requests"):
        engine.generate([[3]], SamplingParams())


def test_logprobs_of_the_likeliest_tokens_come_if_asked_for():
    model, prompts = policy(), random_prompts([9, 9])
    engine = Engine(model, max_num_seqs=2)
    engine.add_request("with", prompts[0], params_of(0, n=1, max_tokens=6, logprobs=3))
    engine.add_request("without", prompts[1], params_of(0, n=1, max_tokens=9))
    outputs = {}
    while engine.has_unfinished_requests():
        outputs |= {o.request_id: o.outputs[0] for o in engine.step()}
    top = outputs["with"].top_logprobs
    assert [len(t) for t in top] == [3] * 6
    for token, logprob, best in zip(outputs["with"].token_ids, outputs["with"].logprobs, top, strict=True):
        if token in best:
            assert best[token] == pytest.approx(logprob, abs=1e-6)
        assert list(best.values()) == sorted(best.values(), reverse=True)
    assert outputs["without"].top_logprobs is None


def test_an_answer_that_goes_round_in_circles_is_ended():
    prompt = random_prompts([9])[0]
    bias = {7: 90.0}
    params = SamplingParams(
        max_tokens=60, temperature=1.0, logit_bias=bias, repetition_detection=RepetitionDetection(3, min_count=5)
    )
    engine = Engine(policy())
    engine.add_request("", prompt, params)
    (answer,) = run(engine)[""]
    assert (answer.completion_ids, answer.finish_reason) == ([7] * 5, "repetition")


def test_bad_snapshots_are_refused():
    with pytest.raises(ValueError, match="are not a snapshot of a sample"):
        Snapshot.from_bytes(b"12345678901234567890")


@pytest.mark.parametrize(
    "options", [{"num_pages": 0}, {"max_prefill_tokens": 8}, {"in_flight": "mix"}], ids=lambda x: next(iter(x))
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be"):
        Engine(policy(), **options)


def test_a_row_holds_as_many_tokens_as_the_context():
    assert CONTEXT % PAGE_SIZE == 0
    (answer,) = GroupEngine(policy("attention"), num_pages=5).generate([[5]], SamplingParams(max_tokens=CONTEXT))[0]
    assert len(answer.completion_ids) == CONTEXT - 1


@pytest.mark.parametrize("seed", range(6))
def test_anything_may_happen_in_any_order(seed):
    """Few pages, long prompts, pauses, replays and aborts at random: every request ends, with the right tokens."""
    rng = random.Random(seed)
    model = policy(("hybrid", "attention")[seed % 2])
    engine = Engine(
        model,
        max_num_seqs=rng.choice([1, 3, 6]),
        num_pages=rng.choice([6, 8, 11]),
        max_prefill_tokens=rng.choice([16, 48]),
        prefix_cache_bytes=rng.choice([0, 1 << 20]),
        in_flight=rng.choice(["keep", "replay"]),
    )
    beginning = random_prompts([40], seed=9)[0]
    prompts = [p if rng.random() < 0.5 else beginning + p[:20] for p in random_prompts([1 + i * 5 for i in range(12)])]
    params = [params_of(i, n=rng.randrange(1, 4), max_tokens=rng.randrange(1, 40)) for i in range(12)]
    want = GroupEngine(model).generate(prompts, params)
    got, paused, waiting, dead = {}, {}, list(range(12)), set()
    for _ in range(5000):
        if waiting and rng.random() < 0.2:
            i = waiting.pop(0)
            engine.add_request(str(i), prompts[i], params[i])
        for output in engine.step():
            got.setdefault(output.request_id, []).extend(output.outputs)
        name = rng.choice(list(engine._requests) or [None])
        event = rng.random()
        if name and event < 0.05:
            snapshots = engine.pause(name)
            paused[name] = [s.without_state() if rng.random() < 0.5 else s for s in snapshots]
        elif name and event < 0.06:
            engine.abort_request(name)
            dead.add(name)
        elif event < 0.08:
            engine.load_weights(WeightUpdate.of(model, engine.weight_version + 1))
            paused = {n: [s.without_state() for s in snapshots] for n, snapshots in paused.items()}
        resumable = [n for n in paused if not engine.has_unfinished_requests() or n not in engine._requests]
        if resumable and rng.random() < 0.3:
            engine.resume(resumable[0], paused.pop(resumable[0]))
        if not waiting and not paused and not engine.has_unfinished_requests():
            break
    else:
        raise AssertionError("it does not end")
    everything_is_back(engine)
    for i in range(12):
        answers = {o.index: o for o in got[str(i)]}
        assert sorted(answers) == list(range(params[i].n))
        for k, answer in answers.items():
            expected = want[i][k].completion_ids
            assert answer.token_ids == expected[: len(answer.token_ids)]
            assert str(i) in dead or answer.token_ids == expected
