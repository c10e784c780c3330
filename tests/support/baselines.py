"""Draw the baselines of tests/viz/test_images.py again: `.venv/bin/python tests/support/baselines.py [NAME ...]`.

Those whose picture is as it was keep their file, so that git shows what changed; look at those before you commit them.
"""

import sys

import matplotlib

from figure_cases import PICTURES, figure_of, sizes_of
from pictures import BASELINES, compare, drawn, own_settings, write


def main(names: list[str]) -> None:
    matplotlib.use("agg")
    BASELINES.mkdir(exist_ok=True)
    for name, picture in PICTURES.items():
        for width, size in sizes_of(picture).items():
            file = BASELINES / f"{name}-{width}.png"
            if names and not {name, file.stem} & set(names):
                continue
            with own_settings():
                made = drawn(figure_of(picture.draw(size)))
            if not file.exists() or compare(file.stem, made, BASELINES.parent):
                write(file, made)
                print("drawn", file)


if __name__ == "__main__":
    main(sys.argv[1:])
