//! The product from outside: the client encrypts and decrypts, the server multiplies, packs and responds.

use super::{
    CoefficientPacking, InputLayout,
    operand::{DeviceInput, Operand},
    product::Product,
};
use crate::{
    arith::{ShareModulus, sample::SecureRng},
    engine::schedule::{TaskGraph, run},
    he::{HeClient, HeError, HeServer, ParameterSet, Response, Result, SeededCiphertexts},
};

/// An encrypted operand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncryptedMatrix {
    layout: InputLayout,
    ciphertexts: SeededCiphertexts,
}

/// The client's operations on matrices.
pub trait ClientMatrix {
    /// Encrypts `x`, `[heads][rows][inner]` modulo `t`.
    fn encrypt_matrix(
        &self,
        t: ShareModulus,
        layout: &InputLayout,
        x: &[u64],
        rng: &mut SecureRng,
    ) -> Result<EncryptedMatrix>;

    /// Decrypts a response: `sum_k X_k W_k - Z` modulo `t`, `[heads][rows][cols]`, the client's share.
    fn decrypt_matrix(&self, packing: &CoefficientPacking, response: &Response) -> Result<Vec<u64>>;
}

impl ClientMatrix for HeClient {
    fn encrypt_matrix(
        &self,
        t: ShareModulus,
        layout: &InputLayout,
        x: &[u64],
        rng: &mut SecureRng,
    ) -> Result<EncryptedMatrix> {
        if layout.n != self.context().params().n() {
            return Err(HeError::shape("encrypt", format!("a layout for N = {} at another N", layout.n)));
        }
        let messages = zeroize::Zeroizing::new(layout.encode(t, x)?);
        Ok(EncryptedMatrix { layout: *layout, ciphertexts: self.encrypt_at(layout.limbs, t, &messages, rng)? })
    }

    fn decrypt_matrix(&self, packing: &CoefficientPacking, response: &Response) -> Result<Vec<u64>> {
        let places: Vec<_> = packing.packs.iter().map(|pack| packing.output.places(pack)).collect();
        let positions: Vec<Vec<u32>> = places.iter().map(|p| p.iter().map(|&(at, _)| at).collect()).collect();
        let values = self.decrypt(packing.spec.t, &packing.response, &positions, response)?;
        let mut out = vec![0; packing.outputs()];
        places.iter().flatten().zip(values).for_each(|(&(_, index), value)| out[index] = value);
        Ok(out)
    }
}

impl EncryptedMatrix {
    pub(super) fn new(layout: InputLayout, ciphertexts: SeededCiphertexts) -> Self {
        Self { layout, ciphertexts }
    }

    pub(super) fn into_ciphertexts(self) -> SeededCiphertexts {
        self.ciphertexts
    }

    /// The layout.
    pub fn layout(&self) -> &InputLayout {
        &self.layout
    }

    /// The ciphertexts, `[heads][blocks]`.
    pub fn ciphertexts(&self) -> &SeededCiphertexts {
        &self.ciphertexts
    }

    /// The ciphertexts as [`SeededCiphertexts::to_bytes`] writes them; the layout is known to both sides.
    pub fn to_bytes(&self, params: &ParameterSet) -> Vec<u8> {
        self.ciphertexts.to_bytes(params)
    }

    /// Reads an operand of a known layout.
    ///
    /// # Errors
    /// If the length is not exactly right or a residue is not below its modulus.
    pub fn from_bytes(params: &ParameterSet, layout: &InputLayout, bytes: &[u8]) -> Result<Self> {
        layout.check()?;
        let params = &params.at_level(layout.limbs)?;
        let ciphertexts = SeededCiphertexts::from_bytes(params, layout.ciphertexts(), bytes)?;
        Ok(Self { layout: *layout, ciphertexts })
    }
}

impl CoefficientPacking {
    /// The server's product: `inputs[k]` is an encrypted operand and its plaintext matrix, `[heads][inner_k][cols]` of integers
    /// within the planned bound.
    ///
    /// Returns the response and Z, `[heads][rows][cols]` uniform modulo t: the client's share is the product minus Z. Z must
    /// serve no other response.
    ///
    /// Runs as a graph of tasks: sampling and cutting of one batch beside the device's work on another. The result depends
    /// on `rng` and not on the order in which the tasks run.
    ///
    /// # Errors
    /// If operands do not fit the plan, a weight exceeds its bound, a switching key is missing, or the device fails.
    pub fn multiply(
        &self,
        server: &HeServer,
        inputs: &[(&EncryptedMatrix, &[i64])],
        rng: &mut SecureRng,
    ) -> Result<(Response, Vec<u64>)> {
        let mut operands = Vec::with_capacity(inputs.len());
        for (matrix, weights) in inputs {
            operands.push((DeviceInput::upload(self, server, matrix)?, self.operand(server, weights)?));
        }
        let mut graph = TaskGraph::new();
        let product = Product::add(&mut graph, "product", self, server, operands, rng)?;
        run(graph, server.context().capacity()).map_err(|e| e.into_source(|detail| HeError::Task { detail }))?;
        product.collect()
    }

    /// Weights as the device takes them best: 16 bits each, expanded there, where they are such and serve one head.
    fn operand<'a>(&self, server: &HeServer, weights: &'a [i64]) -> Result<Operand<'a>> {
        let bound = self.spec.operand.max_abs(self.spec.t);
        let small = |&w: &i64| i16::try_from(w).ok().filter(|_| w.unsigned_abs() <= bound);
        match weights.iter().map(small).collect::<Option<Vec<i16>>>() {
            Some(small) if self.expands_on_device() => Operand::small(server, &small),
            // A weight beyond its bound is refused with the plan's numbers.
            _ => Ok(Operand::Wide(weights)),
        }
    }

    /// Reads a response of this product.
    ///
    /// # Errors
    /// If the length is not exactly right or a value is out of range.
    pub fn read_response(&self, params: &ParameterSet, bytes: &[u8]) -> Result<Response> {
        Response::from_bytes(params, &self.response, self.packs.len(), self.outputs(), bytes)
    }

    /// Bytes of a response of this product.
    pub fn write_response(&self, response: &Response) -> Vec<u8> {
        response.to_bytes(&self.response)
    }
}
