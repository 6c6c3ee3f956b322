"""Answer text to verdict: extraction, parsing, equivalence, isolation, plug-ins. Knows no torch and no ray."""
