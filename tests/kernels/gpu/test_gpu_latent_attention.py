"""The paged latent attention kernels against an fp64 reference, and the promises they make to the bit."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from deltarl.kernels.gpu.latent_attention import Tiling, append_latent, latent_attention_decode, store_latents
from deltarl.kernels.precision import core_dtype
from deltarl.model.cache import PAGE_SIZE
from deltarl.model.config import hybrid_config
from deltarl.model.mla_layer import MLALayer
from deltarl.model.packing import Packing

RANK, ROPE, HEADS, PAGE = 32, 8, 5, 16
# ‖error‖ / ‖reference‖ of one head: rounding of the weights and of the output to the dtype.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 8e-3, torch.float16: 1e-3}
# Of a row cut in blocks of 16, splits of 32, and at most 4 of those: on and beside every edge.
LENGTHS = [1, 15, 16, 17, 31, 32, 33, 0, 64, 65, 96, 127, 128, 129, 150]


@dataclass
class Rows:
    """Queries and the cached latents of rows: `latent[b]` is `[length[b], R + rope]`."""

    q: Tensor
    latent: list[Tensor]
    rank: int
    scale: float

    @classmethod
    def random(cls, lengths, device, dtype=torch.float32, heads=HEADS, rank=RANK, rope=ROPE, seed=0) -> "Rows":
        generator = torch.Generator().manual_seed(seed)
        q = torch.randn(len(lengths), heads, rank + rope, generator=generator) * 2
        latent = [torch.randn(n, rank + rope, generator=generator).to(device, dtype) for n in lengths]
        return cls(q.to(device, dtype), latent, rank, (rank + rope) ** -0.5)

    def __getitem__(self, rows: list[int]) -> "Rows":
        return replace(self, q=self.q[rows], latent=[self.latent[i] for i in rows])

    def length(self) -> Tensor:
        return torch.tensor([len(x) for x in self.latent], device=self.q.device)

    def paged(self, page_size: int = PAGE, spare: int = 0, seed: int = 1) -> tuple[Tensor, Tensor]:
        """Pages in random order, NaN or inf where no token is, and a table whose unused entries point nowhere."""
        needed = [-(-len(x) // page_size) for x in self.latent]
        order = torch.randperm(sum(needed) + 2, generator=torch.Generator().manual_seed(seed)).tolist()
        pages = self.q.new_full((len(order), page_size, self.q.shape[-1]), float("nan"))
        pages[::2] = float("inf")
        table = torch.full((len(self.latent), max([1, *needed]) + spare), 2**30, dtype=torch.int32)
        for b, x in enumerate(self.latent):
            for j in range(needed[b]):
                table[b, j] = order.pop()
                tokens = x[j * page_size : (j + 1) * page_size]
                pages[table[b, j], : len(tokens)] = tokens
        return pages, table.to(self.q.device)

    def expected(self) -> Tensor:
        """`[B, H, R]` in fp64."""
        out = self.q.new_zeros(*self.q.shape[:2], self.rank, dtype=torch.float64)
        for b, x in enumerate(self.latent):
            if len(x):
                weight = (self.q[b].double() @ x.double().T * self.scale).softmax(-1)
                out[b] = weight @ x[:, : self.rank].double()
        return out

    def tiling(self, **changes) -> Tiling:
        """Small enough that a short row has many blocks and splits."""
        return replace(Tiling.of(self.q), **{"block": 16, "split": 32, "max_splits": 4} | changes)

    def run(self, pages: Tensor, table: Tensor, tiling: Tiling | None = None) -> Tensor:
        return latent_attention_decode(
            self.q, pages, table, self.length(), self.rank, self.scale, tiling or self.tiling()
        )


def assert_near(got: Tensor, want: Tensor, tolerance: float) -> None:
    """Head by head; an error of NaN fails."""
    assert got.shape == want.shape
    error = (got.double() - want).norm(dim=-1)
    assert bool((error <= tolerance * want.norm(dim=-1)).all())


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("tokens_first", [False, True])
def test_every_length_gives_the_attention_over_its_tokens(tokens_first, dtype, device):
    rows = Rows.random(LENGTHS, device, dtype)
    got = rows.run(*rows.paged(), rows.tiling(tokens_first=tokens_first))
    assert got.dtype == dtype
    assert_near(got, rows.expected(), TOLERANCE[dtype])


@pytest.mark.parametrize("page_size", [4, 8, 16, 32, 64])
def test_pages_may_be_smaller_and_larger_than_blocks(page_size, device):
    rows = Rows.random([1, 31, 32, 65, 150], device)
    assert_near(rows.run(*rows.paged(page_size)), rows.expected(), TOLERANCE[torch.float32])


@pytest.mark.parametrize(("heads", "rank", "rope"), [(1, 32, 0), (33, 16, 4), (16, 48, 24), (17, 128, 64), (3, 512, 8)])
def test_sizes_that_are_not_those_of_a_tile(heads, rank, rope, device):
    rows = Rows.random([40, 3], device, torch.bfloat16, heads, rank, rope)
    assert_near(rows.run(*rows.paged()), rows.expected(), TOLERANCE[torch.bfloat16])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_released_models_sizes_and_the_tiling_they_get(dtype, device):
    rows = Rows.random([0, 1, 512, 545], device, dtype, heads=32, rank=512, rope=64)
    assert_near(rows.run(*rows.paged(32), Tiling.of(rows.q)), rows.expected(), TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_gets_the_very_numbers_it_gets_alone(dtype, device):
    rows = Rows.random(LENGTHS, device, dtype)
    together = rows.run(*rows.paged())
    for b in range(0, len(LENGTHS), 2):
        alone = rows[[b]]
        # On other pages, and with room for more of them, as well.
        assert torch.equal(alone.run(*alone.paged(seed=2, spare=13 * (b % 4)))[0], together[b])


def test_it_repeats_itself_to_the_bit(device):
    rows = Rows.random(LENGTHS, device, torch.bfloat16)
    pages, table = rows.paged()
    assert torch.equal(rows.run(pages, table), rows.run(pages, table))


def test_forks_of_a_prompt_share_its_pages(device):
    rows = Rows.random([40, 50, 33], device)
    rows.latent = [torch.cat([rows.latent[0][:32], x[32:]]) for x in rows.latent]
    pages, table = rows.paged()
    want = rows.run(pages, table)
    shared = table.clone()
    shared[1:, :2] = table[0, :2]
    pages[table[1:, :2].flatten()] = float("nan")
    assert torch.equal(rows.run(pages, shared), want)


def test_idle_rows_give_zeros(device):
    rows = Rows.random([0, 20, 0, 70, 0], device)
    rows.q[::2] = float("nan")
    got = rows.run(*rows.paged())
    assert not got[::2].any()
    assert_near(got[1::2], rows[[1, 3]].expected(), TOLERANCE[torch.float32])
    idle = rows[[0, 2]]
    assert not idle.run(*idle.paged()).any()


def test_large_scores_do_not_overflow(device):
    rows = Rows.random([150, 20], device)
    rows.q *= 1e2  # powers of two beyond 1000
    assert_near(rows.run(*rows.paged()), rows.expected(), 1e-3)


@pytest.mark.parametrize("rotary", [True, False])
def test_it_is_the_expanded_attention_with_and_without_rope(rotary, device):
    """Key and value of each head from the latents, the shared key part rotated by position, or not."""
    torch.manual_seed(0)
    nope, value, length = 12, 10, 70
    expand = torch.randn(HEADS, nope + value, RANK, dtype=torch.float64) / RANK**0.5
    q, compressed, shared = torch.randn(HEADS, nope + ROPE), torch.randn(length, RANK), torch.randn(length, ROPE)
    turned_q, turned_key = q[:, nope:].double(), shared.double()
    if rotary:
        turned_q = rotated(turned_q, torch.full((HEADS,), length - 1))
        turned_key = rotated(turned_key, torch.arange(length))
    key, mixed = torch.einsum("tr,hdr->htd", compressed.double(), expand).split([nope, value], -1)
    score = torch.einsum("hd,htd->ht", q[:, :nope].double(), key) + turned_q @ turned_key.T
    want = torch.einsum("ht,htd->hd", (score * 0.2).softmax(-1), mixed)

    absorbed = torch.cat([torch.einsum("hd,hdr->hr", q[:, :nope].double(), expand[:, :nope]), turned_q], -1)
    latent = torch.cat([compressed.double(), turned_key], -1)
    rows = Rows(absorbed.float().unsqueeze(0).to(device), [latent.float().to(device)], RANK, 0.2)
    out = torch.einsum("hr,hdr->hd", rows.run(*rows.paged())[0].double().cpu(), expand[:, nope:])
    assert_near(out, want, TOLERANCE[torch.float32])


def rotated(x: Tensor, position: Tensor) -> Tensor:
    """`[N, rope]` as complex pairs, turned by position."""
    frequency = 10_000.0 ** (-torch.arange(0, ROPE, 2) / ROPE)
    turn = torch.polar(torch.ones(len(x), ROPE // 2), position[:, None] * frequency)
    return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * turn).flatten(-2)


@pytest.mark.parametrize("rope", [True, False])
@torch.no_grad()
def test_the_layer_decodes_from_the_pages_that_prefill_left(rope, device):
    torch.manual_seed(0)
    sizes = {"kv_lora_rank": RANK, "qk_nope_head_dim": 8, "qk_rope_head_dim": ROPE, "v_head_dim": 10}
    sizes |= {"hidden_size": 24, "num_attention_heads": 3, "num_hidden_layers": 1, "intermediate_size": 8}
    sizes |= {"vocab_size": 9, "linear_num_heads": 1, "linear_head_dim": 8, "max_position_embeddings": 99}
    layer = MLALayer(hybrid_config(full_attention_every=1, rope=rope, **sizes)).to(device)
    lengths = [PAGE_SIZE + 5, 3, PAGE_SIZE]
    x = torch.randn(sum(lengths), 24, device=device)
    want = layer(x, Packing.from_lengths(lengths, device))
    # All but the last token of each by prefill, the last by decode.
    pages = torch.zeros(6, PAGE_SIZE, RANK + ROPE, device=device, dtype=core_dtype(device, x.dtype))
    table = torch.arange(6, dtype=torch.int32, device=device).view(3, 2)
    before = torch.cat([tokens[:-1] for tokens in x.split(lengths)])
    layer(before, Packing.from_lengths([n - 1 for n in lengths], device), pages, table)
    length = torch.tensor(lengths, device=device)
    position, last = length - 1, length.cumsum(0) - 1
    torch.testing.assert_close(layer.decode(x[last], pages, table, position), want[last], rtol=0, atol=1e-5)


def test_tokens_are_written_where_they_are_read(device):
    rows = Rows.random([37, 5, 0, 64], device, torch.bfloat16)
    lengths = rows.length().tolist()
    filled, table = rows.paged()
    pages = torch.full_like(filled, 7.0)
    prompt = [max(0, n - 2) for n in lengths]
    store_latents(
        torch.cat([x[:n] for x, n in zip(rows.latent, prompt, strict=True)]),
        pages,
        table,
        torch.repeat_interleave(torch.arange(4), torch.tensor(prompt)).to(device),
        torch.cat([torch.arange(n) for n in prompt]).to(device),
    )
    for step in (2, 1):
        position = torch.tensor([n - step for n in lengths], device=device)  # below 0 for the idle row
        latest = [x[-step] if len(x) else x.new_full((RANK + ROPE,), float("nan")) for x in rows.latent]
        append_latent(torch.stack(latest), pages, table, position)
    assert torch.equal(rows.run(pages, table), rows.run(filled, table))
    assert int((pages != 7.0).any(-1).sum()) == sum(lengths)


def test_pages_may_be_every_other_one_of_a_larger_pool(device):
    rows = Rows.random([40, 7], device)
    pages, table = rows.paged()
    pool = torch.stack([torch.full_like(pages, float("nan")), pages], 1)
    assert torch.equal(rows.run(pool[:, 1], table), rows.run(pages, table))
    append_latent(torch.ones_like(rows.q[:, 0]), pool[:, 1], table, rows.length() - 1)
    for x in rows.latent:
        x[-1] = 1.0
    assert_near(rows.run(pool[:, 1], table), rows.expected(), TOLERANCE[torch.float32])


def test_no_rows_at_all(device):
    rows = Rows.random([], device)
    assert rows.run(*rows.paged()).shape == (0, HEADS, RANK)


def test_what_it_does_not_have_is_refused(device):
    rows = Rows.random([40, 7], device)
    pages, table = rows.paged()
    with pytest.raises(ValueError, match=r"one dtype of fp32, bf16, fp16; got torch\.float32 and torch\.bfloat16"):
        rows.run(pages.bfloat16(), table)
    with pytest.raises(ValueError, match="page_size must be a power of two, got 12"):
        rows.run(pages[:, :12].contiguous(), table)
    with pytest.raises(ValueError, match="each page contiguous"):
        rows.run(pages[:, :8].transpose(1, 2).contiguous().transpose(1, 2), table)
    with pytest.raises(ValueError, match=r"block_table must be \[2, max_pages\]"):
        rows.run(pages, table[:1])
    with pytest.raises(ValueError, match=r"length must be \[2\]"):
        latent_attention_decode(rows.q, pages, table, rows.length()[:1], RANK, 1.0)
    with pytest.raises(ValueError, match=r"rank must be 1\.\.512 and rope 0\.\.64, got 41 and -1"):
        latent_attention_decode(rows.q, pages, table, rows.length(), RANK + ROPE + 1, 1.0)
    with pytest.raises(ValueError, match="32 tokens is not a multiple of blocks of 64"):
        rows.tiling(block=64)
    with pytest.raises(ValueError, match=r"position must be \[2\]"):
        append_latent(rows.q[:, 0], pages, table, rows.length()[:1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
def test_a_captured_graph_follows_lengths_and_tables(device):
    rows = Rows.random([100, 40, 0], device, torch.bfloat16)
    pages, table = rows.paged()
    q, length, tiling = rows.q.clone(), rows.length(), rows.tiling()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        latent_attention_decode(q, pages, table, length, RANK, rows.scale, tiling)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        out = latent_attention_decode(q, pages, table, length, RANK, rows.scale, tiling)
    for order in ([2, 0, 1], [1, 2, 0], [0, 1, 2]):
        moved = rows[order]
        q.copy_(moved.q)
        length.copy_(moved.length())
        table_before = table.clone()
        table.copy_(table_before[order])
        graph.replay()
        assert torch.equal(out, moved.run(pages, table))
        table.copy_(table_before)
