"""Programs for Detectron2 that write into a folder: the demo, the experiment, the benchmark."""

import importlib
from pathlib import Path

import pytest

pytest.importorskip("detectron2.config", reason="needs the trainer's environment")

ROOT = Path(__file__).resolve().parents[3]
PROGRAMS = ["detectron2_demo", "detectron2_experiment", "detectron2_loader"]


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_folder_with_foreign_content_is_refused(program, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "benches"))
    main = importlib.import_module(program).main
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(SystemExit) as ended:
        main(["--out", str(tmp_path)])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert "--out" in error and "thesis.tex" in error
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
