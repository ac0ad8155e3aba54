import sys

import win32file  # type: ignore[import-not-found]

name = sys.argv[1] if len(sys.argv) > 1 else "KeyValuePipe"
access = win32file.GENERIC_READ | win32file.GENERIC_WRITE


def ask(command: bytes) -> str:
    pipe = win32file.CreateFile(
        rf"\\.\pipe\{name}", access, 0, None, win32file.OPEN_EXISTING, 0, None
    )
    win32file.WriteFile(pipe, command)
    _, reply = win32file.ReadFile(pipe, 65536)
    win32file.CloseHandle(pipe)
    return bytes(reply).decode()


print(ask(b"SET city dubai"))
print(ask(b"GET city"))
