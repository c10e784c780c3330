"""``python -m losscope.viz`` is ``losscope``."""

from .cli import main

__all__: list[str] = []

if __name__ == "__main__":
    main()
