"""Seeds that depend on nothing but what they are for, so that a session run again samples the same tokens."""

import hashlib


def derive_seed(*parts: object) -> int:
    """Return a seed of 31 bits for a thing named by its parts, for example (run seed, group id, index)."""
    name = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest()) >> 1
