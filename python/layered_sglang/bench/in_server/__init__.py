"""What a benchmark adds to the servers it starts, the same for all: expert counts, a shaped router."""
