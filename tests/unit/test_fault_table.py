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
    1: ("an empty message, or line", "RESP ignores it, text answers that it is empty",
        ("faults.test_lines_with_nothing_in_them", "server.test_text")),
    2: ("*-10, *0", "ignored", ("wire.test_nothing_is_asked",)),
    3: ("*20000000", "refused, nothing allocated", ("faults.test_refusals",)),
    4: ("$2000000000 and beyond 64 bits", "refused", ("faults.test_refusals",)),
    5: ("$-10, $blabla", "refused", ("faults.test_refusals",)),
    6: ("$1_0, $+3, $ 3", "refused", ("faults.test_refusals",)),
    7: ("300,000 digits", "refused at 64 KB, in no time",
        ("faults.test_refusals", "faults.test_a_length_of_300_000_digits_costs_no_time")),
    8: ("no $ where one must be", "refused", ("faults.test_refusals",)),
    9: ("no CRLF after a value", "refused", ("faults.test_refusals",)),
    10: ("NUL in a header, then lines", "refused, bounded",
         ("faults.test_refusals", "faults.test_headers_without_end")),
    11: ("text over the limit", "an error, memory level",
         ("faults.test_a_text_command_over_the_limit", "faults.test_a_long_text_command")),
    12: ("unbalanced quotes", "an error, the connection stays", ("server.test_text",)),
    13: ("a byte a message, any cut", "the same replies",
         ("faults.test_a_byte_a_message", "server.test_a_byte_at_a_time", "wire.test_any_cut")),
    14: ("10,000 commands in a message", "in order, others get their turn",
         ("server.test_ten_thousand_commands_in_one_message",
          "faults.test_one_with_thousands_of_commands_does_not_starve_the_others",
          "hostile.test_a_turn_ends_when_its_time_is_over")),
    15: ("empty messages by the thousand", "ignored, no spinning",
         ("faults.test_empty_messages_by_the_thousand",
          "faults.test_no_spinning_after_empty_messages")),
    16: ("64 MB against a limit of 1 MB", "an error, memory level",
         ("faults.test_a_value_over_the_limit", "faults.test_a_long_value")),
    17: ("200 clients declare 512 MB", "memory level",
         ("faults.test_two_hundred_clients_declare_512_megabytes",)),
    18: ("10,000 connect and leave", "nothing is leaked",
         ("faults.test_ten_thousand_that_connect_and_leave", "server.test_nothing_is_leaked")),
    19: ("a command, and the client leaves", "the worker survives",
         ("server.test_clients_that_leave_at_once",)),
    20: ("replies that are never read", "dropped at a limit, its place is free",
         ("server.test_one_that_never_reads_is_dropped", "limits.test_a_reply")),
    21: ("a subscriber that never reads", "dropped, nobody waits for it",
         ("live.test_a_subscriber_that_never_reads_is_dropped",
          "hostile.test_a_subscriber_of_many_patterns_is_dropped",
          "hostile.test_memory_is_short_for_one_of_them")),
    22: ("one client too many", "waits; the place of one that leaves is free at once",
         ("server.test_256_clients_and_one_more", "server.test_a_full_pipe_is_a_clear_refusal",
          "server.test_a_slot_is_free_as_soon_as_its_client_leaves")),
    23: ("silent clients hold every place", "an idle limit frees them",
         ("limits.test_silent_clients_give_their_places_up",
          "limits.test_clients_that_never_finish_a_command")),
    24: ("before the password", "10 arguments of 16 KB",
         ("tcp.test_limits", "tcp.test_what_the_limits_allow", "tcp.test_the_limit_in_text")),
    25: ("a pattern made to be slow", "matching is linear",
         ("faults.test_a_pattern_made_to_be_slow", "store.test_a_pattern_made_to_be_slow",
          "hostile.test_a_pattern_of_stars")),
    26: ("killed while the file is written", "starts again, the file is whole",
         ("persistence.test_saved_is_saved_however_it_ends", "soak.test_kills")),
    27: ("a file locked, full, damaged, foreign, newer",
         "said, never overwritten, going on from memory",
         ("persistence.test_a_file_in_use", "persistence.test_the_disk_is_full_and_then_is_not",
          "persistence.test_a_damaged_file", "persistence.test_another_programs_file",
          "persistence.test_another_programs_database", "persistence.test_a_newer_format",
          "persistence.test_a_file_that_cannot_be_written",
          "persistence.test_the_disk_is_full_while_it_serves",
          "persistence.test_the_file_or_its_log_was_taken_away",
          "persistence.test_another_pipecache_file_was_put_in_its_place")),
    28: ("a second server on the name", "one line, exit status 1, the first unharmed",
         ("command_line.test_a_second_server", "server.test_a_name_that_is_taken")),
    29: ("Ctrl+C with 100 blocked clients", "ends within 5 s",
         ("live.test_ctrl_c_with_a_hundred_blocked_clients",)),
    30: ("the clock is set", "elapsed time for a time to live, the clock for a moment",
         ("persistence.test_the_wall_clock_is_set",
          "persistence.test_the_wall_clock_is_set_while_a_file_is_kept")),
    31: ("a browser at the port", "logged, closed, nothing executed",
         ("tcp.test_with_one", "tcp.test_without_a_password")),
}  # fmt: skip

