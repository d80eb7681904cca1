"""Which buffers of a program are the biggest, when it does not fit a chip."""

import re
from pathlib import Path

from jaxkd.arguments import checked

DUMP = {"xla_dump_hlo_as_text": True}
"""Options by which XLA writes what `biggest_buffers` reads, beside ``xla_dump_to``."""

_VALUE = re.compile(r"value: <\d+ ([\w.\-]+)\S* @\d+> \(size=(\d+),.*?\): (\S+?)\{")
_SOURCE = re.compile(r'%([\w.\-]+) = .*op_name="([^"]*)"')


@checked()
def biggest_buffers(folder: Path, count: int = 8) -> list[str]:
    """Return the biggest buffers of the program that was compiled last, biggest first.

    Args:
        folder: XLA's ``xla_dump_to``.
        count: at most so many; of those of one shape and origin one is named.

    Returns:
        Lines of size, shape, and the operation in the model that it comes from.
    """
    assignments = sorted(folder.glob("*buffer-assignment.txt"))
    programs = sorted(folder.glob("*after_optimizations.txt"))
    if not assignments or not programs:
        return []
    sources = dict(_SOURCE.findall(programs[-1].read_text()))
    sizes: dict[tuple[str, str], int] = {}
    for name, size, shape in _VALUE.findall(assignments[-1].read_text()):
        # What is computed a second time to save memory is named after the first.
        origin = sources.get(name, sources.get(name.split(".remat")[0], name))
        sizes.setdefault((shape, origin), int(size))
    ranked = sorted(sizes.items(), key=lambda item: -item[1])
    return [
        f"{size / 2**30:.2f} GiB {shape} {origin}"
        for (shape, origin), size in ranked[:count]
    ]
