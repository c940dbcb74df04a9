//! Packings of matrices into ciphertexts behind one trait, and the counts that a planner reads.
//!
//! | packing | ring of shares | one product of `n x d` and `d x d'` costs, N the ring dimension, M = N/n |
//! |---|---|---|
//! | [`BatchColumnPacking`] | any | `d d'` products of ciphertexts and integers for all N rows; no key switch |
//! | [`SlotPacking`] | prime, 1 mod 2N | `d d' n / N` products, `(d + d') / M` times about `sqrt(M)` key switches |
//! | [`CoefficientPacking`] | any | `d d' n / N` products, up to `d' n` key switches |

mod batch_column;
mod coefficient;
mod respond;
mod tokens_first;

pub use batch_column::BatchColumnPacking;
pub use coefficient::{
    ClientMatrix, CoefficientLayout, CoefficientPacking, CostWeights, DeviceInput, EncryptedMatrix, InputLayout,
    MatmulSpec, Operand, OperandBound, Product,
};
pub use tokens_first::{SlotEncoder, SlotMethod, SlotPacking};

use std::sync::Arc;

use crate::{
    arith::sample::SecureRng,
    engine::schedule::{TaskGraph, TaskId, run},
    he::{HeClient, HeError, HeServer, ParameterSet, Response, ResponsePlan, Result, SeededCiphertexts},
};

/// What one encrypted matrix product costs, exactly: counted by the same code paths that the predictions describe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, serde::Serialize)]
pub struct Counts {
    /// Plaintext-ciphertext products of the server.
    pub products: u64,
    /// Integer-ciphertext products of the server: terms of a modular matrix product.
    pub scalar_products: u64,
    /// Key switches of the server.
    pub key_switches: u64,
    /// The server's transforms of one limb of one polynomial, those of key switches included.
    pub server_ntts: u64,
    /// The client's, encryption and decryption.
    pub client_ntts: u64,
    /// Ciphertexts to the server.
    pub ciphertexts_up: u64,
    /// Ciphertexts to the client.
    pub ciphertexts_down: u64,
    /// Bytes to the server.
    pub bytes_up: u64,
    /// Bytes to the client.
    pub bytes_down: u64,
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.products += other.products;
        self.scalar_products += other.scalar_products;
        self.key_switches += other.key_switches;
        self.server_ntts += other.server_ntts;
        self.client_ntts += other.client_ntts;
        self.ciphertexts_up += other.ciphertexts_up;
        self.ciphertexts_down += other.ciphertexts_down;
        self.bytes_up += other.bytes_up;
        self.bytes_down += other.bytes_down;
    }
}

/// A way to lay a matrix product out in ciphertexts, planned for one product: per head `sum_k X_k W_k`, X encrypted.
///
/// Both parties derive the plan from public numbers. In the order of use:
///
/// | client | server |
/// |---|---|
/// | [`Self::rotation_elements`]: its switching keys | |
/// | [`Self::encrypt_input`], [`Self::read_input`] over there | [`Self::load_input`], once for all products that read it |
/// | | [`Self::prepare_weights`], once for all inferences |
/// | | [`Self::multiply_prepared`], or [`Self::add`] to a graph of tasks |
/// | [`Self::decrypt_output`] | [`Self::write_output`], [`Self::read_output`] over there |
pub trait Packing: Send + Sync {
    /// Name in plans and reports.
    fn name(&self) -> &'static str;

    /// What the product will cost.
    fn counts(&self) -> Counts;

    /// The product.
    fn spec(&self) -> &MatmulSpec;

    /// Noise and cut of the response.
    fn response_plan(&self) -> &ResponsePlan;

    /// Galois elements whose switching keys the server needs ([`HeClient::galois_keys_for`]); none where there is no key switch.
    fn rotation_elements(&self) -> Vec<usize>;

    /// Ciphertexts of summed input number `index`; 0 if there is none.
    fn input_ciphertexts(&self, index: usize) -> usize;

    /// Bytes of summed input number `index` as it is sent; `None` on overflow.
    fn input_bytes(&self, params: &ParameterSet, index: usize) -> Option<usize> {
        SeededCiphertexts::byte_len(params, self.input_ciphertexts(index))
    }

    /// Coefficients of c0 that are sent, of all response ciphertexts together.
    fn kept_coefficients(&self) -> usize;

    /// Encrypts summed input number `index`, `[heads][rows][inner]` residues modulo t.
    ///
    /// # Errors
    /// If `x` does not have these sizes or the device fails.
    fn encrypt_input(
        &self,
        client: &HeClient,
        index: usize,
        x: &[u64],
        rng: &mut SecureRng,
    ) -> Result<SeededCiphertexts>;

    /// Brings an encrypted input onto the server's device, or gets it ready to come piece by piece where it is too large.
    ///
    /// # Errors
    /// If it does not have the number of ciphertexts that was planned, or the device fails.
    fn load_input(&self, server: &HeServer, index: usize, input: Arc<SeededCiphertexts>) -> Result<LoadedInput>;

