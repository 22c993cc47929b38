"""The encoding of a text file: UTF-8, a byte-order mark, or a plausible answer of a detector.

A file is read right or refused. A detector's answer counts only if its words are plausible and no
other likely encoding gives other plausible words.
"""

import codecs
import contextlib
import itertools
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from inputs.files import MAX_PROBLEMS, at
from system.console import InputError, Problem

Blocks = Callable[[], Iterator[bytes]]

DESCRIPTION = "the name of an encoding, such as utf-8 or cp1252"
SAMPLE_BYTES = 1_000_000
# Half of the bytes of UTF-16 can be NUL; a few stand in other texts.
MAX_NULLS = 0.1
# Shares: UTF-8 among the bytes above 127, odd words, odd characters.
MAX_UTF8, MAX_ODD_WORDS, MAX_ODD_CHARACTERS = 0.2, 0.03, 0.1
MIN_BYTES = 12  # Above 127; fewer identify no encoding except cp1252.
# The mark of UTF-32 starts with the mark of UTF-16, so it comes first.
MARKS = {codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32"}
MARKS |= {codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
# The bytes with which ISO-2022 begins a word of Japanese, Korean or Chinese letters.
ISO_2022 = re.compile(rb"\x1b\$[@AB()]")
HIGH = bytes(range(128, 256))
REMEDY = "choose the file's own with --encoding, or save the file as UTF-8 (in Excel: CSV UTF-8)"

# The accented letters of one language each; no word has letters of two.
WESTERN = "àâæçèéêëîïôùûüœ äöüßé áéíóúüñ ãõáàâçéêíóôú àçèéíïòóúü àèéìíòóùú åäöé æøåéô éèëïóöüáê"
EASTERN = "ąćęłńóśźż áäčďéěíĺľňóôŕřšťúůýž áéíóöőúüű ăâîşţ čćđšž"
SCRIPTS = {"cp1252": WESTERN, "iso8859-15": WESTERN}
SCRIPTS |= {"cp1250": EASTERN, "iso8859-2": EASTERN, "cp1254": "çğı\u0307öşüâîû"}
SCRIPTS |= {"cp1257": "ąčęėįšųūž āčēģīķļņšūž äõöüšž"}
SCRIPTS |= {"cp1251": "а-џґ", "koi8-r": "а-џґ"}
SCRIPTS |= {"cp1253": "ΐά-ώ", "cp1255": "א-ת", "cp1256": "ء-ۓ"}
EAST_ASIAN = {"cp949": "가-힣", "cp932": "ぁ-ヿ一-鿿々", "euc_jp": "ぁ-ヿ一-鿿々"}
# In these standards, the common characters have the lower lead bytes.
COMMON = {"gb18030": ("gb2312", 0xB0, 0xD7), "cp950": ("big5", 0xA4, 0xC6)}
# Windows writes its own version of these standards.
WINDOWS = {"iso8859-1": "cp1252", "iso8859-9": "cp1254", "iso8859-8": "cp1255", "euc_kr": "cp949"}
WINDOWS |= {"shift_jis_2004": "cp932", "euc_jis_2004": "euc_jp", "big5hkscs": "cp950"}
WINDOWS |= {"iso8859-7": "cp1253"}
WORD = re.compile(r"[^\W\d_][\w¿£¦¶±§¨¸]*|[¼½¾¦¨¸¶][^\W\d_]+")
# No text has these: control characters, frames, private letters, and symbols within a word.
NEVER = re.compile(r"[\x80-\x9f¤─-▟\ue000-\uf8ff]|[^\W\d_](?:[¼½¾]|[„†‡‚¥¡][^\W\d_])|[¼½¾][^\W\d_]")
# In Portuguese, a tilde stands before few letters only; Hungarian and Romanian look like it.
TILDE = re.compile("õ(?!e)|ã(?![oes]|$)")


class Encoding(NamedTuple):
    """The codec and the line ends of a file."""

    codec: str
    newline: str  # "\r" if the file has carriage returns and no line feed
    note: str = ""  # for the caller to print


class Scan(NamedTuple):
    """The numbers of bytes above 127, and of those in no valid UTF-8 sequence; the line ends."""

    high: int
    invalid: int
    newline: str


def find_encoding(name: str, blocks: Blocks, chosen: str | None = None) -> Encoding:
    """The encoding of the file `name`; InputError if its bytes cannot be read.

    `blocks` opens the content anew. `chosen` is the user's codec, or None to find one.
    """
    if chosen and not is_codec(chosen):
        raise InputError(Problem(chosen, f"must be {DESCRIPTION}", flag="--encoding"))
    start = next(blocks(), b"")[:4]
    codec = chosen or next((MARKS[mark] for mark in MARKS if start.startswith(mark)), None)
    if codec:
        # A byte-order mark is no part of the text.
        codec = codec if codecs.lookup(codec).name != "utf-8" else "utf-8-sig"
        return Encoding(codec, _check(name, blocks, codec))
    scan = _scan(name, blocks)
    if not scan.invalid:
        return Encoding("utf-8-sig", scan.newline)
    if scan.invalid * 2 < scan.high and _is_mostly_utf8(blocks, scan.newline):
        raise InputError(*itertools.islice(_damage(name, blocks, scan.newline), MAX_PROBLEMS))
    sample = _sample(blocks, scan.newline)
    codec = _detect(name, b"\n".join(sample.values()), 1 - scan.invalid / scan.high)
    _check(name, blocks, codec)
    return Encoding(codec, scan.newline, _note(name, sample, codec))


def _scan(name: str, blocks: Blocks) -> Scan:
    high = invalid = nulls = 0
    rest, ends = b"", set()
    for block in blocks():
        nulls += block.count(b"\0")
        if nulls > len(block) * MAX_NULLS:
            remedy = "save it as CSV UTF-8, or choose --encoding utf-16-le if it is UTF-16"
            raise InputError(Problem(name, "expected text, found a NUL byte", remedy))
        if ISO_2022.search(block):
            raise _unclear(name, ["iso2022_jp"])
        if "\n" not in ends:
            ends |= {end for end in "\r\n" if end.encode() in block}
        if block.isascii() and not rest:
            continue
        data = rest + block
        text, size = codecs.utf_8_decode(data, "ignore", False)
        data, rest = data[:size], data[size:]
        high += len(data) - len(data.translate(None, HIGH))
        invalid += size - len(text.encode())
    newline = "\r" if ends == {"\r"} else "\n"
    return Scan(high + len(rest), invalid + len(rest), newline)


def _check(name: str, blocks: Blocks, codec: str) -> str:
    """The line ends of a file in `codec`; InputError with the line of the first bad bytes."""
    decoder = codecs.getincrementaldecoder(codec)()
    feeds = returns = 0
    for block in itertools.chain(blocks(), [b""]):
        state = decoder.getstate()
        try:
            text = decoder.decode(block, not block)
        except UnicodeError as error:
            text, problem = "", "no byte-order mark"
            if isinstance(error, UnicodeDecodeError):
                problem = f"byte {error.object[error.start]:#04x}"
            # The text up to the first replacement character gives the line.
            decoder.setstate(state)
            decoder.errors = "replace"
            with contextlib.suppress(UnicodeError):
                text = decoder.decode(block, not block).partition("\ufffd")[0]
            line = 1 + (feeds + text.count("\n") or returns + text.count("\r"))
            message = f"expected {codec.removesuffix('-sig')}, found {problem}"
            raise InputError(Problem(at(name, line), message, REMEDY)) from None
        feeds += text.count("\n")
        returns += text.count("\r")
    return "\r" if returns and not feeds else "\n"


def _lines(blocks: Blocks, newline: str) -> Iterator[tuple[int, bytes]]:
    """The numbers and the bytes of the lines with bytes above 127."""
    end, rest, number = newline.encode(), b"", 0
    for block in itertools.chain(blocks(), [newline.encode()]):
        *lines, rest = (rest + block).split(end)
        for line in lines:
            number += 1
            if not line.isascii():
                yield number, line


def _damage(name: str, blocks: Blocks, newline: str) -> Iterator[Problem]:
    for number, line in _lines(blocks, newline):
        try:
            line.decode()
        except UnicodeDecodeError as error:
            message = f"expected UTF-8, found byte {line[error.start]:#04x}"
            remedy = "correct it, or save the file as UTF-8 (in Excel: CSV UTF-8)"
            yield Problem(at(name, number), message, remedy)


def _is_mostly_utf8(blocks: Blocks, newline: str) -> bool:
    """True if most lines with bytes above 127 are UTF-8; few lines of Chinese are by chance."""
    lines = damaged = 0
    for _, line in _lines(blocks, newline):
        lines += 1
        try:
            line.decode()
        except UnicodeDecodeError:
            damaged += 1
    return 2 * damaged < lines


def _sample(blocks: Blocks, newline: str) -> dict[int, bytes]:
    """Lines with bytes above 127 from the whole file, by number."""
    sample, size, step = {}, 0, 1
    for index, (number, line) in enumerate(_lines(blocks, newline)):
        if index % step == 0:
            sample[number] = line[:SAMPLE_BYTES]
            size += len(sample[number])
        if size > SAMPLE_BYTES and len(sample) > 1:
            sample, step = dict(list(sample.items())[::2]), step * 2
            size = sum(map(len, sample.values()))
    return sample


def _detect(name: str, data: bytes, utf8: float) -> str:
    """The codec of `data`; `utf8` is the share of its bytes above 127 that is valid UTF-8."""
    # Imported here, because few files need it.
    import chardet

    # With compat_names=False the names are Python's.
    answers = chardet.detect_all(data, max_bytes=len(data), compat_names=False)
    names = [WINDOWS.get(answer["encoding"], str(answer["encoding"])) for answer in answers[:6]]
    high = len(data) - len(data.translate(None, HIGH))
    names = list(dict.fromkeys(names))[:3]
    same_script = [c for c in names if SCRIPTS.get(c) == SCRIPTS.get(names[0], c)]
    plausible = {}
    for codec in dict.fromkeys(["cp1252", *(same_script or names[:1])]):
        is_single_byte = codec in SCRIPTS
        text = None if is_single_byte and utf8 >= MAX_UTF8 else _decode(data, codec)
        if text:
            plausible.setdefault(text, codec)
    codec = next(iter(plausible.values()), "")
    if len(plausible) == 1 and (high >= MIN_BYTES or codec == "cp1252"):
        return codec
    raise _unclear(name, [codec for codec in [*plausible.values(), *names] if codec != "None"])


def _unclear(name: str, codecs: list[str]) -> InputError:
    likely = f" ({', '.join(dict.fromkeys(codecs))}?)" if codecs else ", or no text"
    return InputError(Problem(name, f"expected UTF-8, found another encoding{likely}", REMEDY))


def _decode(data: bytes, codec: str) -> str | None:
    """The text of `data`, or None if it is not plausible."""
    try:
        text = data.decode(codec)
    except (UnicodeError, LookupError):
        return None
    characters = [mark for mark in text if mark > "⺀" and mark.isalpha()]
    if codec in COMMON:
        standard, first, last = COMMON[codec]
        codes = [mark.encode(standard, "ignore") for mark in characters]
        odd = [code for code in codes if not code or not first <= code[0] <= last]
        return text if len(odd) <= MAX_ODD_CHARACTERS * len(codes) else None
    if codec in EAST_ASIAN:
        odd = [mark for mark in characters if not re.match(f"[{EAST_ASIAN[codec]}]", mark)]
        return text if len(odd) <= MAX_ODD_CHARACTERS * len(characters) else None
    if codec not in SCRIPTS or NEVER.search(text):
        return None
    tokens = [token.strip("²ªº") for token in WORD.findall(text) if not token.isascii()]
    tokens = [token for token in tokens if any(map(str.isalpha, token))]
    alphabets = SCRIPTS[codec].split()
    pattern = re.compile("|".join(f"[a-z{alphabet}]*" for alphabet in alphabets))
    odd = 0
    for token in tokens:
        # Another codec of a script often has the capitals in place of the small letters.
        is_case = token.islower() or token.isupper() or token.istitle() or token == token.lower()
        is_word = pattern.fullmatch(token.lower()) and not TILDE.search(token)
        odd += not (is_word and (is_case or alphabets[0] < "Α"))
    return text if odd <= MAX_ODD_WORDS * len(tokens) else None


def _note(name: str, sample: dict[int, bytes], codec: str) -> str:
    """The note with an excerpt around the first letter above 127 (or any such character)."""
    texts = {number: line.decode(codec) for number, line in itertools.islice(sample.items(), 1000)}
    for pattern in (r"[^\W\d_\x00-\x7f]", r"[^\x00-\x7f]"):
        # The header is the worst example.
        for number, text in sorted(texts.items(), key=lambda item: item[0] == 1):
            if match := re.search(pattern, text):
                excerpt = " ".join(text[max(match.start() - 25, 0) : match.start() + 35].split())
                excerpt = "".join(mark if mark.isprintable() else "?" for mark in excerpt)
                return (
                    f"NOTE: {name} is not UTF-8; it is read as {codec}. Line {number} then has"
                    f" '{excerpt}'; if that is wrong, choose another with --encoding"
                )
    return ""


def is_codec(name: str) -> bool:
    """True if Python knows an encoding of text by this name."""
    try:
        "".encode(name)
    except (LookupError, ValueError):
        return False
    return True
