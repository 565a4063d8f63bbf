"""A stand-in for an LLM provider: OpenAI's chat completions, limits, failures, and a ledger of effects."""
