"""Which of several processes this one is, as torchrun or a scheduler's script sets it. No torch here."""

import os


def launched() -> tuple[int, int]:
    """(rank, world) of this process as torchrun or a scheduler's script set it; (0, 1) for a single process.

    Raises ValueError where the environment has something else there.
    """
    rank, world = (_number(name, default) for name, default in (("RANK", 0), ("WORLD_SIZE", 1)))
    if world > 1 and not 0 <= rank < world:
        raise ValueError(f"RANK={rank} and WORLD_SIZE={world} in the environment: ranks are numbered from 0. Unset "
                         "both, or start the command by torchrun.")
    return (rank, world) if world > 1 else (0, 1)


def local_rank() -> int:
    """The number of this process among those on its machine, which is the number of its GPU."""
    return _number("LOCAL_RANK", 0)


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.strip().isdecimal():
        raise ValueError(f"{name}={text} in the environment: no number. Unset it, or start the command by torchrun.")
    return int(text)
