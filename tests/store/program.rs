//! The built program, a server of it, and what it prints.

use std::{
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use serde_json::Value;

const BIN: &str = env!("CARGO_BIN_EXE_heliostat");
/// Six tokens in BERT's vocabulary, so that the bucket is 8.
pub const TEXT: &str = "a very good film";
/// A process that says nothing for longer is stuck.
const STUCK: Duration = Duration::from_secs(300);

pub fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/bert-tiny-sst2")
}

pub fn command(args: &[&str]) -> Command {
    let mut command = Command::new(BIN);
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

pub fn run(args: &[&str]) -> Output {
    command(args).output().unwrap()
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

pub fn json(output: &Output) -> Value {
    assert!(output.status.success(), "{}", stderr(output));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Exactly one line, which holds `part`, and a code that says failure.
pub fn one_sentence(output: &Output, part: &str) {
    let text = stderr(output);
    assert!(!output.status.success(), "succeeded: {}", stdout(output));
    assert!(output.status.code().is_some(), "killed by a signal: {text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.starts_with("heliostat: ") && text.contains(part), "no {part:?} in: {text}");
    assert!(!text.contains("internal error"), "{text}");
}

/// A server on a free port; ends with the value.
pub struct Serving {
    child: Child,
    pub address: String,
}

impl Serving {
    pub fn start(more: &[&str]) -> Self {
        let model = model();
        let args = ["serve", "--model", model.to_str().unwrap(), "--listen", "127.0.0.1:0", "--backend", "cpu"];
        let mut child = command(&[&args, more].concat()).spawn().unwrap();
        let mut err = child.stderr.take().unwrap();
        thread::spawn(move || std::io::copy(&mut err, &mut std::io::sink()));
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let (found, address) = mpsc::channel();
        thread::spawn(move || {
            let mut line = String::new();
            while out.read_line(&mut line).is_ok_and(|n| n > 0) {
                if let Some(address) = line.strip_prefix("listening on ") {
                    let _ = found.send(address.trim().to_string());
                }
                line.clear();
            }
            let _ = out.read_to_string(&mut line);
        });
        let address = address.recv_timeout(STUCK).unwrap();
        Self { child, address }
    }

    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The client's command `name` against a server, with a cache of manifests in `home`.
pub fn client(home: &Path, name: &str, server: &str, more: &[&str]) -> Command {
    let mut client = command(&[&[name, "--connect", server, "--backend", "cpu"], more].concat());
    client.current_dir(home).env("XDG_CACHE_HOME", home.join("cache")).env("HOME", home);
    client
}
