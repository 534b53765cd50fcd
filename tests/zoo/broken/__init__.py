"""Broken defenses, one page a kind: `broken`, its honest `twin`, and a `surrogate` for an adaptive attack."""
