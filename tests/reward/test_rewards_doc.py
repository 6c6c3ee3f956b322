"""docs/REWARDS.md says what the code does."""

import re
import shlex
from pathlib import Path

import pytest

from deltarl.reward.call import Plugin
from deltarl.reward.command import main
from deltarl.reward.extract import MARKERS
from deltarl.reward.plugin import BUILT_IN, load_reward
from deltarl.reward.verdict import MEANINGS

DOC = (Path(__file__).parents[2] / "docs" / "REWARDS.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", DOC, re.DOTALL)


def test_the_tables_are_complete() -> None:
    rows = [f"| {kind} | `{reason}` | {meaning} |" for reason, (kind, meaning) in MEANINGS.items()]
    assert "\n".join(rows) in DOC
    assert re.findall(r"^\| `([^`]+)` \|", DOC, re.MULTILINE) == ["marker", *MARKERS]
    assert all(f"`{name}`" in DOC for name in BUILT_IN)


def test_the_python_examples_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    use, plugin = blocks("python")
    (tmp_path / "use.py").write_text(use)
    load_reward(f"{tmp_path}/use.py:Verifier")  # runs the file
    said = re.search(r"# (.*)", use)
    assert said is not None
    assert capsys.readouterr().out.strip() == said[1]
    (tmp_path / "my_rewards.py").write_text(plugin)
    Plugin(load_reward(f"{tmp_path}/my_rewards.py:brief"))


def test_the_explanations_run(capsys: pytest.CaptureFixture[str]) -> None:
    commands = [shlex.split(line, comments=True) for line in blocks("bash")[0].splitlines()]
    for command in commands:
        assert command[0] == "deltarl-verify"
        if command[1] == "explain":
            assert main(command[1:]) == 0
    assert "echo" in capsys.readouterr().out
