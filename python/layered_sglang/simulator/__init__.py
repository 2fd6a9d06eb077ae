"""Discrete-event simulation of serving: the server's planner, a modelled GPU, any traffic. No torch."""
