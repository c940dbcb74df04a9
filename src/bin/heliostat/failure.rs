//! How the program ends when something is wrong: one sentence on stderr and a code that is not zero.

use std::{fmt::Display, process::ExitCode};

use heliostat::report::file;

/// Why the program ends early.
pub enum Failure {
    /// One sentence for the user.
    Sentence(String),
    /// The user knows already; the exit code.
    Told(u8),
}

impl<E: std::error::Error> From<E> for Failure {
    fn from(e: E) -> Self {
        Self::Sentence(e.to_string())
    }
}

impl Failure {
    /// A failure with this sentence.
    pub fn new(sentence: impl Display) -> Self {
        Self::Sentence(sentence.to_string())
    }

    /// Prints what there is to print.
    pub fn report(self) -> ExitCode {
        match self {
            Self::Sentence(sentence) => {
                complain(&sentence);
                ExitCode::FAILURE
            }
            Self::Told(code) => ExitCode::from(code),
        }
    }
}

/// One line on stderr; whether anybody reads it does not matter.
pub fn complain(sentence: &str) {
    // A sentence from a library may have line breaks.
    let line: Vec<&str> = sentence.split_whitespace().collect();
    let _ = std::io::Write::write_all(&mut std::io::stderr(), format!("heliostat: {}\n", line.join(" ")).as_bytes());
}

/// Help and version go to standard output; anything else about the command line is one sentence.
pub fn usage(e: &clap::Error) -> ExitCode {
    if !e.use_stderr() {
        // A reader that has gone is no reason to complain.
        let _ = e.print();
        return ExitCode::SUCCESS;
    }
    let text = e.render().to_string();
    if e.kind() == clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        if text.contains("Usage: heliostat store") {
            complain("say what to do with the store: ls, verify or prune; `heliostat store --help` explains them");
            return ExitCode::from(2);
        }
        complain(
            "say what to do: demo, local, serve, infer, plan, offline, store, oracle, accuracy, calibrate, finetune, approximate, synth or doctor; `heliostat --help` explains \
             them",
        );
        return ExitCode::from(2);
    }
    let end = ["\n\nUsage:", "\n\nFor more information"].iter().filter_map(|mark| text.find(mark)).min();
    let sentence = &text[..end.unwrap_or(text.len())];
    complain(&format!("{}; `heliostat --help` lists what there is", sentence.trim_start_matches("error: ").trim_end()));
    ExitCode::from(2)
}

/// Panics are defects: they are told in one sentence, without a backtrace.
pub fn quiet_panics() {
    std::panic::set_hook(Box::new(|info| {
        let place = info.location().map(|l| format!(" ({}:{})", l.file(), l.line())).unwrap_or_default();
        let message = info.payload_as_str().unwrap_or("no message");
        complain(&format!("internal error{place}, please report it: {message}"));
    }));
}

/// Ctrl-C ends the program with code 130, after any file that is being written. `leaves` says what stays behind: spool files
/// have no name, so that it is nothing but in a store.
pub fn exit_on_interrupt(leaves: &'static str) -> Result<(), Failure> {
    ctrlc::set_handler(move || {
        let _nothing_half_written = file::pause();
        complain(&format!("interrupted; {leaves}"));
        std::process::exit(130);
    })
    .map_err(|e| Failure::new(format!("cannot handle Ctrl-C: {e}")))
}
