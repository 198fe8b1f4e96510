"""The rewriting of a loaded library's imports: on MLX's own library, and on copies of it that are damaged."""

from __future__ import annotations

import ctypes
import mmap
import struct
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has ELF files and /proc/self/maps")

import mlx.core  # noqa: E402, F401  (it loads libmlx.so)

from stable_diffusion import relink  # noqa: E402

NAMES = ("cblas_sgemm", "cblas_dgemm", "cblas_cgemm")


def live_image() -> relink.Image:
    return relink.Image.named("libmlx.so", relink.mapped_regions())


class Layout:
    """MLX's library laid out in a buffer as the loader does it, but without relocations: safe to damage."""

    def __init__(self) -> None:
        with open(live_image().regions[0].path, "rb") as file:
            data = file.read()
        (table,), count = struct.unpack_from("<Q", data, 32), struct.unpack_from("<H", data, 56)[0]
        headers = [relink.PROGRAM_HEADER.unpack_from(data, table + 56 * i) for i in range(count)]
        loads = [header for header in headers if header[0] == relink.PT_LOAD]
        dynamic = next(header for header in headers if header[0] == relink.PT_DYNAMIC)
        self.table, self.dynamic, self.dynamic_size = table, dynamic[3], dynamic[6]
        self.memory = mmap.mmap(-1, -(-max(h[3] + h[6] for h in loads) // mmap.PAGESIZE) * mmap.PAGESIZE)
        for _, _, offset, virtual, _, file_size, _, _ in loads:
            self.memory[virtual : virtual + file_size] = data[offset : offset + file_size]
        self.base = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        self.regions = [relink.Region(self.base, self.base + len(self.memory), "rw-p", 0, "/layout")]

    def image(self) -> relink.Image:
        return relink.Image(self.regions)

    def entry(self, tag: int) -> int:
        """Where the value of a dynamic entry lies in the buffer."""
        for at in range(self.dynamic, self.dynamic + self.dynamic_size, 16):
            if struct.unpack_from("<q", self.memory, at)[0] == tag:
                return at + 8
        raise KeyError(tag)


@pytest.fixture(scope="module")
def layout() -> Layout:
    return Layout()


def test_finds_the_slots_that_the_library_calls_through():
    regions, image = relink.mapped_regions(), live_image()
    slots = image.slots((*NAMES, "cblas_strsm", "no_such_function"))
    assert set(slots) == set(NAMES)
    for addresses in slots.values():
        for address in addresses:
            region = relink.region_at(image.target(address), regions)
            assert region is not None and "x" in region.mode


def test_finds_the_same_slots_in_a_copy_that_was_never_relocated(layout):
    image, live = layout.image(), live_image()
    expected = {name: [a - live.base for a in addresses] for name, addresses in live.slots(NAMES).items()}
    assert {name: [a - image.base for a in addresses] for name, addresses in image.slots(NAMES).items()} == expected


def test_reads_nothing_outside_the_library():
    image = live_image()
    last = image.regions[-1].end
    assert len(image.read(last - 8, 8)) == 8
    for address, size in ((last - 8, 9), (last, 1), (image.base - 1, 1), (image.base, -1), (0, 8), (2**63, 8)):
        with pytest.raises(relink.RelinkError, match="not within the library"):
            image.read(address, size)


def test_a_library_that_is_not_loaded():
    with pytest.raises(relink.RelinkError, match=r"libnone\.so is loaded from 0 files"):
        relink.Image.named("libnone.so", relink.mapped_regions())


HEADER_DAMAGE = {
    "magic": (0, b"\x7fELG"),
    "32 bits": (4, b"\x01"),
    "big endian": (5, b"\x02"),
    "an executable": (16, b"\x02\x00"),
    "another machine": (18, b"\xf3\x00"),
    "program headers elsewhere": (32, struct.pack("<Q", 2**40)),
    "program headers of another size": (54, b"\x20\x00"),
    "no program headers": (56, b"\x00\x00"),
}


@pytest.mark.parametrize("damage", HEADER_DAMAGE)
def test_refuses_a_damaged_header(layout, damage):
    at, value = HEADER_DAMAGE[damage]
    kept = layout.memory[at : at + len(value)]
    layout.memory[at : at + len(value)] = value
    try:
        with pytest.raises(relink.RelinkError):
            layout.image()
    finally:
        layout.memory[at : at + len(value)] = kept


@pytest.mark.parametrize(
    ("tag", "value"),
    [
        (relink.DT_STRTAB, 2**40),
        (relink.DT_STRSZ, 2**40),
        (relink.DT_SYMTAB, 2**40),
        (relink.DT_SYMENT, 16),
        (relink.DT_RELAENT, 12),
        (relink.DT_PLTREL, 17),
        (relink.DT_JMPREL, 2**40),
        (relink.DT_PLTRELSZ, 25),
        (relink.DT_PLTRELSZ, 2**63),
    ],
)
def test_refuses_a_damaged_dynamic_section(layout, tag, value):
    at = layout.entry(tag)
    kept = layout.memory[at : at + 8]
    layout.memory[at : at + 8] = struct.pack("<Q", value)
    try:
        with pytest.raises(relink.RelinkError):
            layout.image().slots(NAMES)
    finally:
        layout.memory[at : at + 8] = kept


@settings(max_examples=60, deadline=None, database=None)
@given(st.data())
def test_no_damage_makes_it_read_astray(layout, data):
    places = st.one_of(
        st.integers(0, 63),
        st.integers(layout.table, layout.table + 13 * 56),
        st.integers(layout.dynamic, layout.dynamic + layout.dynamic_size - 1),
    )
    damage = data.draw(st.dictionaries(places, st.integers(0, 255), min_size=1, max_size=3))
    kept = {at: layout.memory[at] for at in damage}
    for at, value in damage.items():
        layout.memory[at] = value
    try:
        for addresses in layout.image().slots(NAMES).values():
            assert all(layout.base <= a <= layout.base + len(layout.memory) - 8 for a in addresses)
    except relink.RelinkError:
        pass
    finally:
        for at, value in kept.items():
            layout.memory[at] = value


def code_address(name: str) -> int:
    return ctypes.cast(getattr(ctypes.CDLL(None), name), ctypes.c_void_p).value or 0


@pytest.fixture
def bound(layout) -> relink.Image:
    """The copy with its slots bound to a function of the C library."""
    image = layout.image()
    for addresses in image.slots(NAMES).values():
        for address in addresses:
            ctypes.c_uint64.from_address(address).value = code_address("labs")
    return image


def targets(image: relink.Image) -> set[int]:
    return {image.target(a) for addresses in image.slots(NAMES).values() for a in addresses}


def test_redirects_and_undoes(layout, bound):
    regions = [*layout.regions, *relink.mapped_regions()]
    undo = relink.redirect(bound, dict.fromkeys(NAMES, code_address("abs")), regions)
    assert targets(bound) == {code_address("abs")}
    undo()
    assert targets(bound) == {code_address("labs")}


def test_a_page_that_was_closed_is_closed_again(layout, bound):
    slots = bound.slots(NAMES)
    page = slots["cblas_sgemm"][0] // mmap.PAGESIZE * mmap.PAGESIZE
    relink._protect(page, mmap.PROT_READ)
    try:
        regions = relink.mapped_regions()
        assert "w" not in relink.region_at(page, regions).mode
        undo = relink.redirect(bound, dict.fromkeys(NAMES, code_address("abs")), regions)
        assert targets(bound) == {code_address("abs")}
        assert relink.region_at(page, relink.mapped_regions()).mode.startswith("r--")
        undo()
        assert targets(bound) == {code_address("labs")}
        assert relink.region_at(page, relink.mapped_regions()).mode.startswith("r--")
    finally:
        relink._protect(page, mmap.PROT_READ | mmap.PROT_WRITE)


def test_writes_nothing_when_a_name_is_not_imported(layout, bound):
    functions = {"cblas_sgemm": code_address("abs"), "cblas_strsm": code_address("abs")}
    with pytest.raises(relink.RelinkError, match="does not import cblas_strsm"):
        relink.redirect(bound, functions, [*layout.regions, *relink.mapped_regions()])
    assert targets(bound) == {code_address("labs")}


def test_writes_nothing_when_a_function_is_not_code(layout, bound):
    functions = {"cblas_sgemm": code_address("abs"), "cblas_dgemm": layout.base}
    with pytest.raises(relink.RelinkError, match="does not lie in code"):
        relink.redirect(bound, functions, [*layout.regions, *relink.mapped_regions()])
    assert targets(bound) == {code_address("labs")}


def test_writes_nothing_when_a_slot_does_not_point_at_code(layout, bound):
    ctypes.c_uint64.from_address(bound.slots(NAMES)["cblas_cgemm"][0]).value = layout.base
    with pytest.raises(relink.RelinkError, match="does not lie in code"):
        relink.redirect(bound, dict.fromkeys(NAMES, code_address("abs")), [*layout.regions, *relink.mapped_regions()])
    assert targets(bound) == {code_address("labs"), layout.base}
