//! Runs inferences over inputs and accounts for them: what a user reads, and the JSON report.
//!
//! [`inputs`] reads texts, [`run`] takes them one after another through a session and compares with the oracle where the
//! model is at hand, [`fields`] is the report, [`mod@print`] its form for people; [`plan`] says beforehand what it will be. [`local`] and [`remote`] make the sessions:
//! both parties in this process, or the client's half against a server. [`measure`] gauges the machine, [`mod@file`] writes
//! files whole or not at all.
//!
//! [`accuracy`] compares the fixed-point model with the floating-point one over a labelled file, which [`dataset`] reads, by
//! the figures of [`metrics`]; [`gate`] calibrates with it.

pub mod ablation;
pub mod accuracy;
pub mod dataset;
pub mod fields;
pub mod file;
pub mod gate;
pub mod inputs;
pub mod local;
pub mod measure;
pub mod metrics;
pub mod plan;
pub mod print;
pub mod remote;
pub mod run;

mod error;

pub use error::ReportError;
pub use fields::Report;
pub use run::{RunOptions, Runner};
