"""The OpenAI-compatible API on the engine that the pages use."""
