"""A world in memory around the same shard code: a log with transactions, hosts that crash between any two steps, runners, a provider."""
