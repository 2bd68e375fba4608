"""Draw pictures with a trained model from Python: `python examples/generate.py RUN PHRASE=PHOTO OUTPUT`.

After `make train`, for instance, with a picture of the demo, which shows a blue star:

    python examples/generate.py runs/demo "a blue star=demo/scenes/images/000007.jpg" drawn
"""

import sys
from pathlib import Path

from subjectloom import Drawing, DrawRequest, Reference, generate, write_pictures


def main(run: str, reference: str, output: str, *, count: int = 4, steps: int = 20) -> None:
    """Draw the subject of a photograph in the snow, `count` times, and write the pictures to the folder `output`."""
    subject = Reference.parse(reference)  # for one photograph, Reference(PHRASE, (Path(PHOTO),), (None,))
    request = DrawRequest(
        prompts=[f"{subject.phrase} in the snow"],
        references=[subject],
        run=Path(run),
        drawing=Drawing(count=count, steps=steps, seed=1),
    )
    pictures = list(generate(request))
    for picture in pictures:
        print(picture.settings["prompt"], picture.number, "mean colour", picture.pixels.mean(axis=(0, 1)).round(1))
    for path in write_pictures(Path(output), pictures, prompts=1):
        print(path)


if __name__ == "__main__":
    main(*sys.argv[1:4])