    /// Gets the plaintext operands ready, `[heads][inner_k][cols]` integers for every summed input, within the planned bound.
    ///
    /// # Errors
    /// If sizes or bound are broken, or the device fails.
    fn prepare_weights(&self, server: &HeServer, weights: &[&[i64]]) -> Result<PreparedWeights>;

    /// Adds the tasks of the product to `graph`, their names beginning with `name`. All generators are forked from `rng` here, so
    /// that results do not depend on when tasks run.
    ///
    /// # Errors
    /// If operands do not fit the plan or a switching key is missing.
    fn add<'a>(
        &self,
        graph: &mut TaskGraph<'a, HeError>,
        name: &str,
        server: &HeServer,
        inputs: &[LoadedInput],
        weights: &PreparedWeights,
        rng: &mut SecureRng,
    ) -> Result<PendingProduct>;

    /// Decrypts a response: `sum_k X_k W_k - Z` modulo t, `[heads][rows][cols]`, the client's share.
    ///
    /// # Errors
    /// If the response does not have this shape, or the device fails.
    fn decrypt_output(&self, client: &HeClient, response: &Response) -> Result<Vec<u64>>;

    /// The product at once: the response and Z, `[heads][rows][cols]` uniform modulo t, which must serve no other response.
    ///
    /// # Errors
    /// As [`Self::add`], and whatever the device reports.
    fn multiply_prepared(
        &self,
        server: &HeServer,
        inputs: &[LoadedInput],
        weights: &PreparedWeights,
        rng: &mut SecureRng,
    ) -> Result<(Response, Vec<u64>)> {
        let mut graph = TaskGraph::new();
        let product = self.add(&mut graph, self.name(), server, inputs, weights, rng)?;
        run(graph, server.context().capacity()).map_err(|e| e.into_source(|detail| HeError::Task { detail }))?;
        product.collect()
    }

    /// Reads summed input number `index`, as [`SeededCiphertexts::to_bytes`] writes it.
    ///
    /// # Errors
    /// If the length is not exactly right or a residue is not below its modulus.
    fn read_input(&self, params: &ParameterSet, index: usize, bytes: &[u8]) -> Result<SeededCiphertexts> {
        SeededCiphertexts::from_bytes(params, self.input_ciphertexts(index), bytes)
    }

    /// Reads a response of this product.
    ///
    /// # Errors
    /// If the length is not exactly right or a value is out of range.
    fn read_output(&self, params: &ParameterSet, bytes: &[u8]) -> Result<Response> {
        let packs = self.counts().ciphertexts_down as usize;
        Response::from_bytes(params, self.response_plan(), packs, self.kept_coefficients(), bytes)
    }

    /// Bytes of a response of this product, [`Counts::bytes_down`] of them.
    fn write_output(&self, response: &Response) -> Vec<u8> {
        response.to_bytes(self.response_plan())
    }
}

/// An encrypted input where its packing wants it. Clones share the memory.
#[derive(Clone)]
pub struct LoadedInput(Loaded);

#[derive(Clone)]
enum Loaded {
    Coefficient(DeviceInput),
    Columns(batch_column::Columns),
    Slots(tokens_first::SlotInput),
}

/// Plaintext operands as their packing wants them. Clones share the memory.
#[derive(Clone)]
pub struct PreparedWeights(Prepared);

#[derive(Clone)]
enum Prepared {
    Coefficient(Vec<Operand<'static>>),
    Columns(Arc<batch_column::Weights>),
    Slots(Arc<tokens_first::SlotWeights>),
}

/// A product whose tasks are in a graph.
pub struct PendingProduct(Box<dyn Pending>);

impl PendingProduct {
    /// The last task of every batch: what uses the result must wait for these.
    pub fn tasks(&self) -> Vec<TaskId> {
        self.0.tasks()
    }

    /// The response and Z, `[heads][rows][cols]`, once [`Self::tasks`] have run.
    ///
    /// # Errors
    /// If they have not.
    pub fn collect(&self) -> Result<(Response, Vec<u64>)> {
        self.0.collect()
    }
}

trait Pending: Send + Sync {
    fn tasks(&self) -> Vec<TaskId>;
    fn collect(&self) -> Result<(Response, Vec<u64>)>;
}

/// An operand that another packing made.
fn foreign(what: &str) -> HeError {
    HeError::shape("multiply", format!("{what} of another packing; load and prepare with the packing that multiplies"))
}

/// That the plaintext operands of a product have their sizes and bound.
fn check_weights(spec: &MatmulSpec, weights: &[&[i64]]) -> Result<()> {
    let fail = |detail: String| Err(HeError::shape("multiply", detail));
    if weights.len() != spec.inner.len() {
        return fail(format!("{} operands where {} were planned", weights.len(), spec.inner.len()));
    }
    let bound = spec.operand.max_abs(spec.t);
    for (weights, inner) in weights.iter().zip(&spec.inner) {
        let expected = spec.heads * inner * spec.cols;
        if weights.len() != expected {
            return fail(format!("{} weights where {expected} are needed", weights.len()));
        }
        if weights.iter().fold(0, |max, w| w.unsigned_abs().max(max)) > bound {
            return fail(format!("a weight exceeds its bound of {bound}"));
        }
    }
    Ok(())
}
