"""Types and pure functions: no Ray, no vLLM, no DeepSpeed."""
