//! Packings of matrices into ciphertexts, and the counts that a planner reads.

mod coefficient;

pub use coefficient::{
    ClientMatrix, CoefficientPacking, CostWeights, DeviceInput, EncryptedMatrix, InputLayout, MatmulSpec, Operand,
    OperandBound, Product,
};

/// What one encrypted matrix product costs, exactly: counted by the same code paths that the predictions describe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, serde::Serialize)]
pub struct Counts {
    /// Plaintext-ciphertext products of the server.
    pub products: u64,
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

/// A way to lay a matrix product out in ciphertexts.
pub trait Packing {
    /// Name in plans and reports.
    fn name(&self) -> &'static str;

    /// What the product will cost.
    fn counts(&self) -> Counts;
}
