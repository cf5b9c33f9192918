"""Special tokens, whether they are added to every text, and chat templates."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gguf import Keys

from tqgguf.errors import FileFormatError
from tqgguf.models.huggingface.folder import Config, read_json, read_utf8
from tqgguf.models.huggingface.tokenizer.vocabulary import Vocabulary
from tqgguf.models.metadata import Value, encode

_ROLES = {
    "bos": Keys.Tokenizer.BOS_ID,
    "eos": Keys.Tokenizer.EOS_ID,
    "unk": Keys.Tokenizer.UNK_ID,
    "sep": Keys.Tokenizer.SEP_ID,
    "pad": Keys.Tokenizer.PAD_ID,
    "mask": Keys.Tokenizer.MASK_ID,
    "eot": Keys.Tokenizer.EOT_ID,
    "eom": Keys.Tokenizer.EOM_ID,
}
# Texts that end a turn of a chat where the end of the text is another token.
_END_OF_TURN = ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endofturn|>")


def special_tokens(
    folder: Path, config: Config, vocabulary: Vocabulary, known: Mapping[str, str]
) -> dict[str, Value]:
    """The keys that name special tokens and say which are added to a text.

    The tokenizer's own files come first, then config.json and generation_config.json, then what is
    known of the architecture: role -> text.
    """
    settings = _optional_json(folder / "tokenizer_config.json")
    fallbacks = (config.values, _optional_json(folder / "generation_config.json"))
    ids = {role: _find(role, settings, fallbacks, vocabulary) for role in _ROLES}
    ids["eot"] = _end_of_turn(fallbacks, vocabulary, ids["eos"])
    ids |= _put_around(ids, vocabulary)
    ids |= {role: vocabulary.find(text) for role, text in known.items() if ids[role] is None}
    keys = {_ROLES[role]: encode(number) for role, number in ids.items() if number is not None}
    keys[Keys.Tokenizer.ADD_BOS] = encode(_flag(settings, "add_bos_token", vocabulary.add_bos))
    if "add_eos_token" in settings or vocabulary.add_eos:
        keys[Keys.Tokenizer.ADD_EOS] = encode(_flag(settings, "add_eos_token", vocabulary.add_eos))
    return keys


def _put_around(ids: Mapping[str, int | None], vocabulary: Vocabulary) -> dict[str, int | None]:
    """Roles that follow from what the tokenizer itself puts around a text.

    llama.cpp ends a text with eos: where another token is put there (an embedding is taken from
    it), that is eos, and what was called so ends a turn. A first token that has no role is bos.
    """
    changed: dict[str, int | None] = {}
    if vocabulary.first is not None and ids["bos"] is None:
        changed["bos"] = vocabulary.first
    if vocabulary.last is not None and vocabulary.last != ids["eos"]:
        changed |= {"eos": vocabulary.last, "eot": ids["eos"]}
    return changed


def chat_templates(folder: Path) -> dict[str, Value]:
    """The keys of the chat templates: one that has no name, or a default and named ones."""
    templates = dict(_templates(folder))
    keys = {}
    if "default" in templates:
        keys[Keys.Tokenizer.CHAT_TEMPLATE] = encode(templates.pop("default"))
    for name, text in templates.items():
        keys[Keys.Tokenizer.CHAT_TEMPLATE_N.format(name=name)] = encode(text)
    if templates:
        keys[Keys.Tokenizer.CHAT_TEMPLATES] = encode(list(templates))
    return keys


def _optional_json(path: Path) -> Mapping[str, Any]:
    return read_json(path) if path.is_file() else {}


def _find(
    role: str,
    settings: Mapping[str, Any],
    fallbacks: tuple[Mapping[str, Any], ...],
    vocabulary: Vocabulary,
) -> int | None:
    """The id of the token with this role, or None."""
    token = settings.get(f"{role}_token")
    text = token.get("content") if isinstance(token, dict) else token
    number = vocabulary.find(text) if isinstance(text, str) else None
    for source in fallbacks:
        if number is None:
            number = next(iter(_numbers(source.get(f"{role}_token_id"))), None)
    in_range = number is not None and 0 <= number < len(vocabulary.tokens)
    return number if in_range else None


def _numbers(value: Any) -> list[int]:
    """One id or a list of ids as a list."""
    values = value if isinstance(value, list) else [value]
    return [v for v in values if isinstance(v, int) and not isinstance(v, bool)]


def _end_of_turn(
    sources: tuple[Mapping[str, Any], ...], vocabulary: Vocabulary, eos: int | None
) -> int | None:
    """A further token that ends generation and is known to end a turn."""
    for source in sources:
        for number in _numbers(source.get("eos_token_id")):
            known = vocabulary.tokens[number : number + 1] if number >= 0 else []
            if number != eos and known and known[0] in _END_OF_TURN:
                return number
    return None


def _flag(settings: Mapping[str, Any], name: str, default: bool) -> bool:
    value = settings.get(name)
    return value if isinstance(value, bool) else default


def _templates(folder: Path) -> Iterator[tuple[str, str]]:
    """Templates by name; the unnamed one as "default"."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        yield "default", read_utf8(path)
        for extra in sorted((folder / "additional_chat_templates").glob("*.jinja")):
            yield extra.stem, read_utf8(extra)
        return
    for name in ("tokenizer_config.json", "chat_template.json"):
        template = _optional_json(folder / name).get("chat_template")
        if template is not None:
            yield from _named(folder / name, template)
            return


def _named(path: Path, template: Any) -> Iterator[tuple[str, str]]:
    match template:
        case str(text):
            yield "default", text
        case [*rows]:
            for row in rows:
                match row:
                    case {"name": str(name), "template": str(text)}:
                        yield name, text
                    case _:
                        raise FileFormatError(f"{path}: a chat template without name and text")
        case _:
            raise FileFormatError(f"{path}: chat_template is neither text nor a list")
