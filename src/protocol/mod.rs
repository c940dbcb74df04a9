//! The two-party protocol: offline and online phases as state machines without I/O.
//!
//! A party runs three lanes for each inference: HE and OT offline, side by side, then the online lane. Each lane is a
//! [`Machine`] over typed [`Message`]s. What is kept between the phases is a correlation; the graph says what there is to
//! do, and a [`Plan`] says in which pieces. `ARCHITECTURE.md` describes the protocol, `SECURITY.md` what it hides.

mod choose;
mod classes;
mod correlation;
mod encryptor;
mod error;
mod estimate;
mod evaluator;
mod forecast;
mod he_plan;
mod machine;
mod message;
mod offline;
mod online;
mod operands;
mod packings;
mod plan;
mod sets;
mod settings;
mod shares;
#[cfg(test)]
mod small_model;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod transcript_tests;
mod weights;
mod wishes;

pub use choose::{Circumstances, Decision, Nonlinear, OtChoice};
pub use classes::{ClassPackings, LinearClass, LinearShape};
pub use correlation::{
    ChunkKey, ClientCorrelation, CotPools, GarblerSecrets, MemoryTables, SecretBlocks, ServerCorrelation, ServerExport,
    ServerLinear, ServerProduct, SessionId, TableStore,
};
pub use encryptor::Encryptor;
pub use error::{ProtocolError, Result};
pub use estimate::{Estimate, NodeSeconds};
pub use evaluator::Evaluator;
pub use forecast::{Flow, Forecast, NodeForecast};
pub use he_plan::{CrossTerm, Cut, HeCosts, HeInput, HeItem, HePhase, KEY_BLOCK};
pub use machine::{Machine, Turn, WorkSpan, drive_pair};
pub use message::{FRAME_PART, Message, pack_ring, unpack_ring};
pub use offline::{HeClient, HeServer, OtClient, OtServer};
pub use online::{OnlineClient, OnlineServer, bilinear};
pub use packings::PackingChoice;
pub use plan::{CotDemand, GarbledPlan, HeTurn, JOINT_MEMORY, OtPlan, Plan, ProductPlan, SharedPlan};
pub use sets::{KeySets, SetId};
pub use settings::{LayerKind, Layout, LinearMode, Method, Methods, OtMethod, PackingKind, ProductMode, Settings};
pub use shares::{ClientLinear, MaskSeed, PackedShare, SecretVec, ShareBoard, ShareSource, row_sums, shifted};
pub use weights::OnlineWeights;
pub use wishes::{Merge, Wishes};

use crate::{
    he::{MATMUL_8192, ParameterSet},
    model::NodeId,
    mpc::{block::Block, garble::half_gates::GateKey},
};

/// The parameter set of all homomorphic work.
pub fn parameter_set() -> Result<ParameterSet> {
    Ok(ParameterSet::new(MATMUL_8192)?)
}

/// The hash key of a chunk of garbled gates: public, and different for every session, node and instance.
fn gate_key(session: &SessionId, node: NodeId, first_instance: usize) -> GateKey {
    GateKey { session: Block::from_bytes(*session), node: node.0 as u32, first_instance: first_instance as u64 }
}
