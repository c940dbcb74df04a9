//! The report of a run: the form of `--report` and `--json`.
//!
//! Up is client to server. Bytes are those written to the channel, framing included. Seconds are wall time. A field that
//! this process cannot know is null.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A run: one model, one session's settings, any number of inputs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Release of this program.
    pub version: String,
    /// The model's name.
    pub model: String,
    /// Digest of the model's manifest, hexadecimal.
    pub digest: String,
    /// Where this process computes.
    pub backend: BackendReport,
    /// Threads of the CPU.
    pub threads: usize,
    /// The link that the channel was shaped to, or how the parties were connected.
    pub link: String,
    /// How garbled tables were kept: `spooled`, `interleaved` or `kept` (made in an earlier run).
    pub tables: String,
    /// Gauges of this machine.
    pub calibration: Calibration,
    /// One entry an input, in their order.
    pub inputs: Vec<InputReport>,
    /// Connecting, manifest and keys, of all connections; in neither phase.
    pub setup: PhaseTotals,
    /// Offline phases, summed over the inputs.
    pub offline: PhaseTotals,
    /// Online phases, summed over the inputs.
    pub online: PhaseTotals,
    /// What was predicted of the inputs before they ran.
    #[serde(default)]
    pub predicted: Predicted,
    /// Steps of the client's lanes, summed over the inputs, in the order of their first occurrence.
    pub phases: Vec<StepReport>,
    /// Engine operations that this process ran.
    pub ops: Vec<OpReport>,
    /// How non-linear layers were evaluated.
    #[serde(default)]
    pub nonlinear: NonlinearReport,
    /// Garbled circuits.
    pub garbled: GarbledReport,
    /// Homomorphic encryption.
    pub he: HeReport,
    /// Oblivious transfers.
    pub ot: OtReport,
    /// Busy time of the lanes that this process sees in the offline phases, over the wall time they cover: above 1 where work
    /// overlapped.
    pub overlap: f64,
    /// The same for each lane and for each resource that tasks of the HE lane ran on (`server device`, `server cpu`): the part
    /// of the wall time in which it was busy.
    #[serde(default)]
    pub busy: BTreeMap<String, f64>,
    /// Bytes of garbled tables written to disk.
    pub spool_bytes: u64,
    /// Largest resident memory of this process (in `local`: of both parties together).
    pub peak_rss_bytes: Option<u64>,
    /// What each side, and who listens on the line, learns.
    pub reveals: Vec<String>,
    /// `log2` of a bound on the statistical distance, over all inputs, between the noise that the client decrypts and noise
    /// that does not depend on the server's weights.
    pub statistical_distance_log2: Option<f64>,
    /// What a reader should know besides: cut texts, worst-case settings, reconnections.
    pub notices: Vec<String>,
}

/// Where the homomorphic part is computed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendReport {
    /// `cpu`, `gpu` or `dual`.
    pub kind: String,
    /// CPU model or adapter.
    pub adapter: String,
    /// Driver and version; empty on the CPU.
    pub driver: String,
    /// Product form of the kernels.
    pub form: String,
    /// Why this one.
    pub reason: String,
}

/// Gauges of the machine, measured at the start.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// AES blocks a second on one thread.
    pub aes_blocks_per_s: f64,
    /// Microseconds for the transform of one limb of one polynomial of the protocol's ring, in a batch on the backend.
    pub ntt_us: f64,
}

/// One input.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InputReport {
    /// The text.
    pub text: String,
    /// The second text of a pair.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text_pair: Option<String>,
    /// Real tokens.
    pub tokens: Option<usize>,
    /// Public length.
    pub bucket: Option<usize>,
    /// The label, if the model gives one to a text.
    pub label: Option<String>,
    /// Its probability.
    pub score: Option<f64>,
    /// Token, label and probability, if the model labels tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_labels: Option<Vec<(String, String, f64)>>,
    /// Private outputs, row by row.
    pub outputs: Option<Vec<f64>>,
    /// The oracle's outputs.
    pub oracle_outputs: Option<Vec<f64>>,
    /// The floating-point model's outputs.
    pub float_outputs: Option<Vec<f64>>,
    /// Whether private outputs and oracle are the same ring values, as they are where every layer is garbled.
    pub oracle_equal: Option<bool>,
    /// Largest difference of a private output from the oracle's.
    #[serde(default)]
    pub oracle_difference: Option<f64>,
    /// What failed.
    pub error: Option<String>,
    /// Its offline phase.
    pub offline: Option<PhaseTotals>,
    /// Its online phase.
    pub online: Option<PhaseTotals>,
}

