"""The torch side: what reads a dataset's shards and trains on them. It needs no Beam."""
