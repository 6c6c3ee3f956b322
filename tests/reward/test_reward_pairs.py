"""Random pairs, equal or different by construction: see ``benchmarks/verifier_random.py`` for many more of them."""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

from deltarl.reward.verifier import Verifier

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def pairs(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """``verifier_pairs``. Its folder must not be on the path: it has a module of the name of HuggingFace's kernels."""
    for part in ("spelling", "numbers", "expressions", "collections", "words", "pairs"):
        name = f"verifier_{part}"
        spec = spec_from_file_location(name, BENCHMARKS / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
    return module


def test_no_wrong_answer_and_nearly_every_right_one_is_accepted(pairs: ModuleType) -> None:
    drawn = pairs.random_pairs(1_320, seed=4)
    with Verifier(timeout=10.0) as verifier:
        verdicts = verifier.score([rf"\boxed{{{pair.pred}}}" for pair in drawn], [pair.gold for pair in drawn])
    wrong = [pair for pair, verdict in zip(drawn, verdicts, strict=True) if verdict.correct and not pair.right]
    missed = [pair for pair, verdict in zip(drawn, verdicts, strict=True) if pair.right and not verdict.correct]
    assert not wrong
    assert len(missed) <= 0.005 * 660, missed


def test_the_same_seed_draws_the_same_pairs_of_every_kind(pairs: ModuleType) -> None:
    drawn = pairs.random_pairs(2 * len(pairs.KINDS), seed=1)
    assert drawn == pairs.random_pairs(2 * len(pairs.KINDS), seed=1)
    assert {(pair.kind, pair.right) for pair in drawn} == {
        (kind, right) for kind in pairs.KINDS for right in (True, False)
    }
    assert all(pair.gold != pair.pred for pair in drawn if not pair.right)
