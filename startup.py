"""What a command does before it imports anything else. Libraries and notebooks do not import this file.

Each command begins with these lines. They come first, because libgomp reads its variables when torch loads it.

    if __name__ == "__main__":
        import startup

        startup.begin()
"""

import gc
import os

# Either one tells libgomp how long a thread spins while it waits.
WAITING = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
# Turns of a loop. With none, every short operation wakes threads that have just fallen asleep (benchmarks/NOTES.md).
SPINS = 1000

_is_importing = False


def begin() -> None:
    """Sets up the process of a command, before torch is imported.

    - Threads that wait for others soon sleep, unless GOMP_SPINCOUNT or OMP_WAIT_POLICY is set. By default they spin,
      and take the core from the thread that they wait for if other programs are busy on it.
    - The garbage collector pauses until end_of_imports(). It would look at all that has been imported, again and again.
    """
    global _is_importing
    if not any(name in os.environ for name in WAITING):
        os.environ["GOMP_SPINCOUNT"] = str(SPINS)
    gc.disable()
    _is_importing = True


def end_of_imports() -> None:
    """Lets the garbage collector work again, if begin() paused it. What is there now will never be garbage."""
    global _is_importing
    if _is_importing:
        _is_importing = False
        gc.freeze()
        gc.enable()
