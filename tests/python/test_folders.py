"""The output folders of the examples and benchmarks: new, empty or their own."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "python" / "examples"))

from folders import new_folder, next_folder, own_folder


def test_a_folder_with_content_is_refused_and_stays(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    for make in (new_folder, lambda path: own_folder(path, "bench")):
        with pytest.raises(ValueError, match=r"new or an empty folder.*got .*thesis\.tex"):
            make(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_file_in_the_place_of_the_folder_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_text("a file")
    for make in (new_folder, lambda path: own_folder(path, "bench")):
        with pytest.raises(FileExistsError):
            make(file)
    assert next_folder(file) == tmp_path / "x-2"
    assert file.read_text() == "a file"


def test_an_own_folder_is_taken_again(tmp_path: Path) -> None:
    path = own_folder(tmp_path / "a" / "b", "bench")
    (path / "result.json").write_text("{}")
    assert own_folder(path, "bench") == path
    with pytest.raises(ValueError, match="earlier run of experiment"):
        own_folder(path, "experiment")
    assert (path / "result.json").read_text() == "{}"


def test_the_next_folder_is_a_new_one(tmp_path: Path) -> None:
    first = next_folder(tmp_path / "demo")
    assert next_folder(tmp_path / "demo") == first  # still empty
    (first / "kept").write_text("")
    assert next_folder(tmp_path / "demo") == tmp_path / "demo-2"
    assert (first / "kept").exists()
