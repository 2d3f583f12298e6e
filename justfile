# `just` lists what there is; each line is what CI or a person types anyway.

default:
    @just --list

# Format, lint and licences: seconds after the first build.
check:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets -- -D warnings
    cargo deny check licenses bans sources

# All tests; arguments go to cargo: `just test --test faults`.
test *ARGS:
    cargo test --workspace {{ARGS}}

# Every test, with what they need installed: on Debian, as root or by sudo.
test-all *ARGS:
    tests/all.sh {{ARGS}}

# The golden losses again, after a change that is meant to change numbers.
golden:
    SAE_GOLDEN=write cargo test --workspace --test end_to_end golden

# Kill a run at random moments and resume it, KILLS times.
soak KILLS="100":
    cargo run --package tests --bin soak -- --kills {{KILLS}}

# The first run of every user.
quickstart:
    cargo run --release -- train launch/recipes/quickstart.toml

# What CI does, from an empty machine on.
ci:
    .ci/run
