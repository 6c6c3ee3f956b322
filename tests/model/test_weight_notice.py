"""The checksum taken where the weights are: the same whatever holds them, and another for any change."""

import pytest
import torch
from torch import nn

from deltarl.model import weight_buckets
from deltarl.model.weight_notice import CHUNK, Notice, digest_of, word_sum
from deltarl.model.weights import WeightMismatchError


def tensors() -> dict[str, torch.Tensor]:
    gen = torch.Generator().manual_seed(0)
    return {
        "long": torch.randn(2 * CHUNK + 5, generator=gen, dtype=torch.float64),
        "odd": torch.randn(7, 3, generator=gen).to(torch.bfloat16),
        "scalar": torch.tensor(2.5),
        "none": torch.empty(0, 4),
        "flags": torch.tensor([True, False, True]),
    }


def test_the_sum_is_that_of_whole_numbers_in_any_layout_of_memory():
    words = [3, -1, 2**62, -(2**63)]
    step = 0x9E3779B97F4A7C15
    expected = sum(w * (2 * i * step + 1) for i, w in enumerate(words)) % 2**64
    assert int(word_sum(torch.tensor(words))) % 2**64 == expected
    x = tensors()["odd"]
    apart, shifted = torch.empty(3, 7, dtype=x.dtype).T.copy_(x), torch.empty(22, dtype=x.dtype)[1:].view(7, 3).copy_(x)
    assert not apart.is_contiguous()
    assert word_sum(apart) == word_sum(shifted) == word_sum(x)


@pytest.mark.parametrize("digest", ["sum64", "xxh3"])
def test_any_change_shows(digest):
    before = digest_of(tensors(), digest)
    assert digest_of(dict(reversed(tensors().items())), digest) == before
    seen = {before}

    def changed(change) -> None:
        found = tensors()
        change(found)
        seen.add(digest_of(found, digest))

    def swap(x: torch.Tensor, i: int, j: int) -> None:
        x[[i, j]] = x[[j, i]]

    changes = [
        lambda t: t["long"].view(torch.int64)[CHUNK].bitwise_xor_(1),
        lambda t: t["long"].view(torch.int64)[-1].bitwise_xor_(-(2**63)),
        lambda t: swap(t["long"], 3, 4),
        lambda t: swap(t["long"], 3, CHUNK + 3),
        lambda t: t["long"][10:CHUNK].zero_(),
        lambda t: t["odd"][-1, -1].neg_(),
        lambda t: t["flags"][-1].logical_not_(),
        lambda t: t["scalar"].add_(1),
        lambda t: t.update(none=torch.empty(0, 3)),
        lambda t: t.update(odd=t["odd"].view(3, 7)),
        lambda t: t.update(other=t.pop("scalar")),
        lambda t: t.update(odd=t["odd"].view(torch.float16)),
    ]
    for change in changes:
        changed(change)
    assert len(seen) == 1 + len(changes)


def test_weights_that_do_not_fit_are_refused_by_name():
    model, other = nn.Linear(3, 2), nn.Linear(3, 2, dtype=torch.bfloat16)
    notice = Notice.of(4, model.state_dict())
    assert notice.nbytes == 32
    notice.check_arrived(model.state_dict())
    notice.check_fits(model.state_dict())
    with pytest.raises(
        WeightMismatchError, match=r"weights version 4 and the model differ in \['bias', 'weight'\]: bias"
    ):
        notice.check_fits(other.state_dict())
    with pytest.raises(WeightMismatchError, match=r"differ in \['bias'\]: bias.*the model has None"):
        notice.check_fits(nn.Linear(3, 2, bias=False).state_dict())
    model.weight.data[0, 0] += 1e-6
    with pytest.raises(WeightMismatchError, match="weights version 4: checksum"):
        notice.check_arrived(model.state_dict())


@pytest.mark.parametrize("sizes", [(7,), (5, 900, 3, 3, 40), (0, 130, 64)])
def test_buckets_hold_every_byte_once_and_no_more_than_they_may(monkeypatch, sizes):
    monkeypatch.setattr(weight_buckets, "BUCKET", 64)
    sent = {f"w{i}": torch.randint(-99, 99, (n,), dtype=torch.int32) for i, n in enumerate(sizes)}
    received = {name: torch.zeros_like(x) for name, x in sent.items()}
    there, here = (list(weight_buckets.cut(x, torch.device("cpu"))) for x in (sent, received))
    assert sum(b.buffer.numel() for b in there) == sum(4 * n for n in sizes)
    assert max(b.buffer.numel() for b in there) <= 64
    assert len(there) > 1 or sum(sizes) < 16
    for a, b in zip(there, here, strict=True):
        a.pack(sending=True)
        b.pack(sending=False)
        b.buffer.copy_(a.buffer)
        b.unpack()
    assert all(torch.equal(sent[name], received[name]) for name in sent)
