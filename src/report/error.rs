//! What can go wrong around a run, one sentence each.

use std::path::PathBuf;

use thiserror::Error;

use crate::{
    engine::EngineError,
    model::ModelError,
    net::{NetError, session::SessionError},
    protocol::ProtocolError,
};

/// Why a run, or one input of it, failed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ReportError {
    /// The model or a text.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The session between the parties.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// The connection.
    #[error(transparent)]
    Net(#[from] NetError),
    /// The backend.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The protocol's tables or correlations.
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    /// A file of texts cannot be used.
    #[error("input file {}: {reason}", path.display())]
    Inputs {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A task that the model or the data do not have.
    #[error("{reason}")]
    Task {
        /// What is wrong.
        reason: String,
    },
    /// A file cannot be written.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The oracle's run of this text does not fit the rings.
    #[error(
        "{count} values overflow their rings ({edges}), so that the result means nothing: calibrate with texts like this"
    )]
    Overflow {
        /// Values on all edges.
        count: u64,
        /// Names of the edges.
        edges: String,
    },
    /// Narrowed rings lose more than allowed.
    #[error(
        "with narrowed rings {points:.3} points of {of} are lost over {rows} rows, more than the {limit} of --max-loss ({widest:.3} \
         with the widest rings), so that nothing was written: give more texts, more --headroom-bits or a larger --max-loss"
    )]
    Loss {
        /// Points lost.
        points: f64,
        /// Of which figure.
        of: String,
        /// Rows that show it.
        rows: usize,
        /// Points allowed.
        limit: f64,
        /// Points lost before narrowing.
        widest: f64,
    },
    /// The private result is not the oracle's.
    #[error("the private output differs from the oracle's in {differing} of {values} values: please report this")]
    Differs {
        /// Values that differ.
        differing: usize,
        /// Values in all.
        values: usize,
    },
    /// The private result is too far from the oracle's.
    #[error(
        "the private output is {difference:.4} from the oracle's, more than layers on shares explain: please report this"
    )]
    Far {
        /// Largest difference of a value.
        difference: f64,
    },
    /// A digest is not 64 hexadecimal digits.
    #[error("`{given}` is no model digest: write the 64 hexadecimal digits that `heliostat serve` prints")]
    BadDigest {
        /// The text as given.
        given: String,
    },
}
