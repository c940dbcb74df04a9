//! What a server returns.

use super::super::{HeError, ParameterSet, Result, wire};

/// Re-randomised ciphertexts for the client, and their scale.
#[derive(Clone, Debug, PartialEq)]
pub struct CkksResponse {
    pub(super) owner: [u8; 32],
    pub(super) scale: f64,
    pub(super) count: usize,
    pub(super) limbs: usize,
    /// `[count][2][limbs][N]`, NTT domain.
    pub(super) words: Vec<u32>,
}

impl CkksResponse {
    /// Most limbs of a response: what an `i128` holds.
    pub const MAX_LIMBS: usize = 4;

    /// Ciphertexts.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Units of the number 1.
    pub fn scale(&self) -> f64 {
        self.scale
    }

    /// Bytes of `count` ciphertexts of `limbs` limbs.
    pub fn byte_len(params: &ParameterSet, count: usize, limbs: usize) -> Option<usize> {
        wire::residues_len(params, count.checked_mul(2)?, limbs)?.checked_add(40)
    }

    /// 32 bytes that name the client, 8 of the scale, then the residues packed at the bits of a prime.
    pub fn to_bytes(&self, params: &ParameterSet) -> Vec<u8> {
        let mut out = self.owner.to_vec();
        out.extend(self.scale.to_le_bytes());
        wire::write_residues(params, &self.words, &mut out);
        out
    }

    /// Reads `count` ciphertexts of `limbs` limbs, numbers that both sides know.
    ///
    /// # Errors
    /// If the length is not exactly right, a residue is not below its modulus, or the scale is none.
    pub fn from_bytes(params: &ParameterSet, count: usize, limbs: usize, mut bytes: &[u8]) -> Result<Self> {
        const WHAT: &str = "response";
        if limbs == 0 || limbs > Self::MAX_LIMBS.min(params.key_limbs()) {
            return Err(HeError::wire(WHAT, format!("{limbs} limbs cannot be decrypted")));
        }
        if Self::byte_len(params, count, limbs) != Some(bytes.len()) {
            return Err(HeError::wire(WHAT, format!("{} bytes are not {count} ciphertexts", bytes.len())));
        }
        let owner = wire::take_array(WHAT, &mut bytes)?;
        let scale = f64::from_le_bytes(wire::take_array(WHAT, &mut bytes)?);
        if !(1.0..=2f64.powi(120)).contains(&scale) {
            return Err(HeError::wire(WHAT, "the scale is out of range"));
        }
        let words = wire::read_residues(params, WHAT, bytes, 2 * count, limbs)?;
        Ok(Self { owner, scale, count, limbs, words })
    }
}
