from schemas.dataset import Job, ModelName, shard_fingerprint
from tests.datasets import JOB


def test_a_shard_is_out_of_date_when_its_chunk_or_anything_in_the_job_changed() -> None:
    changed: list[Job] = [
        JOB.model_copy(update=update)
        for update in (
            {"recipe": "mip-adapter"},
            {"config": {"threshold": 0.26, "input": "pictures"}},
            {"models": {"segmenter": ModelName(name="sample", revision="0123abd")}},
            {"seed": 8},
        )
    ]
    fingerprints = [shard_fingerprint("chunk", job) for job in (JOB, *changed)] + [shard_fingerprint("other", JOB)]
    assert len(set(fingerprints)) == 6


def test_the_order_of_the_config_does_not_matter() -> None:
    turned = JOB.model_copy(update={"config": dict(reversed(JOB.config.items()))})
    assert shard_fingerprint("chunk", turned) == shard_fingerprint("chunk", JOB)
