"""Redirect the functions that a loaded shared library imports, without building anything (Linux, 64-bit ELF).

A shared library calls imported functions through slots, pointers in its global offset table that the dynamic loader
has filled. `Image` finds the slots of given names, `redirect` rewrites them. Every address is looked up in
/proc/self/maps before it is read or written, and anything that deviates from the ELF specification raises
`RelinkError` before the process is changed.

Reference: System V ABI, chapter 5 ("Dynamic Linking"), with the x86-64 and AArch64 supplements.
"""

from __future__ import annotations

import ctypes
import mmap
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

PT_LOAD, PT_DYNAMIC = 1, 2
DT_PLTRELSZ, DT_STRTAB, DT_SYMTAB, DT_RELA, DT_RELASZ, DT_RELAENT = 2, 5, 6, 7, 8, 9
DT_STRSZ, DT_SYMENT, DT_PLTREL, DT_JMPREL = 10, 11, 20, 23
SYMBOL, RELA, PROGRAM_HEADER = struct.Struct("<IBBHQQ"), struct.Struct("<QQq"), struct.Struct("<IIQQQQQQ")

# e_machine -> the relocations whose result is the plain address of a symbol: JUMP_SLOT, GLOB_DAT and the 64-bit word.
SLOT_RELOCATIONS = {62: (7, 6, 1), 183: (1026, 1025, 257)}  # x86-64 (62) and AArch64 (183)


class RelinkError(Exception):
    """The library cannot be read or changed safely; nothing has been changed."""


@dataclass(frozen=True)
class Region:
    """One line of /proc/self/maps: addresses start <= a < end, `mode` as in "r-xp"."""

    start: int
    end: int
    mode: str
    offset: int
    path: str


def mapped_regions() -> list[Region]:
    """This process's memory map, ordered by address."""
    try:
        # Latin-1 decodes any file name; names are only compared and shown.
        with open("/proc/self/maps", encoding="latin-1") as lines:
            fields = [line.rstrip("\n").split(None, 5) for line in lines]
    except OSError as error:
        raise RelinkError(f"/proc/self/maps cannot be read: {error}") from None
    regions = []
    for addresses, mode, offset, _device, _inode, *path in fields:
        start, end = (int(address, 16) for address in addresses.split("-"))
        regions.append(Region(start, end, mode, int(offset, 16), path[0] if path else ""))
    return regions


def region_at(address: int, regions: Iterable[Region]) -> Region | None:
    """The mapped region that holds `address`, or None."""
    return next((region for region in regions if region.start <= address < region.end), None)


