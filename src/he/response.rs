//! A finished response and its wire form.

use rayon::prelude::*;

use super::{HeError, ParameterSet, ResponsePlan, Result, wire};
use crate::arith::{bits, crt::CrtBasis};

/// What the server returns: for every ciphertext the high bits of the wanted coefficients of c0, and those of all of c1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// The high bits of c0 at the positions of every ciphertext, concatenated.
    pub(super) c0: Vec<u128>,
    /// `[packs][N]`, the high bits of c1.
    pub(super) c1: Vec<u128>,
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
        let mut c1 = Vec::with_capacity(positions.len() * n);
        for (x, positions) in x.chunks(2 * limbs * n).zip(positions) {
            let (part0, part1) = x.split_at(limbs * n);
            let lift = |part: &[u32], at: usize| basis.lift(|limb| part[limb * n + at]);
            c0.par_extend(positions.par_iter().map(|&at| plan.c0.cut(lift(part0, at as usize))));
            c1.par_extend((0..n).into_par_iter().map(|at| plan.c1.cut(lift(part1, at))));
        }
        Ok(Self { c0, c1 })
    }

    /// Whether the response has the shape of a plan.
    pub(super) fn check(&self, params: &ParameterSet, positions: &[Vec<u32>]) -> Result<()> {
        let kept: usize = positions.iter().map(Vec::len).sum();
        if self.c0.len() != kept || self.c1.len() != positions.len() * params.n() {
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

    /// Bytes of `packs` ciphertexts with `kept` coefficients of c0 in all.
    pub fn byte_len(params: &ParameterSet, plan: &ResponsePlan, packs: usize, kept: usize) -> Option<usize> {
        plan.c0.byte_len(kept)?.checked_add(plan.c1.byte_len(packs.checked_mul(params.n())?)?)
    }

    /// c0, then c1; of each the low 64 bits and then the bits above them where it has more, packed.
    pub fn to_bytes(&self, plan: &ResponsePlan) -> Vec<u8> {
        let mut out = Vec::new();
        plan.c0.write(&self.c0, &mut out);
        plan.c1.write(&self.c1, &mut out);
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
        if Self::byte_len(params, plan, packs, kept) != Some(bytes.len()) {
            return Err(HeError::wire(WHAT, format!("{} bytes are not {packs} ciphertexts", bytes.len())));
        }
        let q = CrtBasis::new(&params.data().moduli()[..plan.limbs]).product();
        let q = q.ok_or_else(|| HeError::wire(WHAT, "the modulus is too wide"))?;
        Ok(Self { c0: plan.c0.read(q, kept, &mut bytes)?, c1: plan.c1.read(q, packs * params.n(), &mut bytes)? })
    }
}

const WHAT: &str = "response";

/// The high bits of coefficients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Low bits that are not sent.
    pub dropped_bits: u32,
    /// Bits that are.
    pub kept_bits: u32,
}

impl Cut {
    /// Of coefficients of `bits` bits.
    pub(super) fn new(bits: u32, dropped_bits: u32) -> Self {
        Self { dropped_bits, kept_bits: bits.saturating_sub(dropped_bits) }
    }

    pub(super) fn cut(self, x: u128) -> u128 {
        x >> self.dropped_bits
    }

    /// The midpoint of the values that share the high bits `x`.
    pub(super) fn restore(self, x: u128) -> u128 {
        (x << self.dropped_bits) + ((1u128 << self.dropped_bits) >> 1)
    }

    /// Widths of the low and high part of a coefficient.
    fn halves(self) -> (u32, u32) {
        (self.kept_bits.min(64), self.kept_bits.saturating_sub(64))
    }

    fn byte_len(self, count: usize) -> Option<usize> {
        let (low, high) = self.halves();
        bits::packed_len(count, low)?.checked_add(bits::packed_len(count, high)?)
    }

    fn write(self, x: &[u128], out: &mut Vec<u8>) {
        let (low, high) = self.halves();
        let part = |shift: u32| -> Vec<u64> { x.iter().map(|&x| (x >> shift) as u64).collect() };
        bits::pack_into(&part(0), low, out);
        if high > 0 {
            bits::pack_into(&part(64), high, out);
        }
    }

    /// Cut values of coefficients below q.
    fn read(self, q: u128, count: usize, bytes: &mut &[u8]) -> Result<Vec<u128>> {
        let mut part = |width: u32| {
            let len = bits::packed_len(count, width).unwrap_or(usize::MAX);
            bits::unpack(wire::take(WHAT, bytes, len)?, width, count).map_err(HeError::bits(WHAT))
        };
        let (low, high) = self.halves();
        let mut out: Vec<u128> = part(low)?.into_iter().map(u128::from).collect();
        if high > 0 {
            for (x, high) in out.iter_mut().zip(part(high)?) {
                *x |= (high as u128) << 64;
            }
        }
        if out.iter().any(|&x| x > self.cut(q - 1)) {
            return Err(HeError::wire(WHAT, "a coefficient is not below the modulus"));
        }
        Ok(out)
    }
}
