"""A table of faults and threats, with the answer to each and the tests that check the answer.

Each test that is named here must exist.
"""

from __future__ import annotations

import re
import unittest

from tests.support import ROOT
from tests.support.internals import every_command

#: Bad input and other faults: the fault, the answer of the server, and the tests.
FAULTS: dict[int, tuple[str, str, tuple[str, ...]]] = {
    1: ("an empty message or line", "ignored in RESP, an error in text",
        ("faults.test_empty_lines_and_arrays", "server.test_text")),
    2: ("*-10, *0", "ignored", ("wire.test_empty_arrays_are_ignored",)),
    3: ("*20000000", "a protocol error, no allocation", ("faults.test_refusals",)),
    4: ("$2000000000, and lengths beyond 64 bits", "a protocol error", ("faults.test_refusals",)),
    5: ("$-10, $blabla", "a protocol error", ("faults.test_refusals",)),
    6: ("$1_0, $+3, $ 3", "a protocol error", ("faults.test_refusals",)),
    7: ("300,000 digits", "a protocol error at 64 KB",
        ("faults.test_refusals", "faults.test_a_length_of_300_000_digits_costs_no_time")),
    8: ("an argument without $", "a protocol error", ("faults.test_refusals",)),
    9: ("a value without CRLF", "a protocol error", ("faults.test_refusals",)),
    10: ("NUL in a header, then lines", "a protocol error at 64 KB",
         ("faults.test_refusals", "faults.test_headers_without_end")),
    11: ("a text command over the limit", "an error, constant memory",
         ("faults.test_a_text_command_over_the_limit", "faults.test_a_long_text_command")),
    12: ("unbalanced quotes", "an error, the connection stays open", ("server.test_text",)),
    13: ("one byte per message, any cut", "the same replies",
         ("faults.test_a_byte_a_message", "server.test_a_byte_at_a_time", "wire.test_any_cut")),
    14: ("10,000 commands in a message", "replies in order, other clients are served",
         ("server.test_ten_thousand_commands_in_one_message",
          "faults.test_thousands_of_commands_of_one_client_do_not_delay_others",
          "hostile.test_a_turn_ends_when_its_time_is_over")),
    15: ("thousands of empty messages", "ignored, no processor time",
         ("faults.test_empty_messages_by_the_thousand",
          "faults.test_no_spinning_after_empty_messages")),
    16: ("64 MB against a limit of 1 MB", "an error, constant memory",
         ("faults.test_a_value_over_the_limit", "faults.test_a_long_value")),
    17: ("200 clients announce 512 MB", "constant memory",
         ("faults.test_two_hundred_clients_declare_512_megabytes",)),
    18: ("10,000 clients connect and leave", "no leak",
         ("faults.test_ten_thousand_clients_connect_and_leave", "server.test_nothing_is_leaked")),
    19: ("a client leaves after a command", "the thread continues",
         ("server.test_clients_that_leave_at_once",)),
    20: ("replies that are never read", "the client is dropped after a limit",
         ("server.test_a_client_that_never_reads_is_dropped", "limits.test_a_reply")),
    21: ("a subscriber that never reads", "dropped, no publisher waits",
         ("live.test_a_subscriber_that_never_reads_is_dropped",
          "hostile.test_a_subscriber_of_many_patterns_is_dropped",
          "hostile.test_memory_is_short_for_one_subscriber")),
    22: ("one client too many", "the client waits until another one leaves",
         ("server.test_256_clients_and_one_more", "server.test_a_full_pipe_is_a_clear_refusal",
          "server.test_a_slot_is_free_as_soon_as_its_client_leaves")),
    23: ("silent clients use all connections", "dropped after the idle limit",
         ("limits.test_silent_clients_are_dropped",
          "limits.test_clients_that_never_finish_a_command")),
    24: ("input before the password", "at most 10 arguments of 16 KB",
         ("tcp.test_limits", "tcp.test_input_within_the_limits", "tcp.test_the_limit_in_text")),
    25: ("a pattern made to be slow", "matching in linear time",
         ("faults.test_a_pattern_made_to_be_slow", "store.test_a_pattern_made_to_be_slow",
          "hostile.test_a_pattern_of_stars")),
    26: ("a kill while the file is written", "the file is valid at the next start",
         ("persistence.test_saved_data_survives_a_kill", "soak.test_kills")),
    27: ("a file that is locked, full, damaged, foreign or newer",
         "reported, never overwritten; a running server continues in memory",
         ("persistence.test_a_file_in_use", "persistence.test_the_disk_is_full_and_then_is_not",
          "persistence.test_a_damaged_file", "persistence.test_another_programs_file",
          "persistence.test_another_programs_database", "persistence.test_a_newer_format",
          "persistence.test_a_file_that_cannot_be_written",
          "persistence.test_the_disk_is_full_while_it_serves",
          "persistence.test_the_file_or_its_log_was_deleted",
          "persistence.test_another_pipecache_file_was_put_in_its_place")),
    28: ("a second server with the name", "one line, exit status 1, no effect on the first",
         ("command_line.test_a_second_server", "server.test_a_name_that_is_taken")),
    29: ("Ctrl+C with 100 blocked clients", "the server ends within 5 s",
         ("live.test_ctrl_c_with_a_hundred_blocked_clients",)),
    30: ("the clock is set", "TTLs follow elapsed time, EXPIREAT follows the clock",
         ("persistence.test_the_wall_clock_is_set",
          "persistence.test_the_wall_clock_is_set_while_a_file_is_kept")),
    31: ("a browser connects to the port", "logged, closed, no command is run",
         ("tcp.test_with_a_password", "tcp.test_without_a_password")),
}  # fmt: skip

