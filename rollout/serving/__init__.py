"""The native engine behind an OpenAI-compatible HTTP endpoint; `deltarl-serve` is its command line."""
