"""Every fault and every threat that the proxy has to stand, the tests that show it, and under which servers.

A row is a fault or a threat; the last ones are of the far end. Its tests are named as pytest names them, from the
folder of the tests and without parameters. `sabotage.py` takes the protections away one at a time, at least one of each
row. A row that is not shown under granian and under uvicorn, and on trio under hypercorn, says why.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ROWS", "Row"]

BACKEND = "faults/test_backend_faults.py::test_a_backend_that"
CLIENT, WIRE = "faults/test_client_faults.py::", "faults/test_wire_threats.py::"
CONNECT, ATTESTATION = "faults/test_connect_faults.py::", "faults/test_attestation_faults.py::"
PROCESS, RESOURCES = "faults/test_process_faults.py::", "faults/test_resources.py::"
CUT, FLIPPED, SLOW = (
    f"faults/test_backend_faults.py::test_an_answer_{way}"
    for way in ("cut_at_any_byte", "with_any_bit_turned_over", "in_small_packets")
)
RESPONSES, ENDPOINTS = "test_contract_responses.py::", "test_contract_endpoints.py::"
STALLS, SHUTDOWN, DISCONNECT = "test_stalls.py::", "test_shutdown.py::", "test_disconnect.py::"
CONFIGURATION = "test_contract_configuration.py::"


ITS_OWN = "it is about `teesign serve`, which runs granian"
THE_SERVERS = "before the app is asked the server alone decides: uvicorn waits for ever, hypercorn for 5 s"
FAR_END = "it is about the far end, which has to do with whatever answers it"
NO_SERVER = "no server takes part: it is about what is computed from bytes and times, whoever brings them"


@dataclass(frozen=True)
class Row:
    """A fault or a threat.

    Attributes:
        what: what happens.
        tests: what shows that it is stood.
        servers: why it is not shown under each server; "" where it is.
    """

    what: str
    tests: tuple[str, ...]
    servers: str = ""


ROWS: dict[str, Row] = {
    # --- connecting
    "connect": Row(
        "no connection: refused, no such name, no name server, backlog full",
        (f"{CONNECT}test_a_backend_that_cannot_be_reached",),
    ),
    "idle connection": Row(
        "a pooled connection ends on its next request: one retry, when nothing had come; no generation runs twice",
        (
            f"{CLIENT}test_an_idle_connection_that_ends_on_the_next_request",
            f"{CLIENT}test_idle_connections_that_have_ended_before",
            f"{CLIENT}test_a_generation_that_may_have_begun_is_not_run_twice",
            f"{CLIENT}test_half_an_answer_is_not_asked_for_again",
            f"{RESPONSES}test_a_request_is_sent_again_only_once",
            "test_pools.py::test_a_reset_within_the_head_is_told_apart",
            "test_pools.py::test_a_request_whose_pool_is_closed_is_not_sent_again",
        ),
    ),
    # --- uploads
    "head stalls": Row(
        "the client stops within its head, or sends it byte by byte for ever",
        (f"{CLIENT}test_a_head_that_never_ends",),
        THE_SERVERS,
    ),
    "silent connection": Row(
        "the client connects and asks for nothing, or begins with HTTP/2 and does not go on",
        (f"{CLIENT}test_a_connection_that_asks_for_nothing",),
        THE_SERVERS,
    ),
    "upload stalls": Row(
        "the client stops within its body",
        (f"{STALLS}test_an_upload_that_stops", f"{STALLS}test_an_upload_of_which_nothing_comes"),
    ),
    "unasked body": Row(
        "a client without a token begins a body where none belongs, and does not end it",
        (
            f"{ENDPOINTS}test_a_body_where_none_belongs_is_not_waited_for",
            "test_contract_attestation.py::test_a_public_report_waits_for_no_body",
            f"{DISCONNECT}test_within_a_body_that_nobody_waits_for",
        ),
    ),
    "upload slow": Row(
        "the client is slow but steady, in its body or its head",
        (
            f"{STALLS}test_a_slow_but_steady_upload",
            f"{CLIENT}test_a_slow_but_steady_upload",
            f"{CLIENT}test_a_hundred_megabytes_that_come_slowly",
            f"{CLIENT}test_a_slow_head",
        ),
    ),
    "upload left": Row(
        "the client leaves within its body: no last chunk",
        (
            f"{CLIENT}test_a_client_that_leaves_within_its_upload",
            f"{DISCONNECT}test_in_the_middle_of_an_upload",
            f"{DISCONNECT}test_in_the_middle_of_a_json_request",
        ),
    ),
    "upload too large": Row(
        "a body over the limit, by length and by count; 413 in the place of 100",
        (
            f"{CLIENT}test_a_declared_length_over_the_limit",
            f"{CLIENT}test_an_upload_over_the_limit_by_count",
            f"{CLIENT}test_an_upload_of_the_limit_by_count",
            f"{CLIENT}test_a_client_that_waits_for_100",
            f"{ENDPOINTS}test_a_chunked_body_over_the_limit_is_refused",
        ),
    ),
    "upload answered early": Row(
        "the backend answers while the client is still sending",
        (
            f"{CLIENT}test_a_backend_that_answers_while_the_client_is_sending",
            "test_pool.py::test_an_early_error_is_delivered",
            "test_pool.py::test_an_early_success_waits_for_the_request",
            "test_pools.py::test_a_success_for_a_part_of_the_request_is_none",
        ),
    ),
    "upload not taken": Row(
        "the backend takes nothing",
        (
            "faults/test_backend_faults.py::test_an_upload_whose_line_stalls",
            "test_pool.py::test_a_backend_that_takes_nothing_is_given_up",
        ),
    ),
    # --- the head of the response
    "head silent": Row(
        "the backend says nothing", (f"{BACKEND}_falls_silent", f"{RESPONSES}test_a_backend_that_is_silent")
    ),
    "head left": Row(
        "the client leaves meanwhile",
        (
            f"{CLIENT}test_a_client_that_leaves_while_the_backend_is_silent",
            f"{DISCONNECT}test_while_the_backend_is_silent",
        ),
    ),
    "head broken": Row(
        "reset, empty, garbage, floods of 1xx, 101, too long, absurd status",
        (
            BACKEND,
            CUT,
            FLIPPED,
            "test_framing.py::test_a_bad_response_is_refused_however_it_is_cut",
            "test_pool.py::test_nothing_of_a_request_that_failed_is_kept",
        ),
    ),
    "redirect": Row(
        "a redirect is relayed and not followed",
        (BACKEND, f"{ENDPOINTS}test_redirects_are_relayed_and_not_followed"),
    ),
    "compressed": Row("compressed although not asked", (BACKEND, f"{RESPONSES}test_encoded_responses")),
    # --- JSON
    "JSON cut": Row(
        "a short length, no last chunk, a reset; but whole when the end of a TLS connection is right behind it",
        (
            BACKEND,
            CUT,
            f"{RESPONSES}test_json_that_is_cut_short",
            "test_pools.py::test_a_whole_response_right_before_the_end_of_its_tls_connection_is_whole",
        ),
    ),
    "JSON odd": Row(
        "not JSON; the id missing, a number, a megabyte long",
        (BACKEND, f"{RESPONSES}test_json_without_a_usable_id", f"{RESPONSES}test_long_ids"),
    ),
    "JSON and more": Row(
        "bytes behind the end: the next client never sees them; over TLS, if a whole record of them has come by then",
        (
            BACKEND,
            "faults/test_backend_faults.py::test_a_second_response_later",
            "test_pool.py::test_what_waits_on_an_idle_connection_is_nobodys_answer",
            "test_pools.py::test_a_connection_is_not_used_again",
            "test_framing.py::test_a_connection_is_reusable",
        ),
    ),
    # --- event streams
    "stream breaks": Row(
        "a stream stalls, is reset, is cut, ends without [DONE]",
        (
            BACKEND,
            CUT,
            FLIPPED,
            f"{RESPONSES}test_a_stream_that_breaks_off",
            f"{RESPONSES}test_a_stream_without_a_terminator",
            "test_client_connection.py::test_a_stream_that_breaks_off_does_not_look_whole",
            "test_client_connection.py::test_a_client_that_sends_no_more_sees_that_its_answer_is_not_whole",
            "test_client_connection.py::test_a_stream_that_the_host_cancels_does_not_look_whole",
            "test_client_connection.py::test_a_stream_that_is_open_when_a_server_stops_does_not_look_whole",
            "test_hosts.py::test_a_server_that_ends_what_broke_off_is_refused",
            "test_pools.py::test_the_end_of_a_tls_connection_ends_no_response",
            "test_pools.py::test_a_whole_response_right_before_the_end_of_its_tls_connection_is_whole",
        ),
    ),
    "stream beside others": Row(
        "other streams are not affected",
        (f"{CLIENT}test_other_streams_are_not_affected",),
    ),
    "stream of an error": Row("an error event, then [DONE]", (BACKEND,)),
    "stream read slowly": Row(
        "the client reads slowly, or stops reading",
        (
            f"{CLIENT}test_a_slow_reader",
            f"{DISCONNECT}test_a_client_that_does_not_read_slows_the_backend_down",
            f"{STALLS}test_a_client_that_stops_reading",
            f"{STALLS}test_a_client_that_reads_slowly",
            f"{STALLS}test_a_client_that_takes_less_than_the_kernel_makes_room_for",
            f"{STALLS}test_a_client_that_does_not_take_an_error",
        ),
    ),
    "stream left": Row(
        "the client leaves at the first, a middle, the last event",
        (f"{CLIENT}test_a_client_that_leaves_a_stream", f"{DISCONNECT}test_in_the_middle_of_a_busy_stream"),
    ),
    "stream shapes": Row(
        "one byte a chunk, 64 events in a read, an event of 16 MiB, a thin line",
        (BACKEND, SLOW, "test_exchange.py::test_any_response_is_the_same_however_it_is_cut"),
    ),
    # --- signatures and attestation
    "signature misses": Row(
        "unknown, expired, evicted, strange ids, many of them",
        (
            f"{RESOURCES}test_signatures_that_are_not_there",
            "test_contract_signature.py::test_unknown_ids",
            "test_contract_signature.py::test_signatures_expire",
            "test_contract_signature.py::test_the_oldest_signatures_go_first",
        ),
    ),
    "agent": Row(
        "no socket, refused, stalled, garbage",
        (
            f"{ATTESTATION}test_an_agent_that_fails_in_every_way",
            "test_attested_server.py::test_an_agent_that_goes_and_comes_back",
            "test_dstack.py::test_failure_is_typed_and_the_next_call_works",
        ),
    ),
    "worker": Row(
        "killed, stopped, garbage, late, flooding its standard error",
        (
            f"{ATTESTATION}test_a_worker_that_fails",
            f"{ATTESTATION}test_a_worker_that_is_gone_between_reports",
            f"{ATTESTATION}test_a_worker_that_floods_its_standard_error",
            f"{ATTESTATION}test_a_worker_that_is_late",
            "test_attested_server.py::test_clients_that_have_left_are_not_waited_for",
            "test_nvidia.py::test_cancelled_calls_never_give_evidence_to_the_next_caller",
            "test_nvidia.py::test_answers_with_other_ids_are_dropped",
            "test_nvidia.py::test_worker_that_floods_stderr_never_stalls",
            "test_nvidia.py::test_long_answers_arrive_whole",
        ),
    ),
    "inference beside attestation": Row(
        "chats go on while attestation fails",
        (
            f"{ATTESTATION}test_an_agent_that_fails_in_every_way",
            f"{ATTESTATION}test_a_worker_that_is_late",
            "test_attested_server.py::test_clients_that_have_left_are_not_waited_for",
            "test_nvidia.py::test_event_loop_is_never_blocked",
        ),
    ),
    # --- the process
    "wall clock": Row(
        "the wall clock jumps by a day or ten years",
        (f"{PROCESS}test_a_wall_clock_that_jumps", f"{PROCESS}test_no_lifetime_goes_by_the_wall_clock"),
    ),
    "pause": Row(
        "the process is paused",
        (
            f"{PROCESS}test_a_process_that_is_paused",
            "test_pools.py::test_a_pause_of_this_process_is_not_silence",
            "test_pool.py::test_a_pause_of_this_process_is_not_a_backend_that_does_not_connect",
            f"{STALLS}test_a_pause_of_this_process_is_not_the_clients",
            "test_pool.py::test_an_old_connection_is_not_used_although_its_timer_is_late",
        ),
        "a pause stops a process, and `teesign serve` is one; its timers are tried on both event loops",
    ),
    "descriptors": Row(
        "no more descriptors",
        (
            f"{PROCESS}test_a_process_without_descriptors",
            "test_sockets.py::test_sockets_are_found_where_no_descriptors_are_left",
        ),
        ITS_OWN,
    ),
    "log pipe": Row(
        "nobody reads the log",
        (
            "test_log_writer.py::test_nobody_waits_when_nobody_reads",
            "test_log_writer.py::test_what_does_not_fit_is_dropped_and_counted",
            "test_log_writer.py::test_a_server_whose_log_nobody_reads",
        ),
        ITS_OWN,
    ),
    "SIGTERM idle": Row(
        "SIGTERM ends an idle server at once, whoever is connected and asks for nothing",
        (
            f"{SHUTDOWN}test_an_idle_server_stops_at_once",
            f"{SHUTDOWN}test_a_client_that_asks_for_nothing_holds_up_no_end",
            f"{SHUTDOWN}test_a_report_that_is_being_made_is_waited_for",
            f"{SHUTDOWN}test_a_server_that_waits_for_its_keys_stops_at_once",
            f"{SHUTDOWN}test_a_signal_before_the_worker_listens_for_signals_is_not_lost",
        ),
        ITS_OWN,
    ),
    "SIGTERM with streams": Row(
        "streams finish, and their signatures can be fetched",
        (
            f"{SHUTDOWN}test_the_signature_of_the_last_stream_can_be_fetched",
            f"{SHUTDOWN}test_a_stream_that_does_not_finish_is_cut",
            f"{SHUTDOWN}test_a_stream_that_is_cut_does_not_look_whole_to_an_old_client",
            f"{SHUTDOWN}test_an_answer_that_is_not_taken_does_not_look_whole_to_an_old_client",
            "test_drain.py::test_open_responses_are_waited_for",
            f"{SHUTDOWN}test_everything_is_served_during_the_delay",
        ),
        ITS_OWN,
    ),
    "SIGTERM with uploads": Row(
        "uploads finish",
        (f"{SHUTDOWN}test_an_upload_finishes",),
        ITS_OWN,
    ),
    "SIGTERM twice": Row(
        "a second signal ends at once",
        (
            f"{SHUTDOWN}test_a_second_signal_ends_at_once",
            f"{SHUTDOWN}test_a_second_signal_ends_a_collection_too",
        ),
        ITS_OWN,
    ),
    "SIGKILL": Row(
        "no orphan is left, and no socket",
        (
            f"{SHUTDOWN}test_nobody_is_left_when_the_parent_is_killed",
            "test_attested_server.py::test_nothing_is_left_of_a_server_that_ended",
            "test_nvidia.py::test_bundled_worker_ends_with_the_process_that_started_it",
        ),
        ITS_OWN,
    ),
    # --- invariants that no single fault stands for
    "signed before released": Row(
        "the signature is there before the last bytes are",
        (
            "test_app.py::test_a_stream_is_signed_before_its_end_is_released",
            f"{RESPONSES}test_no_streamed_chat_is_without_signature",
            f"{RESPONSES}test_the_terminator_waits_for_the_signature",
        ),
    ),
    # --- threats
    "1 chosen ids": Row(
        "another response has the same id",
        (
            f"{RESPONSES}test_an_id_is_kept_by_the_first_who_uses_it",
            f"{RESPONSES}test_a_chosen_id_does_not_shadow_a_random_one",
            "test_cache.py::test_the_first_to_use_an_id_keeps_it",
        ),
    ),
    "2 ids from the wrong place": Row(
        "comments, nested members, text that looks like an id",
        (
            "test_identifiers.py::test_the_id_of_a_document",
            f"{RESPONSES}test_event_streams",
            f"{RESPONSES}test_json_with_an_id",
        ),
    ),
    "3 chosen request hash": Row(
        "a client names the hash to be signed", (f"{ENDPOINTS}test_the_request_hash_header_is_ignored",)
    ),
    "4 desync": Row(
        "requests that could be read as two",
        (f"{WIRE}test_a_request_that_could_be_read_as_two", "test_corpora.py::test_requests_fare_as_the_table_says"),
        "how requests are told apart is the server's: hypercorn answers some with 501",
    ),
    "5 second response": Row(
        "a second response behind the first; over TLS, if a whole record of it has come before the next request",
        (
            BACKEND,
            "faults/test_backend_faults.py::test_a_second_response_later",
            "test_pool.py::test_what_waits_on_an_idle_connection_is_nobodys_answer",
            "test_pools.py::test_a_connection_is_not_used_again",
            "test_pools.py::test_what_tls_holds_behind_a_response_is_nobodys_answer",
            "test_pools.py::test_what_comes_by_tls_while_a_response_waits_is_nobodys_answer",
        ),
    ),
    "6 header injection": Row(
        "line ends and NULs in headers; names in Connection; underscores",
        (
            f"{WIRE}test_headers_of_a_client_add_no_others",
            f"{WIRE}test_targets_add_no_headers",
            f"{WIRE}test_headers_that_connection_names_do_not_cross",
            f"{WIRE}test_headers_of_a_backend_add_no_others",
            f"{ENDPOINTS}test_spellings_with_underscores_do_not_slip_through",
            "test_pools.py::test_what_would_be_another_request_is_not_sent",
        ),
    ),
    "7 path and host": Row(
        "targets that name another host, or climb",
        (
            f"{WIRE}test_no_target_chooses_the_host",
            f"{WIRE}test_paths_that_mean_something_else_elsewhere",
            f"{ENDPOINTS}test_unsafe_paths_are_refused",
            "test_routes.py::test_no_tunnel_is_asked_for",
            "test_upstream.py::test_the_host_is_always_the_bases",
        ),
    ),
    "8 administrative paths": Row(
        "routes of the engine's operator",
        (f"{ENDPOINTS}test_administrative_paths_are_not_there", f"{WIRE}test_no_fragment_reaches_the_backend"),
    ),
    "9 spoofed addresses": Row(
        "X-Forwarded-For, and addresses of one /64",
        (f"{CONFIGURATION}test_trusted_proxies", "test_guards.py::test_what_counts_as_one_client"),
    ),
    "10 tables that grow": Row(
        "addresses, ids and paths by the million",
        (
            f"{RESOURCES}test_a_million_addresses",
            f"{RESOURCES}test_metrics_do_not_grow_with_what_clients_choose",
            "test_cache.py::test_the_oldest_entry_goes_first_and_takes_its_ids_with_it",
        ),
        NO_SERVER,
    ),
    "11 tokens": Row(
        "none, empty, two headers, not ASCII, a megabyte",
        (
            f"{RESOURCES}test_a_token_that_is_none",
            f"{WIRE}test_a_bad_token",
            f"{WIRE}test_a_token_of_a_megabyte",
            f"{ENDPOINTS}test_authorization_headers",
        ),
    ),
    "12 log leaks": Row(
        "canaries in every place, searched for in every form",
        (
            "test_leaks.py::test_logs_and_metrics_of_the_app",
            "test_leaks.py::test_output_of_the_process",
            "test_observe.py::test_nothing_but_known_words_is_left",
            "test_logs.py::test_records_of_others_are_written_in_known_words",
            "test_nvidia.py::test_failure_is_typed_and_the_next_call_works",
        ),
    ),
    "13 disk": Row(
        "plaintext in temporary files",
        (f"{PROCESS}test_nothing_is_written_to_disk",),
        ITS_OWN,
    ),
    "14 decompression": Row("a compressed bomb", (BACKEND, f"{RESPONSES}test_encoded_responses")),
    "15 JSON bombs": Row(
        "depth, keys, numbers, duplicates, two documents",
        (
            f"{RESOURCES}test_a_request_that_is_expensive_to_decode",
            f"{RESOURCES}test_a_request_that_is_expensive_to_refuse",
            f"{RESOURCES}test_a_response_that_is_expensive_to_decode",
            "test_bodies.py::test_a_body_with_more_objects_than_a_conversation_stays",
        ),
        NO_SERVER,
    ),
    "16 event-stream quirks": Row(
        "whatever the HTML standard allows",
        ("test_sse.py::test_any_stream_reads_as_the_html_standard_says",),
        NO_SERVER,
    ),
    "17 nonces": Row(
        "length, alphabet, repeats, a megabyte; quote and evidence for the same one",
        (
            f"{ATTESTATION}test_a_hundred_callers_get_their_own_nonces",
            f"{ATTESTATION}test_bad_nonces",
            f"{WIRE}test_a_nonce_of_a_megabyte",
            f"{ATTESTATION}test_repeated_nonces",
            "test_contract_attestation.py::test_a_crowd_with_nonces",
        ),
    ),
    "18 development keys": Row(
        "DEV, GPU_NO_HW_MODE or a simulator in production",
        (
            f"{CONFIGURATION}test_development_mode_is_said_aloud",
            f"{CONFIGURATION}test_canned_evidence_is_said_aloud",
            f"{CONFIGURATION}test_a_simulator_is_said_aloud",
            "test_attestation.py::test_a_report_says_if_any_part_is_simulated",
            "test_choice_of_sources.py::test_quotes_of_a_simulator_are_marked",
            "test_attested_server.py::test_a_report_about_a_random_key_is_marked",
        ),
    ),
    "19 authentication first": Row(
        "a bad token with an endless body",
        (f"{CLIENT}test_a_bad_token_with_an_endless_body", f"{CLIENT}test_a_bad_token_before_any_body"),
    ),
    "20 signatures for other texts": Row(
        "one bit changed",
        (
            "test_signing.py::test_no_bit_of_an_ecdsa_signature_can_be_changed",
            "test_signing.py::test_no_bit_of_the_text_can_be_changed_under_an_ecdsa_signature",
            "test_signing.py::test_no_bit_of_an_ed25519_signature_can_be_changed",
            "test_signing.py::test_no_bit_of_the_text_can_be_changed_under_an_ed25519_signature",
            "test_signing.py::test_the_twin_with_a_high_s_is_refused",
            "test_verify.py::test_an_answer_with_one_value_changed_does_not_verify",
            "test_verify.py::test_a_genuine_exchange_verifies",
        ),
        NO_SERVER,
    ),
    "collateral of anybody's": Row(
        "Intel's word about a machine is signed with the key of a machine",
        (
            "test_verify_report.py::test_who_signed_the_collateral_is_said",
            "test_verify_report.py::test_collateral_that_another_key_of_intels_has_signed_is_refused",
        ),
        FAR_END,
    ),
    "an answer without end": Row(
        "a server sends its head, its trailers or its body for ever, a little at a time",
        (
            "test_client.py::test_trouble_is_told_apart_from_failed_checks",
            "test_client.py::test_trouble_is_the_same_asynchronously",
            "test_client.py::test_a_connection_that_is_used_again_is_limited_as_well",
            "test_client.py::test_what_was_given_up_is_not_asked_again",
            "test_verifying_transport.py::test_a_server_cannot_keep_those_who_wait_for_its_attestation",
            "test_verify_command.py::test_a_server_cannot_keep_the_command",
        ),
        FAR_END,
    ),
    "another's connection": Row(
        "a connection ends elsewhere than in the attested machine, also through a tunnel and under another name",
        (
            "test_verifying_transport.py::test_no_prompt_goes_to_another_tls_key",
            "test_verifying_transport.py::test_no_prompt_goes_through_a_tunnel_to_another_tls_key",
            "test_verifying_transport.py::test_no_prompt_follows_a_report_that_failed",
        ),
        FAR_END,
    ),
    "large bodies": Row(
        "what is large, or comes in tiny pieces, is kept, takes a multiple of its size, or holds up others",
        (
            "test_bodies.py::test_nothing_of_a_body_that_is_refused_is_kept",
            "test_attestor.py::test_nothing_of_a_failed_collection_is_kept",
            f"{RESOURCES}test_a_request_of_halves_of_pairs",
            "test_http.py::test_a_body_in_tiny_pieces_takes_its_size",
            "test_exchange.py::test_a_json_object_in_tiny_pieces_takes_little_memory",
            "test_sse.py::test_an_event_in_tiny_pieces_takes_little_memory",
            f"{RESPONSES}test_others_are_served_while_a_large_answer_is_finished",
        ),
    ),
    "another's answer": Row(
        "an answer to another request, or one of nobody's, passes for the one that was asked for",
        (
            "test_exchange.py::test_a_target_that_could_be_a_body_is_refused",
            "test_observed.py::test_an_answer_to_nothing_of_a_request_is_refused",
            "test_verifying_transport.py::test_the_answer_to_a_request_that_was_not_sent_does_not_verify",
            "test_verifying_transport.py::test_a_redirect_does_not_lead_around_the_check",
            "test_verifying_transport.py::test_no_charset_hides_an_end",
            "test_verifying_transport.py::test_no_other_protocol_is_handed_out",
        ),
        FAR_END,
    ),
}