#: Threats to security: the threat, the answer, and the tests.
THREATS: dict[str, tuple[str, tuple[str, ...]]] = {
    "a false server takes the name first": (
        "FIRST_PIPE_INSTANCE; the client looks who the owner is",
        ("win32.test_every_instance_of_the_pipe", "doctor.test_somebody_elses_is_told_nothing",
         "win32.test_access_denied_to_the_first_instance_means_taken", "doctor.test_another_user")),
    "another account joins as an instance, or reads": (
        "a protected list for the user and SYSTEM; at most 0x12019b for others",
        ("win32.test_the_descriptor", "win32.test_who_may_connect",
         "win32.test_what_cannot_be_read_back_is_not_served", "win32.test_the_name_is_never_free",
         "win32.test_others_who_could_serve_the_name_are_told_of",
         "win32.test_the_last_instance_is_kept_when_there_can_be_no_other")),
    "clients of other machines": (
        "PIPE_REJECT_REMOTE_CLIENTS", ("win32.test_every_instance_of_the_pipe",)),
    "a false server acts as its client": (
        "identification at most", ("win32.test_opening",)),
    "all instances are held": (
        "limits of clients and of idle time",
        ("limits.test_silent_clients_give_their_places_up",
         "server.test_256_clients_and_one_more")),
    "memory or parser are exhausted": (
        "limits before allocation, one limit for all memory",
        ("limits.test_commands_half_read_count_as_memory",
         "wire.test_memory_follows_what_has_arrived",
         "limits.test_a_command_of_many_long_arguments", "properties.test_the_corpus",
         "hostile.test_there_is_no_room_for_more", "hostile.test_a_transaction_of_long_replies",
         "hostile.test_the_same_option_again_and_again")),
    "file names from clients": ("there are none", ("fault_table.test_no_command_takes_a_path",)),
    "the Unix socket": (
        "mode 0600, only one's own stale socket is removed",
        ("transports.test_for_the_user_alone_and_gone_afterwards",
         "transports.test_a_socket_of_another_user_is_never_touched",
         "transports.test_a_file_is_never_touched", "transports.test_who_may_connect")),
    "the TCP port": (
        "127.0.0.1 alone, with a password",
        ("tcp.test_nobody_else_reaches_it", "tcp.test_no_door_is_left_open_by_mistake")),
    "other programs of the same user": ("not defended", ("fault_table.test_the_readme_says_so",)),
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

    def test_the_readme_says_so(self) -> None:
        text = (ROOT / "README.md").read_text(encoding="utf-8")
        self.assertRegex(text, r"Not defended: \*\*other programs of the same user\*\*")


if __name__ == "__main__":
    unittest.main()
