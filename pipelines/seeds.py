"""Every random draw follows from a seed and what it is for, never from what was drawn before.

So a run continues after any interruption with the draws it would have made, and nothing about generators is saved.
"""

from hashlib import blake2b

import torch


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from a user's seed and the purpose of the draws, e.g. ``derive_seed(0, "batch", 17)``."""
    digest = blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(*parts: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator on ``device``, seeded from ``parts``."""
    return torch.Generator(device).manual_seed(derive_seed(*parts))
