"""The look before the first step: it shows every stage, and warns of what is known to spoil runs."""

import pytest

from deltarl.model.checkpoint import load_model
from deltarl.model.tokenizer import byte_tokenizer
from deltarl.reward.rewards import Scorer
from deltarl.rl.data import EncodedPrompt, Example
from deltarl.rl.fleets import scorer_arguments
from deltarl.rl.learner import Learner
from deltarl.rl.sanity import sanity_report
from deltarl.rl.warm_start import new_model
from deltarl.rollout.engine import Engine


@pytest.fixture
def stages(tiny, tmp_path):
    """`stages(*overrides)`: arguments of `sanity_report` but for the prompt, over a new model."""
    scorers = []

    class Rank:
        def __init__(self, learner):
            self.learner = learner

        def scatter(self, method, args):
            return [getattr(self.learner, method)(*a) for a in args]

    def make(*overrides, temperature=1.0):
        config, tokenizer = tiny(*overrides), byte_tokenizer()
        new_model(config.model, len(tokenizer), 0).save_pretrained(tmp_path / "model")
        scorers.append(Scorer(**scorer_arguments(config)))
        learner = Learner(config.learner, str(tmp_path / "model"), 1, temperature)
        return config, tokenizer, Engine(load_model(tmp_path / "model")), scorers[-1], Rank(learner)

    yield make
    for scorer in scorers:
        scorer.close()


def report(stages, text="2+3=", ids=None) -> str:
    config, tokenizer, *rest = stages
    ids = tokenizer.encode(text, add_special_tokens=False) if ids is None else ids
    prompt = EncodedPrompt(7, Example("2+3", "5", None, {}), text, ids)
    return "\n".join(sanity_report(config, tokenizer, prompt, *rest))


def test_it_shows_prompt_answer_verdict_score_and_log_probs(stages):
    text = report(stages())
    for part in (
        "for training problem 7", "prompt (4 tokens, by the tokenizer's chat template): '2+3='", "'2' '+' '3' '='",
        "answer (", "verdict: ", "the reference answer is '5'", "score: ", "math ", "format ", "largest difference ",
    ):  # fmt: skip
        assert part in text
    assert float(text.split("largest difference ")[1].split()[0]) <= 1e-5
    assert "better than expected by 1: loss -1.0000, gradient norm " in text
    assert "WARNING" not in text


def test_it_warns_of_a_prompt_that_the_tokenizer_changes(stages):
    assert "WARNING the prompt does not survive the tokenizer; decoded it is '2+3'" in report(
        stages(), ids=byte_tokenizer().encode("2+3")
    )


@pytest.fixture
def special():
    tokenizer = byte_tokenizer()
    return int(tokenizer.eos_token_id), tokenizer


def test_it_warns_of_special_tokens_where_they_do_not_belong(stages, special):
    eos, tokenizer = special
    ids = [eos, eos, *tokenizer.encode("2=", add_special_tokens=False)]
    assert "stands twice in a row" in report(stages(), tokenizer.decode(ids), ids)
    ids = [*tokenizer.encode("2=", add_special_tokens=False), eos]
    assert "ends with the end-of-sequence token" in report(stages(), tokenizer.decode(ids), ids)


def test_it_warns_where_sampler_and_learner_disagree(stages):
    assert "WARNING sampler and learner disagree" in report(stages("model.initializer_range=0.5", temperature=0.2))


@pytest.mark.parametrize("algorithm", ["grpo", "ppo", "kimi_pmd"])
def test_the_look_changes_nothing(stages, algorithm):
    made = stages(f"algorithm={algorithm}", "learner.critic.trunk=shared" if algorithm == "ppo" else "seed=1")
    learner = made[-1].learner
    before = learner.weights().checksum
    report(made)
    assert learner.weights().checksum == before
    assert all(p.grad is None for p in learner.model.parameters())
    assert not learner.optimizer.optimizer.state


def test_it_warns_of_a_loss_that_teaches_nothing(stages, monkeypatch):
    monkeypatch.setattr(Learner, "loss", lambda self, minibatch: (0.0, 0.0))
    assert "WARNING the loss of the answer has no gradient" in report(stages())


def test_the_answer_does_not_depend_on_when_it_is_asked_for(stages):
    made = stages()
    assert report(made) == report(made)
