#!/bin/sh
# The long forms of tests that have a short one in `make test`: a line for each run, with its name, how it ended, how
# long it took, and what it counted. Runs can be named; without a name, all are made.
#
# PEELFS_SOAK_SECONDS shortens those that go by time: 30 minutes of `readers`, 10 of `two-processes`.
set -u
cd "$(dirname "$0")/.."
cargo=${CARGO:-cargo}
wanted=" $* "
logs=$(mktemp -d)
failed=0

# NAME TEST-FILE TEST [VARIABLE=VALUE]...
run() {
    name=$1 file=$2 test=$3
    shift 3
    case $wanted in
        "  " | *" $name "*) ;;
        *) return ;;
    esac
    log=$logs/$name.log
    # What is built is built before the time is taken.
    "$cargo" test --quiet --locked --release --test "$file" --no-run || exit 1
    began=$(date +%s)
    if env "$@" "$cargo" test --quiet --locked --release --test "$file" -- \
        --exact --include-ignored --nocapture "$test" >"$log" 2>&1; then
        ended=ok
    else
        ended=FAILED
        failed=1
    fi
    # A name that is no test's runs nothing, and that is no success.
    grep -q '^test result: .* 0 passed' "$log" && ended=FAILED failed=1
    counted=$(sed -n 's/^test .* \.\.\. //; /^running \|^test result\|^$\|^ok$\|^\.$\|has been running for over/!p' "$log" | paste -s -d '|' | sed 's/|/; /g')
    printf '%-14s %-6s %5d s  %s\n' "$name" "$ended" "$(($(date +%s) - began))" "$counted"
    [ $ended = ok ] || echo "               see $log"
}

run kills life takeover::readers_notice_nothing_of_a_killed_server PEELFS_KILLS=1000
run upgrades life takeover::an_upgrade_exchanges_the_server_under_load PEELFS_UPGRADES=100
run passed-through mount passthrough::passed_through_reads_outlive_killed_servers_and_upgrades PEELFS_KILLS=150
run interrupts cli interrupt::interrupted_readers_of_content_that_does_not_come_end PEELFS_ROUNDS=42
run interrupts-2 cli interrupt::interrupted_lookups_in_a_layer_that_does_not_come_end PEELFS_ROUNDS=42
run seeds simulation every_seed_shows_what_the_model_says_or_why_it_cannot PEELFS_SEEDS=1000
run crashes life crash::a_cache_is_whole_after_every_crash_in_the_long_run
run random-kills life killed::a_process_killed_under_load_leaves_a_cache_that_is_whole PEELFS_KILLS=1000
run blob-flips hostile verification::row_12_no_wrong_byte_of_a_blob_is_shown_in_the_long_run
run cache-flips hostile machine::row_22_no_flipped_bit_of_the_cache_is_shown_in_the_long_run
run cache-attacks hostile machine::row_22_files_changed_under_a_reader_in_the_long_run
run evictions life damaged_cache::evicted_content_is_never_shown_as_a_hole_in_the_long_run
run hanging life soak::cached_reads_go_on_while_many_readers_hang_in_the_long_run
run two-processes life soak::two_processes_on_a_small_cache_in_the_long_run
run snapshotter life containerd::a_killed_snapshotter_disturbs_no_container PEELFS_KILLS=50
run readers life soak::many_readers_of_many_images_on_a_small_cache_in_the_long_run

[ $failed -eq 0 ] && rm -r "$logs"
exit $failed
