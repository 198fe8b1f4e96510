"""Styles in styles.csv."""

from __future__ import annotations

import pytest

from stable_diffusion.errors import InputError
from stable_diffusion.text import styles
from stable_diffusion.text.styles import Style


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "styles.csv"
    path.write_text(
        "\ufeffname,prompt,negative_prompt\n"
        'Ink,"{prompt}, ink drawing, ""fine"" lines",colour\n'
        "Night,at night,\n"
        '\n"Two\nlines",a,"b\nc"\n',
        encoding="utf-8",
    )
    return path


def test_styles_are_read_and_applied(file):
    known = styles.listed([file])
    assert list(known) == ["Ink", "Night", "Two\nlines"]
    assert styles.apply("a house", "", styles.find(["Ink"], known)) == ('a house, ink drawing, "fine" lines', "colour")
    assert styles.apply("a house ", "x", styles.find(["night", "Ink"], known)) == (
        'a house, at night, ink drawing, "fine" lines',
        "x, colour",
    )
    assert styles.apply("", "", [Style("n", "alone", "")]) == ("alone", "")
    assert styles.apply("a", "b", []) == ("a", "b")


def test_columns_in_another_order_and_of_old_versions(tmp_path):
    path = tmp_path / "styles.csv"
    path.write_text("negative_text,name,text\nn,Old,t\n")
    assert styles.read(path) == [Style("Old", "t", "n")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,prompt\nA,b\nC,d,e\n", r"line 3: 3 columns, but the first line names 2"),
        ('name,prompt\nA,"b\nC,d\n', r"line 2: the styles cannot be read"),
        ('name,prompt\nA,b\nB,"c"d\n', r"line 3: the styles cannot be read"),
        ("title,text\n", r"line 1: styles begin with a line name,prompt,negative_prompt, not 'title,text'"),
        (b"name,prompt\nA,\xff\n", r"line 2: the styles are not UTF-8"),
    ],
)
def test_broken_files_are_said_with_their_line(tmp_path, text, message):
    path = tmp_path / "styles.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=message):
        styles.listed([path])


def test_an_unknown_style_is_said_with_its_neighbours(file):
    with pytest.raises(InputError, match=r"no style 'Inc'\. Near it: Ink"):
        styles.find(["Inc"], styles.listed([file]))


def test_saving_replaces_renames_and_deletes(file):
    styles.save(Style("Ink", 'new, "quoted"', "n\nm"), file)
    styles.save(Style("Day", "by day"), file, replaces="Night")
    styles.save(Style("Last"), file)
    assert [(each.name, each.prompt, each.negative) for each in styles.read(file)] == [
        ("Ink", 'new, "quoted"', "n\nm"), ("Day", "by day", ""), ("Two\nlines", "a", "b\nc"), ("Last", "", ""),
    ]  # fmt: skip
    styles.delete("Ink", file)
    assert [each.name for each in styles.read(file)] == ["Day", "Two\nlines", "Last"]
    with pytest.raises(InputError, match="is not a name"):
        styles.save(Style("  "), file)
    file.write_text("broken\n")
    with pytest.raises(InputError, match="line 1"):
        styles.save(Style("x"), file)
    assert file.read_text() == "broken\n", "what cannot be read is not overwritten"


def test_where_styles_are(tmp_path, monkeypatch):
    monkeypatch.setenv("STABLE_DIFFUSION_HOME", str(tmp_path / "home"))
    (tmp_path / "webui" / "models" / "Stable-diffusion").mkdir(parents=True)
    theirs = tmp_path / "webui" / "styles.csv"
    theirs.write_text("name,prompt\nTheirs,x\n")
    monkeypatch.setenv("STABLE_DIFFUSION_MODELS", str(tmp_path / "webui" / "models" / "Stable-diffusion"))
    styles.save(Style("Ours", "y"))
    assert set(styles.listed()) == {"Ours", "Theirs"}
    assert styles.listed()["Ours"].path == tmp_path / "home" / "styles.csv"