/// Cost of a phase.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PhaseTotals {
    /// Wall time.
    pub seconds: f64,
    /// Client to server.
    pub bytes_up: u64,
    /// Server to client.
    pub bytes_down: u64,
    /// Turns from up to down along the longest chain.
    pub rounds: u64,
}

impl std::ops::AddAssign for PhaseTotals {
    fn add_assign(&mut self, other: Self) {
        self.seconds += other.seconds;
        self.bytes_up += other.bytes_up;
        self.bytes_down += other.bytes_down;
        self.rounds += other.rounds;
    }
}

/// Costs of an inference, known before it runs. Bytes, products, key switches, gates and OTs are exact; rounds and seconds are
/// estimates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Predicted {
    /// The offline phase.
    pub offline: PhaseTotals,
    /// The online phase.
    pub online: PhaseTotals,
    /// Plaintext-ciphertext products of the server.
    pub products: u64,
    /// Key switches of the server.
    pub key_switches: u64,
    /// AND gates.
    pub and_gates: u64,
    /// OTs, both directions.
    pub ots: u64,
}

impl std::ops::AddAssign for Predicted {
    fn add_assign(&mut self, other: Self) {
        self.offline += other.offline;
        self.online += other.online;
        self.products += other.products;
        self.key_switches += other.key_switches;
        self.and_gates += other.and_gates;
        self.ots += other.ots;
    }
}

/// One step of a lane.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepReport {
    /// `setup`, `offline` or `online`.
    pub phase: String,
    /// Node of the graph, or what else was done.
    pub name: String,
    /// Encoder layer.
    pub layer: Option<usize>,
    /// `setup`, `he`, `ot` or `online`.
    pub lane: String,
    /// The client's wall time in this step, waiting included.
    pub seconds: f64,
    /// The part of it in which the client waited for the server or for another lane.
    pub waiting_seconds: f64,
    /// The server's busy time in this step, where both parties run here.
    pub server_seconds: Option<f64>,
    /// Payload bytes.
    pub bytes_up: u64,
    /// Payload bytes.
    pub bytes_down: u64,
}

/// How often an engine operation ran.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpReport {
    /// Operation.
    pub name: String,
    /// Runs on the GPU.
    pub gpu: u64,
    /// Runs on the CPU.
    pub cpu: u64,
    /// Runs on both with equal results.
    pub compared: u64,
}

/// How non-linear layers were evaluated.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NonlinearReport {
    /// By bucket: `garbled`, `shared`, or which kinds of layers are which.
    pub methods: BTreeMap<usize, String>,
    /// Why, where it was left to the program.
    pub reasons: Vec<String>,
    /// Elements of layers that were evaluated on shares.
    pub shared_elements: u64,
    /// Bytes of their messages, both ways, the making of their OTs apart.
    pub shared_bytes: u64,
}

/// Garbled circuits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GarbledReport {
    /// AND gates.
    pub and_gates: u64,
    /// Bytes of tables.
    pub bytes: u64,
}

/// Homomorphic work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeReport {
    /// Plaintext-ciphertext products of the server: counted, or planned where it is another process.
    pub products: u64,
    /// Key switches of the server, likewise.
    pub key_switches: u64,
    /// Transforms of one limb in this process.
    pub ntts: u64,
    /// Ciphertexts that the client encrypted.
    pub ciphertexts_up: u64,
    /// Ciphertexts that it decrypted.
    pub ciphertexts_down: u64,
    /// The server's work of the offline phases.
    #[serde(default)]
    pub offline: HePhaseReport,
    /// Of the online phases.
    #[serde(default)]
    pub online: HePhaseReport,
}

/// The server's homomorphic work of a phase: counted, or planned where it is another process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HePhaseReport {
    /// Key switches, each of which rotates or packs.
    pub rotations: u64,
    /// Plaintext-ciphertext products.
    pub products: u64,
    /// Products of a ciphertext and an integer, terms of matrix products with integers.
    pub scalar_products: u64,
}

impl std::ops::AddAssign for HePhaseReport {
    fn add_assign(&mut self, other: Self) {
        self.rotations += other.rotations;
        self.products += other.products;
        self.scalar_products += other.scalar_products;
    }
}

/// Oblivious transfers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OtReport {
    /// Extended OTs, both directions.
    pub count: u64,
    /// How they were made, by bucket: `iknp` or `silent`.
    #[serde(default)]
    pub methods: BTreeMap<usize, String>,
}

impl Report {
    /// Whether every input has a result.
    pub fn succeeded(&self) -> bool {
        self.inputs.iter().all(|i| i.error.is_none())
    }
}
