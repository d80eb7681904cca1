"""Files with one bit flipped, or cut off, at random places."""

import random
from collections.abc import Iterator
from pathlib import Path

TRIALS = 80


def damaged(folder: Path, trials: int = TRIALS) -> Iterator[str]:
    """Damage one file of a folder at a time; yield what was done, and set it right."""
    rng = random.Random(0)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    files = [path for path in files if path.stat().st_size]
    for trial in range(trials):
        path = rng.choice(files)
        whole = path.read_bytes()
        # Not in the zeros that some formats are filled up with.
        place = rng.choice([i for i, byte in enumerate(whole) if byte])
        bit = rng.randrange(8)
        if trial % 4:
            flipped = whole[place] ^ (1 << bit)
            path.write_bytes(whole[:place] + bytes([flipped]) + whole[place + 1 :])
            yield f"bit {bit} of byte {place} of {path.relative_to(folder)}"
        else:
            path.write_bytes(whole[:place])
            yield f"{path.relative_to(folder)} cut off at byte {place}"
        path.write_bytes(whole)
