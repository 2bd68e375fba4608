"""Finished datasets as things to work with: filtered, merged, split, sampled, counted, published, looked through.

All of it works from the format on disk alone (index, rejects, `dataset.json`, shards), for any recipe.
"""
