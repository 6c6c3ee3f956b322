"""Packing, micro-batches, and the split over ranks and minibatches."""

import pytest
import torch

from deltarl.rl.batch import PackedBatch, TrainSample, micro_batches, split_batch


def sample(prompt: int, completion: int, advantage: float = 0.0) -> TrainSample:
    """Tokens are numbered, so that each tells where it came from."""
    ids = list(range(100, 100 + completion))
    return TrainSample.whole(list(range(prompt)), ids, [-0.5 * i for i in range(completion)], advantage)


def test_pack_points_each_answer_token_at_the_position_before_it():
    samples = [
        TrainSample.whole([5, 6], [7, 8], [-0.1, -0.2], 1.5),
        TrainSample.whole([9], [10, 11, 12], [-0.3, -0.4, -0.5], -2.0),
    ]
    batch = PackedBatch.pack(samples, torch.device("cpu"))
    #                                  0  1  2  3  4   5   6   7
    assert batch.input_ids.tolist() == [5, 6, 7, 8, 9, 10, 11, 12]
    assert batch.cu_seqlens.tolist() == [0, 4, 8]
    assert batch.predictor.tolist() == [1, 2, 4, 5, 6]
    assert batch.target.tolist() == [7, 8, 10, 11, 12]
    torch.testing.assert_close(batch.old_logprobs, torch.tensor([-0.1, -0.2, -0.3, -0.4, -0.5]))
    assert batch.advantages.tolist() == [1.5, 1.5, -2.0, -2.0, -2.0]
    assert batch.lengths.tolist() == [2, 3]
    assert torch.equal(batch.sampler_logprobs, batch.old_logprobs)
    assert batch.advantages.dtype == batch.old_logprobs.dtype == torch.float32


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (1000, [[5, 3, 4, 9, 2]]),
        (8, [[5, 3], [4], [9], [2]]),
        (7, [[5], [3, 4], [9], [2]]),
        (1, [[5], [3], [4], [9], [2]]),
    ],
)
def test_micro_batches_keep_the_order_and_the_limit(limit, expected):
    runs = micro_batches([sample(1, n - 1) for n in (5, 3, 4, 9, 2)], limit)
    assert [[len(s) for s in run] for run in runs] == expected


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
@pytest.mark.parametrize("num_minibatches", [1, 2])
def test_split_gives_every_sample_once_and_every_minibatch_its_token_count(num_ranks, num_minibatches):
    samples = [sample(2, 1 + i) for i in range(11)]
    split = split_batch(samples, num_ranks, num_minibatches)
    assert [len(rank) for rank in split] == [num_minibatches] * num_ranks
    dealt = sorted(len(s.completion_ids) for rank in split for minibatch in rank for s in minibatch.samples)
    assert dealt == list(range(1, 12))
    assert all(minibatch.samples for rank in split for minibatch in rank)
    for shares in zip(*split, strict=True):
        together = sum(len(s.completion_ids) for share in shares for s in share.samples)
        assert [share.global_tokens for share in shares] == [together] * num_ranks
        assert [share.global_answers for share in shares] == [sum(len(s.samples) for s in shares)] * num_ranks


@pytest.mark.parametrize("num_minibatches", [1, 2])
def test_ranks_together_work_on_the_minibatches_of_a_single_rank(num_minibatches):
    samples = [sample(2, 1 + i) for i in range(11)]
    (alone,) = split_batch(samples, 1, num_minibatches)
    for minibatch, *shares in zip(alone, *split_batch(samples, 3, num_minibatches), strict=True):
        together = [len(s.completion_ids) for share in shares for s in share.samples]
        assert sorted(together) == sorted(len(s.completion_ids) for s in minibatch.samples)


def test_a_policy_the_iteration_starts_with_is_kept_apart_from_the_sampler():
    samples = [TrainSample([5], [7], [-0.1], [1.0], old_logprobs=[-0.3]), TrainSample.whole([5], [7], [-0.2], 1.0)]
    batch = PackedBatch.pack(samples, torch.device("cpu"))
    torch.testing.assert_close(batch.sampler_logprobs, torch.tensor([-0.1, -0.2]))
    torch.testing.assert_close(batch.old_logprobs, torch.tensor([-0.3, -0.2]))
