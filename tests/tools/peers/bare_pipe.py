"""A plain named pipe through ctypes, the lower limit for benchmark.py.

Every call is bound once, every buffer and structure is made once, nothing is decoded, and an
error ends the connection.  Windows only.
"""

from __future__ import annotations

import ctypes
import sys
import time
from ctypes import wintypes

ERROR_FILE_NOT_FOUND = 2
ERROR_PIPE_BUSY = 231
ERROR_PIPE_CONNECTED = 535
ERROR_IO_PENDING = 997
PIPE_ACCESS_DUPLEX = 0x3
PIPE_TYPE_MESSAGE = 0x4
PIPE_READMODE_MESSAGE = 0x2
PIPE_UNLIMITED_INSTANCES = 255
FILE_FLAG_OVERLAPPED = 0x40000000
GENERIC_READ_WRITE = 0xC0000000
OPEN_EXISTING = 3
#: Bytes of a buffer, in which a hundred requests or replies fit as one message.
SIZE = 65536


class OVERLAPPED(ctypes.Structure):
    _fields_ = (
        ("Internal", ctypes.c_void_p),
        ("InternalHigh", ctypes.c_void_p),
        ("Offset", wintypes.DWORD),
        ("OffsetHigh", wintypes.DWORD),
        ("hEvent", wintypes.HANDLE),
    )


if sys.platform == "win32":
    kernel32 = ctypes.WinDLL("kernel32", use_last_error=True)
    INVALID_HANDLE_VALUE = ctypes.c_void_p(-1).value
    LPOVERLAPPED = ctypes.POINTER(OVERLAPPED)
    LPDWORD = ctypes.POINTER(wintypes.DWORD)

    kernel32.CreateNamedPipeW.restype = wintypes.HANDLE
    kernel32.CreateNamedPipeW.argtypes = (wintypes.LPCWSTR, *[wintypes.DWORD] * 6, ctypes.c_void_p)
    kernel32.CreateFileW.restype = wintypes.HANDLE
    kernel32.CreateFileW.argtypes = (
        wintypes.LPCWSTR,
        wintypes.DWORD,
        wintypes.DWORD,
        ctypes.c_void_p,
        wintypes.DWORD,
        wintypes.DWORD,
        wintypes.HANDLE,
    )
    kernel32.CreateEventW.restype = wintypes.HANDLE
    kernel32.CreateEventW.argtypes = (
        ctypes.c_void_p,
        wintypes.BOOL,
        wintypes.BOOL,
        wintypes.LPCWSTR,
    )
    kernel32.ConnectNamedPipe.restype = wintypes.BOOL
    kernel32.ConnectNamedPipe.argtypes = (wintypes.HANDLE, LPOVERLAPPED)
    kernel32.WaitNamedPipeW.restype = wintypes.BOOL
    kernel32.WaitNamedPipeW.argtypes = (wintypes.LPCWSTR, wintypes.DWORD)
    kernel32.SetNamedPipeHandleState.restype = wintypes.BOOL
    kernel32.SetNamedPipeHandleState.argtypes = (wintypes.HANDLE, LPDWORD, LPDWORD, LPDWORD)
    kernel32.ReadFile.restype = wintypes.BOOL
    kernel32.ReadFile.argtypes = (
        wintypes.HANDLE,
        ctypes.c_void_p,
        wintypes.DWORD,
        LPDWORD,
        LPOVERLAPPED,
    )
    kernel32.WriteFile.restype = wintypes.BOOL
    kernel32.WriteFile.argtypes = (
        wintypes.HANDLE,
        ctypes.c_char_p,
        wintypes.DWORD,
        LPDWORD,
        LPOVERLAPPED,
    )
    kernel32.GetOverlappedResult.restype = wintypes.BOOL
    kernel32.GetOverlappedResult.argtypes = (wintypes.HANDLE, LPOVERLAPPED, LPDWORD, wintypes.BOOL)
    kernel32.CloseHandle.restype = wintypes.BOOL
    kernel32.CloseHandle.argtypes = (wintypes.HANDLE,)

    def failure() -> OSError:
        return ctypes.WinError(ctypes.get_last_error())

    class Pipe:
        """One end of a pipe, for use by one thread."""

        def __init__(self, handle: int, overlapped: bool) -> None:
            self.handle = handle
            self.buffer = ctypes.create_string_buffer(SIZE)
            self.count = wintypes.DWORD()
            self.byref_count = ctypes.byref(self.count)
            self.overlapped = None
            self.byref_overlapped = None
            if overlapped:
                # One event is enough: this end never reads and writes at the same time.
                self.overlapped = OVERLAPPED(hEvent=kernel32.CreateEventW(None, True, False, None))
                self.byref_overlapped = ctypes.byref(self.overlapped)

        def finish(self) -> None:
            """Wait for a pending call, or raise its error."""
            if ctypes.get_last_error() != ERROR_IO_PENDING or not kernel32.GetOverlappedResult(
                self.handle, self.byref_overlapped, self.byref_count, True
            ):
                raise failure()

        def connect(self) -> None:
            if not kernel32.ConnectNamedPipe(self.handle, self.byref_overlapped):
                self.finish()

        def read(self) -> bytes:
            if not kernel32.ReadFile(
                self.handle, self.buffer, SIZE, self.byref_count, self.byref_overlapped
            ):
                self.finish()
            return ctypes.string_at(self.buffer, self.count.value)

        def write(self, data: bytes) -> None:
            if not kernel32.WriteFile(
                self.handle, data, len(data), self.byref_count, self.byref_overlapped
            ):
                self.finish()

        def close(self) -> None:
            kernel32.CloseHandle(self.handle)
            if self.overlapped is not None:
                kernel32.CloseHandle(self.overlapped.hEvent)

    def create(address: str, overlapped: bool) -> Pipe:
        """Return a server's end that waits for a client."""
        handle = kernel32.CreateNamedPipeW(
            address,
            PIPE_ACCESS_DUPLEX | (FILE_FLAG_OVERLAPPED if overlapped else 0),
            PIPE_TYPE_MESSAGE | PIPE_READMODE_MESSAGE,
            PIPE_UNLIMITED_INSTANCES,
            SIZE,
            SIZE,
            0,
            None,
        )
        if handle == INVALID_HANDLE_VALUE:
            raise failure()
        return Pipe(handle, overlapped)

    def connect(address: str, overlapped: bool = False, patience: float = 10) -> Pipe:
        """Return a client's end in message mode; wait up to *patience* seconds for an instance."""
        deadline = time.monotonic() + patience
        while True:
            handle = kernel32.CreateFileW(
                address,
                GENERIC_READ_WRITE,
                0,
                None,
                OPEN_EXISTING,
                FILE_FLAG_OVERLAPPED if overlapped else 0,
                None,
            )
            if handle != INVALID_HANDLE_VALUE:
                break
            error = failure()
            if (
                error.winerror not in (ERROR_FILE_NOT_FOUND, ERROR_PIPE_BUSY)
                or time.monotonic() > deadline
            ):
                raise error
            kernel32.WaitNamedPipeW(address, 100)
        mode = wintypes.DWORD(PIPE_READMODE_MESSAGE)
        if not kernel32.SetNamedPipeHandleState(handle, ctypes.byref(mode), None, None):
            raise failure()
        return Pipe(handle, overlapped)
