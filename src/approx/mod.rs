//! Training: fine-tuning of a checkpoint, and its approximation by additions, multiplications and ReLU.
//!
//! The approximation is THE-X (T. Chen et al., Findings of ACL 2022): the pooler is dropped, GELU becomes ReLU, softmax becomes
//! [an estimator](ops::Attention), and at last every LayerNorm becomes an affine map. The stages are in [`Stage`]; beyond the
//! paper, every stage is also taught by the model that the run started from, by its outputs and its hidden states.
//!
//! [`run()`] takes a run from its start, or from where it stopped, to a checkpoint folder. [`Bert`] is the model that is trained;
//! the tensor library keeps the gradients, [`ops`] are its operations.

mod batch;
mod bert;
mod error;
mod estimator;
mod evaluate;
mod export;
mod loss;
mod normalise;
pub mod ops;
mod optimiser;
mod report;
mod run;
mod solve;
mod stages;
mod state;

pub use batch::{Batch, Examples, Task};
pub use bert::{Bert, Form, FormActivation, Outcome, Parameter, Part, Pass};
pub use error::ApproxError;
pub use evaluate::{EdgeRange, EstimatorReport, Metric, Score, score};
pub use report::{RunReport, StageReport};
pub use run::{End, Progress, REPORT_FILE, Settings, run};
pub use stages::Stage;
pub use state::{FILE as UNFINISHED_FILE, Position};
