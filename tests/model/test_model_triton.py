"""The model on the Triton kernels is the model on PyTorch; in Triton's interpreter where there is no GPU."""

import pytest
import torch
from tiny_models import logits_of, prefill, random_ids, tiny_model

from deltarl.kernels.backend import VARIABLE
from deltarl.kernels.gpu.slots import SlotState
from deltarl.model.cache import KDACache
from deltarl.model.hybrid import HybridForCausalLM

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(params=["kda", "gdn"])
def model(request) -> HybridForCausalLM:
    return tiny_model(linear_attention=request.param, linear_head_dim=16, linear_num_heads=1).to(DEVICE)


def on(monkeypatch, backend: str) -> None:
    monkeypatch.setenv(VARIABLE, backend)


def test_logits_and_gradients_are_those_of_the_pytorch_path(model, monkeypatch):
    ids, cu_seqlens = random_ids(21).to(DEVICE), torch.tensor([0, 4, 21], device=DEVICE)
    results = {}
    for backend in ("chunk", "triton"):
        on(monkeypatch, backend)
        model.zero_grad()
        logits = model(input_ids=ids.unsqueeze(0), cu_seqlens=cu_seqlens).logits
        logits.logsumexp(-1).sum().backward()
        results[backend] = {"logits": logits.detach(), **{n: p.grad.clone() for n, p in model.named_parameters()}}
    for name, want in results["chunk"].items():
        torch.testing.assert_close(results["triton"][name], want, rtol=1e-3, atol=1e-5 + 1e-4 * float(want.abs().max()))


def test_prefill_and_decode_give_the_logits_of_the_full_forward(model, monkeypatch):
    on(monkeypatch, "triton")
    prompts, steps = [15, 3], 4
    sequences = [random_ids(n + steps, seed=n).to(DEVICE) for n in prompts]
    first, cache = prefill(model, [ids[:n] for ids, n in zip(sequences, prompts, strict=True)])
    assert any(isinstance(layer, KDACache) and isinstance(layer.delta, SlotState) for layer in cache.layers)
    got = [first]
    for t in range(steps - 1):
        got.append(model.decode(torch.stack([ids[n + t] for ids, n in zip(sequences, prompts, strict=True)]), cache))
    for i, (ids, n) in enumerate(zip(sequences, prompts, strict=True)):
        want = logits_of(model, ids).log_softmax(-1)[n - 1 : -1]
        torch.testing.assert_close(torch.stack(got, 1)[i].log_softmax(-1), want, rtol=0, atol=2e-5)
