import numpy as np
import open_clip

from jobs.sample_models.clip import CONFIG, NOTHING, new_tokenizer, read
from transforms.models.places import SAMPLE
from transforms.scenes import make_scene


def test_the_small_tokenizer_reads_captions_of_scenes_as_clips_own_does() -> None:
    whole, small = open_clip.SimpleTokenizer(), new_tokenizer()
    tokens = small.convert_ids_to_tokens(range(len(small)))
    assert len(tokens) == CONFIG["text_cfg"]["vocab_size"]
    captions = [make_scene(np.random.default_rng(seed), 64).caption for seed in range(40)]
    for text in [*captions, *NOTHING, "a checkered fish"]:
        (ids,) = read(small, [text]).tolist()
        pieces = [tokens[i] for i in ids[1 : ids.index(small.eos_token_id)]]
        assert pieces == [whole.decoder[i] for i in whole.encode(text)][:22]  # the rest is cut off
        assert ids[0] == small.bos_token_id
        # open_clip takes the highest token for the end of a text
        assert ids.index(max(ids)) == ids.index(small.eos_token_id)


def test_unknown_words_are_spelt_out_and_a_long_text_keeps_its_end_token() -> None:
    small = new_tokenizer()
    assert small.decode(read(small, ["Ein Pferd, größer?"])[0], skip_special_tokens=True).startswith("ein pferd")
    assert read(small, ["horse " * 40])[0, -1] == small.eos_token_id


def test_the_sample_clip_has_this_tokenizer() -> None:
    stored = open_clip.get_tokenizer(f"local-dir:{SAMPLE / 'clip'}")
    assert (stored(["two dotted houses"]) == read(new_tokenizer(), ["two dotted houses"])).all()
