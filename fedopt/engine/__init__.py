"""The loop, the executors that run the clients' work, and what is kept of a run."""
