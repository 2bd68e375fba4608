"""A MIP-Adapter sample as a card of the report: its objects with box and mask, its quality and the quality's parts."""

from typing import Any

from jobs.report.card import caption_pieces, drawn, thumbnail, view_of
from jobs.report.figures import signed
from schemas.samples.mip_adapter import ObjectField, Record
from schemas.shards import Sample


def mip_adapter_card(sample: Sample) -> dict[str, Any]:
    """Return what `mip_adapter.html.j2` draws of a sample."""
    record = Record.from_sample(sample)
    picture, size = thumbnail(sample.members["jpg"])
    view = view_of((record.width, record.height))
    scale = view[0] / record.width, view[1] / record.height
    spans = [(one.start, one.end) for one in record.objects]
    return {
        "key": sample.key,
        "picture": picture,
        "width": size[0],
        "height": size[1],
        "stored": (record.width, record.height),
        "view": view,
        "objects": [_object(index, one, view, scale) for index, one in enumerate(record.objects)],
        "pieces": list(caption_pieces(record.caption, spans, {index: index for index in range(len(spans))})),
        "caption_origin": record.caption_origin,
        "quality": signed(record.quality.total, ".2f"),
        "single": signed(record.quality.single, ".2f"),
        "pair": signed(record.quality.pair, ".2f"),
        "source": record.source.uri,
        "license": record.source.license,
    }


def _object(index: int, one: ObjectField, view: tuple[int, int], scale: tuple[float, float]) -> dict[str, Any]:
    x, y, w, h = one.bbox
    return drawn(index, one, view) | {
        "name": one.name,
        "score": f"{one.score:.2f}",
        "similarity": signed(one.text_image_similarity, ".2f"),
        # The box's place in the drawing.
        "frame": [round(x * scale[0]), round(y * scale[1]), round(w * scale[0]), round(h * scale[1])],
    }
