"""One decision per Lua file; `scripts.py` loads them, `memory.py` is their twin."""
