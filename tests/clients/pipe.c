#include <stdio.h>
#include <string.h>
#include <windows.h>

int main(int argc, char **argv)
{
    const char *commands[] = {"SET city dubai", "GET city"};
    const DWORD flags = SECURITY_SQOS_PRESENT | SECURITY_IDENTIFICATION;
    char reply[4096];
    WCHAR path[256];
    DWORD size, mode = PIPE_READMODE_MESSAGE;
    HANDLE pipe;

    swprintf(path, 256, L"\\\\.\\pipe\\%.200hs", argc > 1 ? argv[1] : "KeyValuePipe");
    while ((pipe = CreateFileW(path, GENERIC_READ | GENERIC_WRITE, 0, NULL, OPEN_EXISTING, flags,
                               NULL)) == INVALID_HANDLE_VALUE)
        if (GetLastError() != ERROR_PIPE_BUSY || !WaitNamedPipeW(path, 5000)) {
            fprintf(stderr, "cannot open the pipe: error %lu\n", GetLastError());
            return 1;
        }
    SetNamedPipeHandleState(pipe, &mode, NULL, NULL);
    for (int i = 0; i < 2; i++) {
        if (!WriteFile(pipe, commands[i], (DWORD)strlen(commands[i]), &size, NULL))
            return 1;
        while (!ReadFile(pipe, reply, sizeof reply, &size, NULL)) { /* longer than reply[] */
            if (GetLastError() != ERROR_MORE_DATA)
                return 1;
            printf("%.*s", (int)size, reply);
        }
        printf("%.*s\n", (int)size, reply);
    }
    CloseHandle(pipe);
    return 0;
}