class Image:
    """A loaded shared library; `regions` are the mappings of its file."""

    def __init__(self, regions: Iterable[Region]) -> None:
        self.regions = sorted(regions, key=lambda region: region.start)
        headers = [region.start for region in self.regions if region.offset == 0 and "r" in region.mode]
        if len(headers) != 1:
            raise RelinkError(f"the beginning of the file is mapped {len(headers)} times, not once")
        self.machine, self.base, self.dynamic = self._read_headers(headers[0])

    @classmethod
    def named(cls, file_name: str, regions: Iterable[Region]) -> Image:
        """The image of the one loaded library whose file has this name."""
        own = [region for region in regions if region.path.rpartition("/")[2] == file_name]
        paths = {region.path for region in own}
        if len(paths) != 1:
            raise RelinkError(f"{file_name} is loaded from {len(paths)} files, not from one")
        return cls(own)

    def read(self, address: int, size: int) -> bytes:
        """Read `size` bytes at `address`; RelinkError unless all of them are mapped from this file and readable."""
        reached = address
        for region in self.regions:
            if region.start <= reached < region.end and "r" in region.mode:
                reached = region.end
        if size < 0 or reached < address + size:
            raise RelinkError(f"{size} bytes at {address:#x} are not within the library")
        return ctypes.string_at(address, size)

    def _read_headers(self, start: int) -> tuple[int, int, dict[int, int]]:
        """The file header at `start` -> (e_machine, load bias, the entries of the dynamic section)."""
        ident = self.read(start, 16)
        if ident[:7] != b"\x7fELF\x02\x01\x01":  # 64 bits, little endian, version 1
            raise RelinkError(f"not a 64-bit little-endian ELF file: it begins with {ident[:7].hex(' ')}")
        kind, machine = struct.unpack("<HH", self.read(start + 16, 4))
        (table,) = struct.unpack("<Q", self.read(start + 32, 8))
        entry_size, count = struct.unpack("<HH", self.read(start + 54, 4))
        if kind != 3 or machine not in SLOT_RELOCATIONS or entry_size != PROGRAM_HEADER.size:
            raise RelinkError(f"ELF type {kind}, machine {machine}, program headers of {entry_size} bytes")
        base, dynamic = None, None
        for header in PROGRAM_HEADER.iter_unpack(self.read(start + table, count * entry_size)):
            segment, _flags, offset, virtual, _physical, _file_size, size, _align = header
            if segment == PT_LOAD and offset == 0:
                base = start - virtual
            elif segment == PT_DYNAMIC:
                dynamic = virtual, size // 16 * 16
        if base is None or dynamic is None:
            raise RelinkError("it has no dynamic segment, or none that begins with the file")
        entries: dict[int, int] = {}
        for tag, value in struct.iter_unpack("<qQ", self.read(base + dynamic[0], dynamic[1])):
            if tag == 0:
                break
            entries.setdefault(tag, value)
        return machine, base, entries

    def _table(self, address_tag: int, size_tag: int) -> bytes:
        if address_tag not in self.dynamic or size_tag not in self.dynamic:
            return b""
        return self.read(self._address(address_tag), self.dynamic[size_tag])

    def _address(self, tag: int) -> int:
        # glibc adds the load bias to these entries in memory, musl does not.
        value = self.dynamic.get(tag, 0)
        return value if value >= self.base else self.base + value

    def slots(self, names: Iterable[str]) -> dict[str, list[int]]:
        """The slots' addresses of each of `names` that the library imports."""
        wanted = {name.encode(): name for name in names}
        sizes = (
            self.dynamic.get(DT_SYMENT),
            self.dynamic.get(DT_RELAENT, RELA.size),
            self.dynamic.get(DT_PLTREL, DT_RELA),
        )
        if sizes != (SYMBOL.size, RELA.size, DT_RELA):
            raise RelinkError(
                f"symbols, relocations and kind of relocation are {sizes}, which is not this machine's form"
            )
        strings, symbols = self._table(DT_STRTAB, DT_STRSZ), self._address(DT_SYMTAB)
        relocations = self._table(DT_JMPREL, DT_PLTRELSZ) + self._table(DT_RELA, DT_RELASZ)
        if len(relocations) % RELA.size:
            raise RelinkError(f"{len(relocations)} bytes of relocations are not a multiple of {RELA.size}")
        found: dict[str, list[int]] = {}
        kinds = SLOT_RELOCATIONS[self.machine]
        imports = [(offset, info >> 32, addend) for offset, info, addend in RELA.iter_unpack(relocations)
                   if info >> 32 and info & 0xFFFFFFFF in kinds]  # fmt: skip
        table = self.read(symbols, (1 + max((symbol for _, symbol, _ in imports), default=0)) * SYMBOL.size)
        for offset, symbol, addend in imports:
            name_at, _info, _other, section, _value, _size = SYMBOL.unpack_from(table, symbol * SYMBOL.size)
            name = wanted.get(strings[name_at : strings.find(b"\0", name_at)])
            if name and section == 0 and addend == 0:  # section 0: imported, not defined here
                address = self.base + offset
                if address % 8:
                    raise RelinkError(f"the slot of {name} at {address:#x} is not aligned")
                self.read(address, 8)
                found.setdefault(name, []).append(address)
        return found

    def target(self, slot: int) -> int:
        """The function address in `slot` now."""
        return struct.unpack("<Q", self.read(slot, 8))[0]


def redirect(image: Image, functions: Mapping[str, int], regions: Iterable[Region]) -> Callable[[], None]:
    """Make `image` call the function at the given address for each imported name; returns a function that undoes it.

    All names must be imported, and all slots must point at code, or else RelinkError is raised before the first write.
    Page protections are restored.
    """
    regions = list(regions)
    slots = image.slots(functions)
    missing = [name for name in functions if name not in slots]
    if missing:
        raise RelinkError(f"it does not import {', '.join(missing)}")
    before = {address: image.target(address) for addresses in slots.values() for address in addresses}
    for target in (*before.values(), *functions.values()):
        region = region_at(target, regions)
        if region is None or "x" not in region.mode:
            raise RelinkError(f"a function at {target:#x} does not lie in code")

    def undo() -> None:
        for address, target in before.items():
            _write(address, target, regions)

    try:
        for name, addresses in slots.items():
            for address in addresses:
                _write(address, functions[name], regions)
    except RelinkError:
        undo()
        raise
    return undo


def _write(address: int, value: int, regions: Iterable[Region]) -> None:
    """Store an aligned pointer, atomically; a read-only page is made writable meanwhile."""
    region = region_at(address, regions)
    if region is None or "x" in region.mode:
        raise RelinkError(f"the slot at {address:#x} does not lie in data")
    if "w" in region.mode:
        ctypes.c_uint64.from_address(address).value = value
        return
    page = address // mmap.PAGESIZE * mmap.PAGESIZE
    _protect(page, mmap.PROT_READ | mmap.PROT_WRITE)
    ctypes.c_uint64.from_address(address).value = value
    _protect(page, mmap.PROT_READ)


def _protect(page: int, mode: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(mmap.PAGESIZE), mode):
        raise RelinkError(f"mprotect of the page at {page:#x} failed with error {ctypes.get_errno()}")
