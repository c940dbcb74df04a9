//! A finished response and its wire form.

use rayon::prelude::*;

use super::{HeError, ParameterSet, ResponsePlan, Result, wire};
use crate::arith::{bits, crt::CrtBasis};

/// What the server returns: for every ciphertext the high bits of the wanted coefficients of c0, and all of c1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// `floor(c0 / 2^dropped_bits)` at the positions of every ciphertext, concatenated.
    pub(super) c0: Vec<u128>,
    /// `[packs][limbs][N]`, coefficient domain, the plan's limbs.
    pub(super) c1: Vec<u32>,
}

impl Response {
    /// Cuts switched ciphertexts `[packs][2][plan.limbs][N]`.
    pub(super) fn cut(params: &ParameterSet, plan: &ResponsePlan, positions: &[Vec<u32>], x: &[u32]) -> Result<Self> {
        let (n, limbs) = (params.n(), plan.limbs);
        if x.len() != positions.len() * 2 * limbs * n || positions.iter().flatten().any(|&at| at as usize >= n) {
            return Err(HeError::shape("response", format!("{} words for {} ciphertexts", x.len(), positions.len())));
        }
        let basis = CrtBasis::new(&params.data().moduli()[..limbs]);
        let mut c0 = Vec::with_capacity(positions.iter().map(Vec::len).sum());
        let mut c1 = Vec::with_capacity(x.len() / 2);
        for (x, positions) in x.chunks(2 * limbs * n).zip(positions) {
            let (part0, part1) = x.split_at(limbs * n);
            c1.extend_from_slice(part1);
            c0.par_extend(
                positions.par_iter().map(|&at| basis.lift(|limb| part0[limb * n + at as usize]) >> plan.dropped_bits),
            );
        }
        Ok(Self { c0, c1 })
    }

    /// Whether the response has the shape of a plan.
    pub(super) fn check(&self, params: &ParameterSet, plan: &ResponsePlan, positions: &[Vec<u32>]) -> Result<()> {
        let kept: usize = positions.iter().map(Vec::len).sum();
        if self.c0.len() != kept || self.c1.len() != positions.len() * plan.limbs * params.n() {
            let detail = format!("{} coefficients of c0 where {kept} are expected", self.c0.len());
            return Err(HeError::shape("decrypt", detail));
        }
        if positions.iter().flatten().any(|&at| at as usize >= params.n()) {
            return Err(HeError::shape("decrypt", "a position is not below N"));
        }
        Ok(())
    }

    /// Adds the ciphertexts of `other` at the end.
    pub fn append(&mut self, other: Self) {
        self.c0.extend(other.c0);
        self.c1.extend(other.c1);
    }

    /// Number of ciphertexts.
    pub fn ciphertexts(&self, params: &ParameterSet, plan: &ResponsePlan) -> usize {
        self.c1.len() / (plan.limbs * params.n())
    }

    /// Bytes of `packs` ciphertexts with `kept` coefficients of c0 in all.
    pub fn byte_len(params: &ParameterSet, plan: &ResponsePlan, packs: usize, kept: usize) -> Option<usize> {
        let (low, high) = plan.halves();
        let c0 = bits::packed_len(kept, low)?.checked_add(bits::packed_len(kept, high)?)?;
        c0.checked_add(wire::residues_len(params, packs, plan.limbs)?)
    }

    /// c0, its low 64 bits and then the bits above them where it has more, then c1, all packed.
    pub fn to_bytes(&self, params: &ParameterSet, plan: &ResponsePlan) -> Vec<u8> {
        let (low, high) = plan.halves();
        let part = |shift: u32| -> Vec<u64> { self.c0.iter().map(|&x| (x >> shift) as u64).collect() };
        let mut out = bits::pack(&part(0), low);
        if high > 0 {
            bits::pack_into(&part(64), high, &mut out);
        }
        wire::write_residues(params, &self.c1, &mut out);
        out
    }

    /// Reads a response of `packs` ciphertexts with `kept` coefficients of c0 in all, numbers that both sides know.
    ///
    /// # Errors
    /// If the length is not exactly right or a value is out of range.
    pub fn from_bytes(
        params: &ParameterSet,
        plan: &ResponsePlan,
        packs: usize,
        kept: usize,
        mut bytes: &[u8],
    ) -> Result<Self> {
        const WHAT: &str = "response";
        if Self::byte_len(params, plan, packs, kept) != Some(bytes.len()) {
            return Err(HeError::wire(WHAT, format!("{} bytes are not {packs} ciphertexts", bytes.len())));
        }
        let mut part = |width: u32| {
            let len = bits::packed_len(kept, width).unwrap_or(usize::MAX);
            bits::unpack(wire::take(WHAT, &mut bytes, len)?, width, kept).map_err(HeError::bits(WHAT))
        };
        let (low, high) = plan.halves();
        let mut c0: Vec<u128> = part(low)?.into_iter().map(u128::from).collect();
        if high > 0 {
            for (x, high) in c0.iter_mut().zip(part(high)?) {
                *x |= (high as u128) << 64;
            }
        }
        let q = CrtBasis::new(&params.data().moduli()[..plan.limbs]).product();
        let q = q.ok_or_else(|| HeError::wire(WHAT, "the modulus is too wide"))?;
        if c0.iter().any(|&x| x > (q - 1) >> plan.dropped_bits) {
            return Err(HeError::wire(WHAT, "a coefficient is not below the modulus"));
        }
        Ok(Self { c0, c1: wire::read_residues(params, WHAT, bytes, packs, plan.limbs)? })
    }
}

impl ResponsePlan {
    /// The midpoint of the values that share the high bits `x`.
    pub(super) fn restore(&self, x: u128) -> u128 {
        (x << self.dropped_bits) + ((1u128 << self.dropped_bits) >> 1)
    }

    /// Widths of the low and high part of a coefficient of c0.
    fn halves(&self) -> (u32, u32) {
        (self.c0_bits.min(64), self.c0_bits.saturating_sub(64))
    }
}
