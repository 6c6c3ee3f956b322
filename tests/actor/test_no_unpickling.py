"""Nothing that the product reads from disk can run code: a walk over its source for what would unpickle."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PRODUCT = ["kernels", "model", "reward", "rollout", "actor", "rl"]
MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
YAML = {"load", "load_all", "unsafe_load", "unsafe_load_all", "full_load", "full_load_all"}


def unpickles(source: str) -> Iterator[str]:
    """What in a module's source could unpickle a file, as `line: what`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found = [name.name for name in node.names if MODULES & set(name.name.split("."))]
        elif isinstance(node, ast.ImportFrom):
            names = {*(node.module or "").split("."), *(name.name for name in node.names)}
            found = sorted(MODULES & names) or (["torch.load"] if node.module == "torch" and "load" in names else [])
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            arguments = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            owner, _, name = called.rpartition(".")
            bad = owner == "torch" and name == "load" and arguments.get("weights_only") != "True"
            bad |= owner == "yaml" and name in YAML and not arguments.get("Loader", "").endswith("SafeLoader")
            bad |= arguments.get("allow_pickle", "False") != "False"
            bad |= "trust_remote_code" in arguments and arguments["trust_remote_code"] != "False"
            found = [called] if bad else []
        else:
            continue
        yield from (f"{node.lineno}: {what}" for what in found)


def test_the_product_unpickles_nothing() -> None:
    files = [file for folder in PRODUCT for file in (ROOT / folder).rglob("*.py")]
    assert len(files) > 100
    assert [f"{file.relative_to(ROOT)}:{found}" for file in files for found in unpickles(file.read_text())] == []


def test_the_walk_finds_what_it_looks_for() -> None:
    guilty = """
import pickle
from ray import cloudpickle
from torch import load
torch.load(f)
torch.load(f, weights_only=False)
np.load(f, allow_pickle=True)
yaml.load(f, Loader=yaml.Loader)
AutoTokenizer.from_pretrained(f, trust_remote_code=True)
"""
    assert len(list(unpickles(guilty))) == 8
    innocent = """
torch.load(f, weights_only=True)
np.load(f)
yaml.safe_load(f)
yaml.load(f, Loader=yaml.CSafeLoader)
json.load(f)
import unpickled
"""
    assert list(unpickles(innocent)) == []
