//! Standard output. A reader that goes away ends the program quietly.

use std::io::{ErrorKind, Write};

use serde::Serialize;

use crate::failure::Failure;

/// Code of a program that nobody reads any more, as a shell reports it for SIGPIPE.
const BROKEN_PIPE: u8 = 141;

/// Prints text as it is.
pub fn text(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|e| match e.kind() {
        ErrorKind::BrokenPipe => Failure::Told(BROKEN_PIPE),
        _ => Failure::new(format!("cannot write to standard output: {e}")),
    })
}

/// Prints a line.
pub fn line(line: &str) -> Result<(), Failure> {
    text(&format!("{line}\n"))
}

/// Prints a value as indented JSON.
pub fn json(value: &impl Serialize) -> Result<(), Failure> {
    line(&serde_json::to_string_pretty(value)?)
}
