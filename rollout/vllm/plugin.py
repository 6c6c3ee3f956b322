"""A vLLM plugin (entry point group `vllm.general_plugins`) that lets vLLM serve `kimi_linear` checkpoints on a CPU.

vLLM calls `register` in each of its processes before it loads a model. On other platforms vLLM's own class is kept.
"""

ARCHITECTURE = "KimiLinearForCausalLM"


def register() -> None:
    """Names the CPU implementation; it is imported when a checkpoint asks for it. May be called again."""
    from vllm import ModelRegistry
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        ModelRegistry.register_model(ARCHITECTURE, f"deltarl.rollout.vllm.kimi_linear:{ARCHITECTURE}")
