"""Carries a scenario out: servers, warm-up, requests, meters, rows."""
