"""A file is the old one or the new one, whatever happens while it is written."""

import os

import pytest

from zaq_plugin.files import write_whole


def test_write_makes_folders_and_leaves_no_other_file(tmp_path):
    target = tmp_path / "new" / "m.json"
    assert write_whole(target, "äöü\n") == target
    assert target.read_bytes() == "äöü\n".encode()
    assert [p.name for p in target.parent.iterdir()] == ["m.json"]


def test_the_file_gets_the_permissions_of_an_ordinary_new_file_and_keeps_its_own(tmp_path):
    plain_file = tmp_path / "plain"
    plain_file.write_text("x")
    target = write_whole(tmp_path / "m.json", "1")
    assert target.stat().st_mode == plain_file.stat().st_mode
    target.chmod(0o640)
    write_whole(target, "2")
    assert target.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_crash_between_leaves_the_old_file(tmp_path, monkeypatch, step):
    target = tmp_path / "m.json"
    write_whole(target, "old")

    def crash(*_args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, step, crash)
    with pytest.raises(KeyboardInterrupt):
        write_whole(target, "new")
    monkeypatch.undo()
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["m.json"]
