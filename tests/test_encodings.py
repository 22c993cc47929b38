"""A file in another encoding is read right or refused, and a UTF-8 file is never converted."""

import re

import pytest

from inputs.encodings import find_encoding
from system.console import InputError

# Sentences of reviews, one a line, per codec.
TEXTS = {
    "cp1252": "Le film était très ennuyeux.\nÇa ne vaut pas 20 €.\nUne comédie drôle et légère.",
    "iso8859-1": "Schöne Geschichte, große Gefühle.\nDas Gerät ist unfähig.\nIch würde es kaufen.",
    "cp1250": "Świetny stosunek jakości do ceny.\nPokój był mały, ale czysty.\nPiękna książka.",
    "iso8859-2": "Skvělý poměr ceny a kvality.\nDěti si bazén užily, příště znovu.\nŠkoda peněz.",
    "cp1251": "Прекрасная история, я плакала.\nТелефон перестал работать.\nПерсонал вежливый.",
    "cp1253": "Υπέροχη ιστορία, στο τέλος έκλαψα.\nΤο δωμάτιο ήταν μικρό.\nΠεταμένα λεφτά.",
    "cp1254": "Film çok sıkıcı ve uzundu.\nKızım hediyeye bayıldı.\nŞehir güzel ama pahalı.",
    "cp1255": "סיפור יפה, בכיתי בסוף.\nהחדר היה קטן אבל נקי ושקט.\nתמורה מצוינת למחיר.",
    "cp1256": "قصة جميلة، بكيت في النهاية.\nالغرفة صغيرة لكنها نظيفة.\nلن أعود إلى هذا المطعم.",
    "gb18030": "这部电影太无聊了，而且时间太长。\n手机用了两天就坏了。\n性价比很高，物流也快。",
    "big5": "故事很感人，最後我都哭了。\n手機用了兩天就壞了。\n早餐豐富，推薦給大家。",
    "cp949": "영화가 너무 지루하고 길었어요.\n방은 작았지만 깨끗했어요.\n품질이 정말 좋습니다.",
    "cp932": "映画はとても退屈でした。\n部屋は狭いですが、清潔で静かでした。\n二日で壊れました。",
    "euc-jp": "感動的な物語で、最後は泣いてしまった。\n音は良いけれど、安っぽい。\nおすすめです。",
}
ENGLISH = ["Great value", "Don't buy it", "It works as described", "Arrived late and broken"]


def find(data: bytes, chosen: str | None = None, size: int = 1000):
    blocks = [data[i : i + size] for i in range(0, len(data), size)]
    return find_encoding("t.csv", lambda: iter(blocks), chosen)


def table(texts: list[str], end: str = "\r\n") -> str:
    rows = [f'"{text}",{"positive" if i % 2 else "negative"}' for i, text in enumerate(texts)]
    return end.join(["text,label", *rows, ""])


def refusal(data: bytes, chosen: str | None = None) -> list[str]:
    with pytest.raises(InputError) as error:
        find(data, chosen)
    return [str(problem) for problem in error.value.problems]


@pytest.mark.parametrize("codec", TEXTS)
@pytest.mark.parametrize("english", [0, 9, 90])
def test_a_file_of_another_encoding_is_read_right_and_named(codec, english):
    text = table([*TEXTS[codec].split("\n"), *(ENGLISH * 25)[:english]] * 5)
    encoding = find(text.encode(codec))
    assert text.encode(codec).decode(encoding.codec) == text
    assert f"read as {encoding.codec}" in encoding.note


@pytest.mark.parametrize("codec", TEXTS)
def test_one_short_line_of_another_encoding_is_never_garbled(codec):
    for text in TEXTS[codec].split("\n"):
        data = table([text, *ENGLISH]).encode(codec)
        try:
            encoding = find(data)
        except InputError as error:
            assert "UTF-8" in str(error)
        else:
            assert data.decode(encoding.codec) == table([text, *ENGLISH])


def test_english_with_a_few_windows_characters_is_read_as_cp1252():
    text = table(["It’s the café £5", "“Fine” – nothing more…", "naïve at 30°C", *ENGLISH])
    encoding = find(text.encode("cp1252"))
    assert encoding.codec == "cp1252" and encoding.newline == "\n"


def test_the_note_shows_the_line_and_a_short_excerpt_with_its_accent():
    text = table([*ENGLISH, "x" * 100 + " the café was £5 " + "y" * 100])
    note = find(text.encode("cp1252")).note
    excerpt = re.fullmatch(r"NOTE: t\.csv .*1252.*Line 6 .*'(.+)'.*--encoding", note)[1]
    assert "the café was £5" in excerpt and len(excerpt) <= 60


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_damaged_bytes_of_a_utf_8_file_are_reported_with_their_lines(end):
    data = table(["schön und größer"] * 60, end).encode().split(end.encode())
    for number in (3, 40, *range(42, 62)):
        data[number - 1] = data[number - 1].replace("ß".encode(), b"\xe9")
    problems = refusal(end.encode().join(data))
    assert len(problems) == 20 and problems[0].startswith("t.csv, line 3: expected UTF-8, found")
    assert "byte 0xe9" in problems[0] and problems[1].startswith("t.csv, line 40:")


@pytest.mark.parametrize("codec", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("size", [5, 1000])
def test_unicode_is_read_without_a_note_and_with_its_line_ends(codec, end, size):
    data = table(["schön £5 映画 😀"], end).encode(codec)
    encoding = find(data, size=size)
    assert data.decode(encoding.codec) == table(["schön £5 映画 😀"], end)
    assert encoding.newline == ("\r" if end == "\r" else "\n") and not encoding.note


def test_utf_16_without_a_mark_or_a_binary_file_is_refused():
    assert "NUL byte" in refusal(table(["a"]).encode("utf-16-le"))[0]


def test_a_chosen_encoding_is_kept_without_a_note_and_its_bad_bytes_have_a_line():
    data = table(["Großes Kino", "Für 5 €"], "\r").encode("cp1252")
    assert find(data, "latin-1") == ("latin-1", "\r", "")
    for size in (1, 7, 1000):
        with pytest.raises(InputError, match=r"t\.csv, line 2: expected utf-8, found byte 0xdf"):
            find(data, "utf-8", size)
    assert "line 1: expected utf-16" in refusal(data, "utf-16")[0]


def test_chinese_lines_that_are_utf_8_by_chance_are_not_called_damaged():
    lines = [
        "这部电影真的太好看了，推荐大家去看。",
        "服务态度很差，再也不会来了。",
        "味道不错，价格也合适。",
    ]
    content = "".join(f"{line}{i},good\n" for i, line in enumerate(lines * 15)).encode("gb18030")
    assert find_encoding("a.csv", lambda: iter([content])).codec in ("gb18030", "gbk", "gb2312")


def test_an_escape_in_utf_8_is_text_unless_it_begins_letters_of_iso_2022():
    def find(content: bytes) -> str:
        return find_encoding("a.csv", lambda: iter([content])).codec

    assert find(b"text,label\n\x1b$ and \x1b[31m,good\nred,bad\n") == "utf-8-sig"
    for codec, word in (("iso2022_jp", "日本"), ("iso2022_kr", "한국")):
        with pytest.raises(InputError, match="expected UTF-8, found another encoding"):
            find(f"text,label\n{word},good\nred,bad\n".encode(codec))
