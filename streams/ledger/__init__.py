"""The ledger: who holds what of which resource. `protocol.py` is the seam, `redis.py` the real one over `lua/`, `memory.py` its twin."""
