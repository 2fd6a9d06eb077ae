"""What layered prefill shows of itself: counters, an iteration trace, a banner."""
