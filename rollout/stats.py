"""How an engine is doing."""

from dataclasses import dataclass


@dataclass(frozen=True)
class EngineStats:
    """Where an engine stands. The last four count from its beginning."""

    running: int
    waiting: int
    free_pages: int
    total_pages: int
    bytes_per_page: int
    recurrent_bytes_per_row: int
    prefix_cache_bytes: int
    prefix_cache_hits: int
    prompt_tokens: int
    generated_tokens: int
    preemptions: int
