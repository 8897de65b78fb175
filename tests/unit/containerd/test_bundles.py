"""What a containerd that died leaves of a task's directory goes; nothing else does."""

from __future__ import annotations

from pathlib import Path

from sandboxd.containerd.bundles import directory, remove_left


def made(root: Path, name: str) -> tuple[Path, Path]:
    """A bundle and its working directory, as containerd makes them."""
    bundle = Path(directory(str(root / "state"), "ns")) / name
    work = root / "root" / bundle.relative_to(root / "state")
    for path in (bundle / "rootfs", work):
        path.mkdir(parents=True)
    (bundle / "config.json").write_text("{")
    (bundle / "work").symlink_to(work)
    return bundle, work


def removed(bundle: Path) -> None:
    for _ in remove_left(str(bundle)):
        pass


def test_a_bundle_goes_with_its_working_directory_and_others_stay(tmp_path: Path) -> None:
    bundle, work = made(tmp_path, "a" * 64)
    others = made(tmp_path, "b" * 64)
    removed(bundle)
    assert not bundle.exists() and not work.exists()
    assert all(path.is_dir() for path in others)
    removed(bundle)  # idempotent


def test_a_link_that_leads_elsewhere_is_not_followed(tmp_path: Path) -> None:
    bundle, _ = made(tmp_path, "a" * 64)
    (bundle / "work").unlink()
    mine = tmp_path / "somebody's"
    mine.mkdir()
    (bundle / "work").symlink_to(mine)
    removed(bundle)
    assert not bundle.exists() and mine.is_dir()
