//! Stores of prepared inferences: through the program as a user meets it, and through two hundred kills.

// Helpers of tests, which the lint does not count as tests.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used)]

mod commands;
#[cfg(unix)]
mod kills;
mod program;
