"""The agent of one host: reports what the host has, runs what the scheduler places there, carries results home."""
