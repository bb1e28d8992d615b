"""A workspace appears complete or not at all, and nothing that is not a workspace is deleted unasked."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import pytest

from backend.errors import WorkspaceError
from backend.workspace import CONFIG
from converter.workspace_writer import check_destination, check_space, new_workspace


@pytest.fixture
def old_workspace(tmp_path) -> Path:
    folder = tmp_path / "workspace"
    (folder / CONFIG).parent.mkdir(parents=True)
    (folder / CONFIG).write_text("old")
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_new_workspace_holds_the_template_and_what_was_written(tmp_path):
    with new_workspace(tmp_path / "below" / "workspace") as folder:
        (folder / CONFIG).write_text("new")
        assert not (tmp_path / "below" / "workspace").exists()
    assert (tmp_path / "below" / "workspace" / "README.txt").is_file()
    assert (tmp_path / "below" / "workspace" / CONFIG).read_text() == "new"
    assert names(tmp_path / "below") == ["workspace"]


def test_a_new_workspace_is_a_triton_model_repository(tmp_path):
    with new_workspace(tmp_path / "workspace"):
        pass
    (tmp_path / "workspace").rename(tmp_path / "moved")  # relative links, so that it still works
    repository = tmp_path / "moved" / "model_repository"
    assert names(repository) == ["chat", "postprocessing", "preprocessing", "turbomind"]
    for model in repository.iterdir():
        assert not model.readlink().is_absolute()
        assert f'name: "{model.name}"' in (model / "config.pbtxt").read_text()
    assert (repository / "turbomind").resolve().name == "interactive"


def test_a_new_workspace_holds_the_same_start_script_as_the_checkout(tmp_path):
    with new_workspace(tmp_path / "workspace"):
        pass
    root = Path(__file__).parents[2]
    assert (tmp_path / "workspace/service_docker_up.sh").read_bytes() == (root / "service_docker_up.sh").read_bytes()


def test_an_old_workspace_is_replaced_as_a_whole(old_workspace):
    (old_workspace / "mine.txt").write_text("goes")
    with new_workspace(old_workspace) as folder:
        (folder / CONFIG).write_text("new")
        assert (old_workspace / CONFIG).read_text() == "old"
    assert (old_workspace / CONFIG).read_text() == "new"
    assert not (old_workspace / "mine.txt").exists()
    assert names(old_workspace.parent) == ["workspace"]


def test_a_workspace_behind_a_link_is_replaced_where_it_is(old_workspace, tmp_path):
    (tmp_path / "link").symlink_to(old_workspace)
    with new_workspace(tmp_path / "link") as folder:
        (folder / CONFIG).write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (old_workspace / CONFIG).read_text() == "new"


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError])
def test_any_interruption_leaves_the_old_workspace_and_nothing_else(old_workspace, error):
    with pytest.raises(error), new_workspace(old_workspace) as folder:
        (folder / CONFIG).write_text("half")
        raise error
    assert (old_workspace / CONFIG).read_text() == "old"
    assert names(old_workspace.parent) == ["workspace"]


def test_a_template_that_cannot_be_copied_is_one_line(tmp_path, monkeypatch):
    def full(*_given, **_options):
        raise shutil.Error([("template/a", "partial/a", "[Errno 28] No space left on device"), ("b", "c", "d")])

    monkeypatch.setattr(shutil, "copytree", full)
    with pytest.raises(WorkspaceError, match=r"written: \[Errno 28\] No space left on device; nothing"), (
            new_workspace(tmp_path / "workspace")):
        pass
    assert names(tmp_path) == []


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    with pytest.raises(WorkspaceError, match=r"workspace cannot be written: No space left on device"), (
            new_workspace(tmp_path / "workspace")):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert names(tmp_path) == []


def test_a_failed_swap_puts_the_old_workspace_back(old_workspace, monkeypatch):
    rename = Path.rename

    def fail_for_the_new_one(self: Path, target: Path) -> Path:
        if ".partial-" in self.name:
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_for_the_new_one)
    with pytest.raises(WorkspaceError, match="Input/output error"), new_workspace(old_workspace) as folder:
        (folder / CONFIG).write_text("new")
    assert (old_workspace / CONFIG).read_text() == "old"
    assert names(old_workspace.parent) == ["workspace"]


def test_a_folder_that_is_no_workspace_is_refused_unless_told(tmp_path):
    (tmp_path / "photos").mkdir()
    check_destination(tmp_path / "photos", tmp_path / "checkpoint", force=False)  # empty: nothing to lose
    (tmp_path / "photos" / "cat.jpg").write_text("cat")
    with pytest.raises(WorkspaceError, match=r"photos exists and is no workspace; .*--force"):
        check_destination(tmp_path / "photos", tmp_path / "checkpoint", force=False)
    check_destination(tmp_path / "photos", tmp_path / "checkpoint", force=True)
    with new_workspace(tmp_path / "photos"):
        pass
    assert "cat.jpg" not in names(tmp_path / "photos")


def test_a_destination_that_holds_the_checkpoint_is_refused_even_with_force(tmp_path):
    (tmp_path / "models" / "llama").mkdir(parents=True)
    for destination in (tmp_path / "models" / "llama", tmp_path / "models"):
        with pytest.raises(WorkspaceError, match="holds the checkpoint itself"):
            check_destination(destination, tmp_path / "models" / "llama", force=True)


def test_the_current_folder_and_what_holds_it_are_refused_even_with_force(tmp_path, monkeypatch):
    (tmp_path / "here" / "below").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here" / "below")
    for destination in (Path("."), Path(".."), tmp_path):
        with pytest.raises(WorkspaceError, match="is the current folder or holds it"):
            check_destination(destination, Path("/elsewhere/checkpoint"), force=True)


def test_too_little_space_is_found_before_anything_is_written(tmp_path):
    free = shutil.disk_usage(tmp_path).free
    check_space(tmp_path / "not" / "yet" / "there", 1000)
    with pytest.raises(WorkspaceError, match=r"GiB free, but the workspace needs .* GiB"):
        check_space(tmp_path / "not" / "yet" / "there", 2 * free)
