//! The harness that measures Heliostat's compute engine, GPU beside CPU, and checks every result in the same run.
//!
//! | file | subject |
//! |---|---|
//! | `args` | the command line |
//! | `kernels`, `suite` | what is measured, at which sizes |
//! | `operands`, `reference/` | inputs, and results computed apart from the engine |
//! | `devices`, `ceilings` | where it runs, and how fast that machine can be at all |
//! | `cost` | bytes and multiplies that a kernel cannot do without |
//! | `stats`, `measure` | alternatives timed in turn, as rows |
//! | `yardsticks/` | libraries called directly: NTTs, a matrix product |
//! | `composed/` | rotation, product, encrypted matrix products, BERT-base |
//! | `garbling` | garbling and evaluating a GELU layer, beside AES alone |
//! | `bars` | measured ratios against what was set as a bar |
//! | `audit` | what a kernel does, counted in its source |
//! | `report/` | table, JSON, HTML and SVG; files that are whole or absent |
//! | `compare` | two reports side by side |
//! | `run` | all of it in order |

pub mod args;
pub mod audit;
pub mod bars;
pub mod ceilings;
pub mod compare;
pub mod composed;
pub mod cost;
pub mod devices;
pub mod garbling;
pub mod kernels;
pub mod measure;
pub mod operands;
pub mod reference;
pub mod report;
pub mod run;
pub mod stats;
pub mod suite;
pub mod yardsticks;

/// An error for reading: one sentence.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// A result with such an error.
pub type Result<T, E = Error> = std::result::Result<T, E>;
