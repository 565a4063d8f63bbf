"""One decision per Lua file; `redis.py` loads them, `memory.py` is their twin."""
