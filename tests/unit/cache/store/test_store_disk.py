"""Reading and writing whole, however little the system takes at a time."""

import os

import pytest

from sglang_ext.cache.store.disk import RealDisk, read_fully, write_fully


class Miserly(RealDisk):
    """Moves 1,024 bytes at a time."""

    def read(self, file, buffer, offset):
        return super().read(file, buffer[:1024], offset)

    def write(self, file, pieces, offset):
        return super().write(file, [memoryview(pieces[0])[:1024]], offset)


@pytest.fixture
def file(tmp_path):
    disk = RealDisk()
    file = disk.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    yield file
    disk.close(file)


def test_parts_are_put_together(file):
    data = os.urandom(5000)
    write_fully(Miserly(), file, memoryview(data), 100)
    back = memoryview(bytearray(5000))
    assert read_fully(Miserly(), file, back, 100) == 5000
    assert back == data


@pytest.mark.parametrize("length", [0, 1, 511, 512, 1536, 3000])
def test_the_end_of_the_file_ends_the_read(file, length):
    os.pwrite(file, bytes(length), 0)
    assert read_fully(RealDisk(), file, memoryview(bytearray(8192)), 0) == length


def test_links_are_not_opened(tmp_path):
    (tmp_path / "target").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with pytest.raises(OSError, match="symbolic"):
        RealDisk().open(tmp_path / "link", os.O_RDONLY)


def test_new_files_are_for_the_owner_alone(file):
    assert os.fstat(file).st_mode & 0o777 == 0o600


def test_a_lock_is_taken_once(tmp_path):
    disk = RealDisk()
    files = [disk.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT) for _ in range(2)]
    assert disk.lock(files[0])
    assert not disk.lock(files[1])
    disk.close(files[0])
    assert disk.lock(files[1])
    disk.close(files[1])


def test_allocated_room_reads_as_zeros_and_takes_blocks(file):
    RealDisk().allocate(file, 100_000)
    assert os.pread(file, 200_000, 0) == bytes(100_000)
    assert os.fstat(file).st_blocks * 512 >= 100_000
