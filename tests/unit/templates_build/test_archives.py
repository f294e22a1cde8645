from __future__ import annotations

import gzip
import io
import tarfile

import pytest

from nodeagent.build_archives import BadArchive, rewrite_archive

LIMIT = 1024 * 1024


def archive(path, *members, mode="w:gz", **options):
    """`members`: (name, content or (type, link target))."""
    with tarfile.open(path, mode, **options) as tar:
        for name, what in members:
            info = tarfile.TarInfo(name)
            info.uid, info.gid, info.uname, info.mode = 501, 20, "mac", 0o4755
            content = None
            if isinstance(what, bytes):
                info.size, content = len(what), io.BytesIO(what)
            else:
                info.type, info.linkname = what
            tar.addfile(info, content)
    return path


def rewritten(source, *, max_bytes=LIMIT):
    target = source.with_name("clean")
    rewrite_archive(source, target, max_bytes=max_bytes)
    with tarfile.open(target) as tar:
        return {member.name: member for member in tar}, target


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_any_compression_is_read(tmp_path, mode):
    source = archive(tmp_path / "a", ("dir", (tarfile.DIRTYPE, "")), ("dir/f", b"text"), mode=mode)
    members, target = rewritten(source)
    assert set(members) == {"dir", "dir/f"}
    with tarfile.open(target) as tar:
        assert tar.extractfile("dir/f").read() == b"text"


def test_owners_go_and_modes_stay(tmp_path):
    members, _ = rewritten(archive(tmp_path / "a", ("./f", b"x")))
    member = members["f"]
    assert (member.uid, member.gid, member.uname, member.mode) == (0, 0, "", 0o4755)


def test_links_may_point_anywhere(tmp_path):
    links = [
        ("relative", (tarfile.SYMTYPE, "f")),
        ("absolute", (tarfile.SYMTYPE, "/home/caller/f")),
        ("dangling", (tarfile.SYMTYPE, "../../nowhere")),
        ("hard", (tarfile.LNKTYPE, "./f")),
    ]
    members, _ = rewritten(archive(tmp_path / "a", ("f", b"x"), *links))
    assert members["absolute"].linkname == "/home/caller/f"
    assert members["hard"].linkname == "f"


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        (("../up", b"x"), "out of the archive"),
        (("/etc/passwd", b"x"), "out of the archive"),
        (("a/../../b", b"x"), "out of the archive"),
        (("hard", (tarfile.LNKTYPE, "/etc/shadow")), "out of the archive"),
        (("hard", (tarfile.LNKTYPE, "../x")), "out of the archive"),
        (("dev", (tarfile.CHRTYPE, "")), "neither a file"),
        (("dev", (tarfile.BLKTYPE, "")), "neither a file"),
        (("pipe", (tarfile.FIFOTYPE, "")), "neither a file"),
        (("n" * 5000, b"x"), "too long"),
    ],
)
def test_hostile_members_are_refused(tmp_path, member, reason):
    with pytest.raises(BadArchive, match=reason):
        rewritten(archive(tmp_path / "a", ("fine", b"x"), member))


def test_a_bomb_is_refused_before_it_is_written(tmp_path):
    source = archive(tmp_path / "a", ("zeros", bytes(64 * 1024 * 1024)))
    assert source.stat().st_size < LIMIT
    with pytest.raises(BadArchive, match="more than"):
        rewritten(source)
    assert (tmp_path / "clean").stat().st_size < LIMIT


def test_many_empty_entries_count_too(tmp_path, monkeypatch):
    monkeypatch.setattr("nodeagent.build_archives.MAX_ENTRIES", 10)
    source = archive(tmp_path / "a", *((f"f{i}", b"") for i in range(11)))
    with pytest.raises(BadArchive, match="entries"):
        rewritten(source)


def test_a_huge_extended_header_is_not_read(tmp_path):
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 2**32
    source = tmp_path / "a"
    source.write_bytes(header.tobuf() + bytes(10240))
    with pytest.raises(BadArchive, match="header is too large"):
        rewritten(source)


@pytest.mark.parametrize(
    "content", [b"", b"not an archive", gzip.compress(b"nor this"), b"\x1f\x8b\x08\x00broken"]
)
def test_rubbish_is_refused(tmp_path, content):
    source = tmp_path / "a"
    source.write_bytes(content)
    with pytest.raises(BadArchive, match="cannot be read"):
        rewritten(source)


def test_a_cut_archive_is_refused(tmp_path):
    source = archive(tmp_path / "a", ("f", b"x" * 100_000), mode="w")
    source.write_bytes(source.read_bytes()[:50_000])
    with pytest.raises(BadArchive):
        rewritten(source)