#: Threats to security: the threat, the answer, and the tests.
THREATS: dict[str, tuple[str, tuple[str, ...]]] = {
    "a false server takes the name first": (
        "FILE_FLAG_FIRST_PIPE_INSTANCE; the client checks the owner",
        ("win32.test_every_instance_of_the_pipe",
         "doctor.test_a_server_of_another_account_receives_nothing",
         "win32.test_access_denied_to_the_first_instance_means_taken", "doctor.test_another_user")),
    "another account creates an instance, or reads": (
        "a protected DACL for the user and SYSTEM; at most 0x12019b for others",
        ("win32.test_the_descriptor", "win32.test_access",
         "win32.test_a_descriptor_that_cannot_be_read_back", "win32.test_the_name_is_never_free",
         "win32.test_other_accounts_that_can_serve_the_name_are_logged",
         "win32.test_the_last_instance_is_kept_if_no_other_can_be_created")),
    "clients of other machines": (
        "PIPE_REJECT_REMOTE_CLIENTS", ("win32.test_every_instance_of_the_pipe",)),
    "a false server acts as its client": (
        "at most SECURITY_IDENTIFICATION", ("win32.test_opening",)),
    "clients use all instances": (
        "a limit of clients, and of idle time",
        ("limits.test_silent_clients_are_dropped",
         "server.test_256_clients_and_one_more")),
    "memory or parser are exhausted": (
        "limits before allocation, one limit for all memory",
        ("limits.test_incomplete_commands_count_as_memory",
         "wire.test_memory_follows_what_has_arrived",
         "limits.test_a_command_of_many_long_arguments", "properties.test_the_corpus",
         "hostile.test_memory_of_clients_is_limited", "hostile.test_a_transaction_of_long_replies",
         "hostile.test_the_same_option_again_and_again")),
    "file names from clients": (
        "no command takes one", ("fault_table.test_no_command_takes_a_path",)),
    "the Unix socket": (
        "mode 0600; only a stale socket of the same user is removed",
        ("transports.test_the_socket_is_private_and_removed_at_the_end",
         "transports.test_a_socket_of_another_user_is_never_touched",
         "transports.test_a_file_is_never_touched", "transports.test_access")),
    "the TCP port": (
        "only 127.0.0.1, with a password",
        ("tcp.test_other_addresses_are_not_served", "tcp.test_a_port_needs_a_password_option")),
    "other programs of the same user": (
        "not defended", ("fault_table.test_the_readme_names_the_limit",)),
}  # fmt: skip


class FaultTableTests(unittest.TestCase):
    def test_every_row_is_there(self) -> None:
        self.assertEqual(list(FAULTS), list(range(1, 32)))

    def test_every_test_that_is_named_exists(self) -> None:
        paths = {path.stem: path for path in (ROOT / "tests").glob("*/test_*.py")}
        named = [test for _, _, tests in FAULTS.values() for test in tests]
        named += [test for _, tests in THREATS.values() for test in tests]
        for test in named:
            module, name = test.split(".")
            with self.subTest(test=test):
                text = paths[f"test_{module}"].read_text(encoding="utf-8")
                self.assertTrue(f"def {name}(self)" in text, "there is no such test")

    def test_every_row_has_a_test(self) -> None:
        for _, _, tests in FAULTS.values():
            self.assertTrue(tests)

    def test_no_command_takes_a_path(self) -> None:
        for entry in every_command():
            self.assertIsNone(re.search("path|file", entry.usage.lower()), entry.usage)

    def test_the_readme_names_the_limit(self) -> None:
        text = (ROOT / "README.md").read_text(encoding="utf-8")
        expected = "There is **no** defence against other programs of the same user"
        self.assertTrue(expected in text, "the README does not say so")


if __name__ == "__main__":
    unittest.main()
