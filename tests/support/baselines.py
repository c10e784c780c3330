"""Draw the baselines of tests/viz/test_images.py again: `.venv/bin/python tests/support/baselines.py [NAME ...]`.

Those whose picture is as it was keep their file, so that git shows what changed; look at those before you commit them.
"""

import sys
import tempfile
from pathlib import Path

import matplotlib

from figure_cases import PICTURES, figure_of, sizes_of
from pictures import BASELINES, compare, drawn, own_settings, write


def main(names: list[str]) -> None:
    matplotlib.use("agg")
    BASELINES.mkdir(exist_ok=True)
    wanted = {f"{name}-{width}" for name, picture in PICTURES.items() for width in sizes_of(picture)}
    for file in BASELINES.glob("*.png"):
        if file.stem not in wanted:
            file.unlink()
            print("removed", file)
    for name, picture in PICTURES.items():
        for width, size in sizes_of(picture).items():
            file = BASELINES / f"{name}-{width}.png"
            if names and not {name, file.stem} & set(names):
                continue
            with own_settings():
                made = drawn(figure_of(picture.draw(size)))
            with tempfile.TemporaryDirectory() as out:
                same = file.exists() and not compare(file.stem, made, Path(out))
            if not same:
                write(file, made)
                print("drawn", file)


if __name__ == "__main__":
    main(sys.argv[1:])
