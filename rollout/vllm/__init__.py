"""vLLM as a rollout backend: `backend.VLLMEngine` here, vLLM itself in a process and an environment of its own."""
