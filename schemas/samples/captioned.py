"""What a captioned sample is: `KEY.jpg`, and `KEY.json` with its caption. Any text-to-image trainer reads it."""

import pyarrow as pa

from schemas.samples.base import SampleFormat, SampleRecord

FORMAT = SampleFormat(
    recipe="captioned",
    record=SampleRecord,
    members={"jpg": lambda example: example.image},
    columns=pa.schema([]),
)
