"""Tests of what only real Windows enforces: structures, and the arguments of kernel32."""

from __future__ import annotations

import re
import sys
import unittest
from typing import Any
from unittest import mock

import client
import pipecache
from tests.support import RawConnection, new_client, running_under_wine, unique_name, wait_until
from tests.support.internals import is_stopping

if sys.platform == "win32":
    import ctypes
    from ctypes import wintypes

    from tests.support.internals import idle_instances

    class Recorder:
        """A wrapper of a function of kernel32 that records the arguments of each call."""

        def __init__(self, function: Any) -> None:
            self.function = function
            self.calls: list[tuple[Any, ...]] = []

        def __call__(self, *arguments: Any) -> Any:
            self.calls.append(arguments)
            return self.function(*arguments)

    class StructureTests(unittest.TestCase):
        def test_overlapped(self) -> None:
            wide = ctypes.sizeof(ctypes.c_void_p) == 8
            for module in (pipecache, client):
                structure = module.OVERLAPPED
                self.assertEqual(ctypes.sizeof(structure), 32 if wide else 20)
                self.assertEqual(structure.hEvent.offset, 24 if wide else 16)

        def test_security_attributes(self) -> None:
            wide = ctypes.sizeof(ctypes.c_void_p) == 8
            self.assertEqual(ctypes.sizeof(pipecache.SECURITY_ATTRIBUTES), 24 if wide else 12)

        def test_both_files_declare_the_same(self) -> None:
            # Neither file imports the other, so both declare the same functions and constants.
            both = vars(pipecache).keys() & vars(client).keys()
            functions = constants = 0
            for name in sorted(both):
                ours, theirs = getattr(pipecache, name), getattr(client, name)
                if hasattr(ours, "argtypes"):
                    functions += 1
                    shapes = [
                        (
                            function.__name__, function.restype,
                            [self.shape(each) for each in function.argtypes],
                            getattr(getattr(function, "errcheck", None), "__name__", None),
                        )
                        for function in (ours, theirs)
                    ]  # fmt: skip
                    self.assertEqual(shapes[0], shapes[1], name)
                elif name.isupper() and isinstance(ours, int):
                    constants += 1
                    self.assertEqual(ours, theirs, name)
            self.assertGreater((functions, constants), (10, 10))

        @staticmethod
        def shape(argument: Any) -> str:
            # Each file declares its own OVERLAPPED.
            return str(argument.__name__)

        def test_a_failed_handle_is_seen(self) -> None:
            with self.assertRaises(OSError) as caught:
                pipecache.CreateNamedPipeW("no pipe", 3, 0, 1, 0, 0, 0, None)
            self.assertEqual(caught.exception.winerror, 123)  # ERROR_INVALID_NAME

    class ServerCallTests(unittest.TestCase):
        """Tests of the server's calls to kernel32."""

        def record(self, module: Any, name: str) -> Recorder:
            recorder = Recorder(getattr(module, name))
            patch = mock.patch.object(module, name, recorder)
            patch.start()
            self.addCleanup(patch.stop)
            return recorder

        def test_every_instance_of_the_pipe(self) -> None:
            create = self.record(pipecache, "CreateNamedPipeW")
            name = unique_name()
            with pipecache.Server(name), RawConnection(name) as raw:
                self.assertEqual(raw.ask(b"QUIT"), b"OK")
                self.assertTrue(raw.ended())
                with new_client(name) as cache:
                    cache.ping()
            self.assertGreater(len(create.calls), 1)
            first, *others = create.calls
            self.assertEqual(first[1], 0x3 | 0x40000000 | 0x80000)  # duplex, overlapped, first
            for call in others:
                self.assertEqual(call[1], 0x3 | 0x40000000)
            for call in create.calls:
                self.assertEqual(call[0], "\\\\.\\pipe\\" + name)
                self.assertEqual(call[2], 0x4 | 0x2 | 0x8)  # message type and mode, reject remote
                self.assertEqual(call[3:6], (255, 65536, 65536))
                # Windows refuses an instance with another descriptor.
                self.assertEqual(bytes(call[7]._obj), bytes(first[7]._obj))
                self.assertFalse(call[7]._obj.bInheritHandle)

        def test_the_name_is_never_free(self) -> None:
            # Between closing the last instance and creating one, another program could create one.
            events: list[str] = []
            create, close = pipecache.CreateNamedPipeW, pipecache.CloseHandle
            handles = set()

            def creating(*arguments: Any) -> Any:
                handle = create(*arguments)
                handles.add(handle)
                events.append("create")
                return handle

            def closing(handle: Any) -> Any:
                if isinstance(handle, int) and handle in handles:
                    handles.discard(handle)
                    events.append("close")
                return close(handle)

            name = unique_name()
            with mock.patch.object(pipecache, "CreateNamedPipeW", creating):
                with mock.patch.object(pipecache, "CloseHandle", closing):
                    with pipecache.Server(name, max_clients=1):
                        for _ in range(3):
                            with RawConnection(name) as raw:
                                raw.ask(b"QUIT")
                                self.assertTrue(raw.ended())
                        with new_client(name) as cache:
                            cache.ping()
                        seen = list(events)
            # The first instance, one to check for the right to create it, and one for each close.
            self.assertEqual(seen, ["create", *(["create", "close"] * 4)])

        def test_the_descriptor(self) -> None:
            convert = self.record(pipecache, "ConvertStringSecurityDescriptorToSecurityDescriptorW")
            with pipecache.Server(unique_name()):
                pass
            sid = pipecache.current_user_sid()
            self.assertRegex(sid, r"^S-1-5-\d+(-\d+)*$")
            self.assertEqual(convert.calls[0][0], f"O:{sid}G:{sid}D:P(A;;GA;;;SY)(A;;GA;;;{sid})")

        def test_access(self) -> None:
            convert = self.record(pipecache, "ConvertStringSecurityDescriptorToSecurityDescriptorW")
            sid = pipecache.current_user_sid()
            own = f"(A;;GA;;;SY)(A;;GA;;;{sid})"
            for access, entries in (
                ("user", own),
                # The rights of a client, without FILE_CREATE_PIPE_INSTANCE (0x4).
                ("admins", own + "(A;;0x12019b;;;BA)"),
                # The entry of this account comes first, because over SSH it is a network logon.
                ("users", f"{own}(D;;GA;;;NU)(A;;0x12019b;;;AU)"),
                (f"O:{sid}G:{sid}D:P(A;;GA;;;{sid})", f"(A;;GA;;;{sid})"),
            ):
                asked = f"O:{sid}G:{sid}D:P{entries}"
                with self.subTest(access=access):
                    with self.assertLogs("pipecache", "INFO") as logged:
                        with pipecache.Server(unique_name(), access=access):
                            pass
                    self.assertEqual(convert.calls[-1][0], asked)
                    (told,) = (line for line in logged.output if "Access: " in line)
                    # Windows replaces GA by the rights of a pipe.
                    expected = self.read_back(asked.replace(";GA;", ";FA;"))
                    self.assertIn(f"({expected})", told.replace(";GA;", ";FA;"))
                    self.assertFalse([line for line in logged.output if "WARNING" in line])

        def test_a_descriptor_that_names_no_owner(self) -> None:
            # The owner must be this account; otherwise its clients would not trust the server.
            sid, name = pipecache.current_user_sid(), unique_name()
            with pipecache.Server(name, access=f"D:P(A;;GA;;;{sid})"), new_client(name) as cache:
                self.assertTrue(cache.ping())
            for access in (f"O:{sid}D:P(A;;GA;;;{sid})", f"G:{sid}O:{sid}D:P"):
                self.assertEqual(pipecache.sddl_for(access), access)

        @staticmethod
        def read_back(sddl: str) -> str:
            """Return the owner and the list of a descriptor in the form of this system."""
            descriptor = pipecache.security_attributes(sddl).lpSecurityDescriptor
            text = wintypes.LPVOID()
            pipecache.ConvertSecurityDescriptorToStringSecurityDescriptorW(
                descriptor, 1, 0x1 | 0x4, ctypes.byref(text), None
            )
            return ctypes.wstring_at(text.value or 0)

        def test_other_accounts_that_can_serve_the_name_are_logged(self) -> None:
            sid = pipecache.current_user_sid()
            own = f"O:{sid}G:{sid}D:P(A;;GA;;;{sid})(A;;GA;;;SY)(A;;GA;;;BA)"
            for entries, other_servers in (
                ("(A;;0x12019b;;;AU)", []), ("(A;;GA;;;OW)", []),
                ("(A;;GR;;;WD)(D;;GA;;;BG)(A;IO;GA;;;AU)", []),
                ("(A;;GRGW;;;AU)", ["S-1-5-11"]),
                ("(A;;0x4;;;WD)(A;;WD;;;BU)(A;;WO;;;AU)",
                 ["S-1-1-0", "S-1-5-32-545", "S-1-5-11"]),
            ):  # fmt: skip
                with self.subTest(entries=entries):
                    with self.assertLogs("pipecache", "INFO") as logged:
                        with pipecache.Server(unique_name(), access=own + entries):
                            pass
                    told = [line for line in logged.output if "WARNING" in line]
                    found = [
                        re.findall(r"Account (.*) has the right to serve this name too", line)[0]
                        for line in told
                    ]
                    self.assertEqual(found, other_servers, logged.output)

        def test_a_descriptor_without_a_list_allows_everyone(self) -> None:
            self.assertEqual(
                pipecache._sids_with_rights(None, pipecache.SERVER_RIGHTS), ["S-1-1-0"]
            )

        def test_a_list_that_leaves_this_account_one_instance(self) -> None:
            create = pipecache.CreateNamedPipeW

            def first_only(*arguments: Any) -> Any:
                if not arguments[1] & 0x80000:
                    raise ctypes.WinError(5)
                return create(*arguments)

            name = unique_name()
            with mock.patch.object(pipecache, "CreateNamedPipeW", first_only):
                with self.assertRaisesRegex(pipecache.TransportError, "must give this account"):
                    pipecache.Server(name).start()
            with self.assertRaises(OSError):
                RawConnection(name)

        def test_the_last_instance_is_kept_if_no_other_can_be_created(self) -> None:
            name = unique_name()
            refused = mock.Mock(side_effect=ctypes.WinError(1450))
            server = pipecache.Server(name, max_clients=1)
            with server, self.assertLogs("pipecache", "ERROR") as logged:
                for _ in range(3):
                    with RawConnection(name) as raw:
                        self.assertEqual(raw.ask(b"PING"), b"PONG")
                        with mock.patch.object(pipecache, "CreateNamedPipeW", refused):
                            raw.send(b"QUIT")  # the server closes the connection
                            wait_until(
                                lambda: refused.called, "the server has tried to create an instance"
                            )
                        refused.reset_mock()
                with RawConnection(name) as raw:
                    self.assertEqual(raw.ask(b"PING"), b"PONG")
            self.assertIn("reusing one", logged.output[0])
            self.assertNotIn("Traceback", "".join(logged.output))

        def test_an_instance_that_is_disconnected_already_is_kept(self) -> None:
            name = unique_name()
            listener = pipecache.PipeListener("\\\\.\\pipe\\" + name)
            instance = idle_instances(listener).pop()
            with RawConnection(name):
                pipecache.DisconnectNamedPipe(instance.handle)
                listener.recycle(instance, disconnected=True)
            self.assertEqual(idle_instances(listener), [instance])
            listener.interrupt()
            listener.close()

        def test_the_first_instance_of_a_name_that_is_full(self) -> None:
            busy = mock.Mock(side_effect=ctypes.WinError(231))
            with mock.patch.object(pipecache, "CreateNamedPipeW", busy):
                with self.assertRaises(pipecache.AddressInUse):
                    pipecache.Server(unique_name()).start()

        def test_closing_the_window_is_a_clean_stop(self) -> None:
            handlers: list[Any] = []
            with mock.patch.object(
                pipecache, "SetConsoleCtrlHandler", lambda handler, add: handlers.append(handler)
            ):
                name = unique_name()
                server = pipecache.Server(name)
                with server:
                    pipecache._stop_on_console_close(server)
                    (handler,) = handlers
                    for event in (0, 1):  # Ctrl+C and Ctrl+Break go to Python
                        self.assertFalse(handler(event))
                    self.assertFalse(is_stopping(server))
                    for event in (2, 5, 6):
                        self.assertTrue(handler(event))
                        with self.assertRaises(OSError):
                            RawConnection(name)

        def test_an_invalid_descriptor(self) -> None:
            with self.assertRaisesRegex(
                pipecache.TransportError, r"\(access 'X:nonsense': .*a valid SDDL string$"
            ):
                pipecache.Server(unique_name(), access="X:nonsense").start()

        def test_a_descriptor_that_cannot_be_read_back(self) -> None:
            name = unique_name()
            with mock.patch.object(pipecache, "GetSecurityInfo", return_value=5):
                with self.assertRaisesRegex(
                    pipecache.TransportError, r"\(cannot read its access list: "
                ):
                    pipecache.Server(name).start()
            with self.assertRaises(OSError):
                RawConnection(name)

        def test_no_server_without_a_descriptor(self) -> None:
            name = unique_name()
            with mock.patch.object(
                pipecache, "security_attributes", side_effect=OSError("no descriptor")
            ):
                with self.assertRaisesRegex(
                    pipecache.TransportError, r"\(access 'user': no descriptor\)"
                ):
                    pipecache.Server(name).start()
            with self.assertRaises(OSError):
                RawConnection(name)

        def test_access_denied_to_the_first_instance_means_taken(self) -> None:
            # Windows fails with this error for FILE_FLAG_FIRST_PIPE_INSTANCE; Wine succeeds.
            denied = mock.Mock(side_effect=ctypes.WinError(5))
            with mock.patch.object(pipecache, "CreateNamedPipeW", denied):
                with self.assertRaisesRegex(pipecache.AddressInUse, "served by another program"):
                    pipecache.Server(unique_name()).start()
            denied.assert_called_once()  # no second attempt without the flag

        @unittest.skipIf(
            running_under_wine(), "Wine does not enforce FILE_FLAG_FIRST_PIPE_INSTANCE"
        )
        def test_windows_refuses_a_second_first_instance(self) -> None:
            name = unique_name()
            with pipecache.Server(name):
                with mock.patch.object(pipecache, "WaitNamedPipeW", return_value=0):
                    with self.assertRaises(pipecache.AddressInUse):
                        pipecache.Server(name).start()

        def test_operations_are_overlapped(self) -> None:
            read = self.record(pipecache, "ReadFile")
            write = self.record(pipecache, "WriteFile")
            connect = self.record(pipecache, "ConnectNamedPipe")
            name = unique_name()
            with pipecache.Server(name), new_client(name) as cache:
                cache.ping()
            for recorder, position in ((read, 4), (write, 4), (connect, 1)):
                self.assertTrue(recorder.calls)
                for call in recorder.calls:
                    self.assertTrue(call[position]._obj.hEvent)

        def test_a_client_that_left_is_disconnected(self) -> None:
            disconnect = self.record(pipecache, "DisconnectNamedPipe")
            name = unique_name()
            with pipecache.Server(name, max_clients=1):
                for _ in range(2):  # both clients get the same instance
                    with new_client(name) as cache:
                        cache.ping()
            self.assertTrue(disconnect.calls)

    class ClientCallTests(unittest.TestCase):
        """Tests of the client's calls to kernel32."""

        def test_opening(self) -> None:
            create = Recorder(client.CreateFileW)
            mode = Recorder(client.SetNamedPipeHandleState)
            name = unique_name()
            with mock.patch.object(client, "CreateFileW", create):
                with mock.patch.object(client, "SetNamedPipeHandleState", mode):
                    with pipecache.Server(name), new_client(name) as cache:
                        cache.ping()
            (call,) = create.calls
            # At most identification, so that a false server cannot act as the user.
            self.assertEqual(call[5], 0x40000000 | 0x100000 | 0x10000)
            self.assertEqual(call[1:3], (0xC0000000, 0))
            self.assertEqual(mode.calls[0][1]._obj.value, 2)

        def test_errors_of_opening(self) -> None:
            for error, exception, message in (
                (2, client.ServerNotRunning, "Cache server not running"),
                (5, client.ServerNotRunning, "belongs to another account"),
                (53, client.ServerNotRunning, "Cannot open"),
                (231, client.CacheTimeout, "busy for 0 s"),
            ):

                def failing(*arguments: Any, error: int = error) -> Any:
                    ctypes.set_last_error(error)
                    return client.INVALID_HANDLE_VALUE

                with self.subTest(error=error):
                    with mock.patch.object(client, "CreateFileW", failing):
                        with self.assertRaisesRegex(exception, message):
                            new_client(unique_name(), connect_timeout=0).ping()

        def test_sizes_of_ctypes(self) -> None:
            self.assertEqual(ctypes.sizeof(wintypes.DWORD), 4)

else:

    class Win32Tests(unittest.TestCase):
        def test_on_windows_only(self) -> None:
            self.skipTest("kernel32 is part of Windows: 'python tests' runs these tests under Wine")


if __name__ == "__main__":
    unittest.main()
