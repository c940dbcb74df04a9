//! Where the elements of inputs, weights and outputs sit.

use crate::{
    arith::ShareModulus,
    he::{HeError, ParameterSet, Result, SeededCiphertexts},
};

/// Layout of an encrypted operand: `heads` matrices of `rows x inner` (one head for a linear layer).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct InputLayout {
    /// Ring dimension N.
    pub n: usize,
    /// Independent matrices.
    pub heads: usize,
    /// Rows of each.
    pub rows: usize,
    /// Features of each.
    pub inner: usize,
    /// S: distance of consecutive rows, a power of two with `rows * S <= N`.
    pub stride: usize,
    /// K: features a ciphertext, a power of two up to S.
    pub block: usize,
    /// Limbs of the ciphertexts.
    pub limbs: usize,
}

impl InputLayout {
    /// Checks the rules of the fields.
    pub fn check(&self) -> Result<()> {
        let Self { n, heads, rows, inner, stride, block, limbs } = *self;
        let powers = n.is_power_of_two() && stride.is_power_of_two() && block.is_power_of_two();
        let fits = rows.checked_mul(stride).is_some_and(|x| x <= n) && block <= stride;
        let sized = heads >= 1 && rows >= 1 && inner >= 1 && limbs >= 1;
        // Far above any model, far below overflow.
        let bounded = heads.checked_mul(rows).and_then(|x| x.checked_mul(inner)).is_some_and(|x| x < 1 << 40);
        if powers && fits && sized && bounded {
            return Ok(());
        }
        Err(HeError::shape(
            "input layout",
            format!("{self:?} breaks rows * stride <= N, block <= stride, powers of two"),
        ))
    }

    /// Ciphertexts of one head.
    pub fn blocks(&self) -> usize {
        self.inner.div_ceil(self.block)
    }

    /// Ciphertexts of all heads.
    pub fn ciphertexts(&self) -> usize {
        self.heads * self.blocks()
    }

    /// Elements of all heads.
    pub fn elements(&self) -> usize {
        self.heads * self.rows * self.inner
    }

    /// Bytes of the encrypted operand.
    pub fn byte_len(&self, params: &ParameterSet) -> Option<usize> {
        SeededCiphertexts::byte_len(&params.at_level(self.limbs).ok()?, self.ciphertexts())
    }

    /// Plaintext polynomials `[heads][blocks][N]` of `x`, `[heads][rows][inner]` modulo t.
    pub fn encode(&self, t: ShareModulus, x: &[u64]) -> Result<Vec<u64>> {
        self.check()?;
        if x.len() != self.elements() {
            return Err(HeError::shape("encode", format!("{} elements where {} are needed", x.len(), self.elements())));
        }
        let Self { n, rows, inner, stride, block, .. } = *self;
        let mut out = vec![0; self.ciphertexts() * n];
        for (k, row) in x.chunks(inner).enumerate() {
            let (head, i) = (k / rows, k % rows);
            for (f, &value) in row.iter().enumerate() {
                let (b, j) = (f / block, f % block);
                let poly = &mut out[(head * self.blocks() + b) * n..][..n];
                let value = t.reduce(value);
                match (i * stride).checked_sub(j) {
                    Some(at) => poly[at] = value,
                    None => poly[n - j + i * stride] = t.sub(0, value),
                }
            }
        }
        Ok(out)
    }
}

/// Layout of the outputs of one product.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct OutputLayout {
    pub heads: usize,
    pub rows: usize,
    pub cols: usize,
    pub stride: usize,
    pub block: usize,
}

/// One output ciphertext: `used` consecutive groups from `first`, packed as `outputs` (a power of two).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pack {
    pub first: usize,
    pub used: usize,
    pub outputs: usize,
}

impl OutputLayout {
    /// m: output columns of a weight polynomial.
    pub fn columns(&self) -> usize {
        self.stride / self.block
    }

    /// Output groups of one head.
    pub fn groups_per_head(&self) -> usize {
        self.cols.div_ceil(self.columns())
    }

    /// Output groups of all heads, head-major.
    pub fn groups(&self) -> usize {
        self.heads * self.groups_per_head()
    }

    /// The output ciphertexts: full packs of `K` groups, then one with the rest, packed as `least` outputs or more.
    pub fn packs(&self, least: usize) -> Vec<Pack> {
        (0..self.groups())
            .step_by(self.block)
            .map(|first| {
                let used = self.block.min(self.groups() - first);
                Pack { first, used, outputs: used.next_power_of_two().max(least) }
            })
            .collect()
    }

    /// For every used coefficient of a pack, its exponent and its index in `[heads][rows][cols]`.
    pub fn places(&self, pack: &Pack) -> Vec<(u32, usize)> {
        let mut out = Vec::with_capacity(pack.used * self.columns() * self.rows);
        let step = self.block / pack.outputs;
        for t in 0..pack.used {
            let (head, g) = ((pack.first + t) / self.groups_per_head(), (pack.first + t) % self.groups_per_head());
            for o in 0..self.columns() {
                let column = g * self.columns() + o;
                if column >= self.cols {
                    break;
                }
                for i in 0..self.rows {
                    let at = i * self.stride + o * self.block + t * step;
                    out.push((at as u32, (head * self.rows + i) * self.cols + column));
                }
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_output_has_its_own_place(
            heads in 1usize..4, rows in 1usize..9, cols in 1usize..80, log_s in 0u32..6, cut in 0u32..6,
        ) {
            let stride = 1 << log_s;
            let layout = OutputLayout { heads, rows, cols, stride, block: 1 << (log_s - cut.min(log_s)) };
            let mut seen = vec![false; heads * rows * cols];
            for pack in layout.packs(1) {
                let mut taken = std::collections::HashSet::new();
                for (at, index) in layout.places(&pack) {
                    prop_assert!((at as usize) < rows * stride && taken.insert(at));
                    prop_assert!(!std::mem::replace(&mut seen[index], true));
                }
            }
            prop_assert!(seen.iter().all(|&x| x));
        }
    }

    #[test]
    fn layouts_out_of_range_are_refused() {
        let good = InputLayout { n: 64, heads: 1, rows: 3, inner: 10, stride: 16, block: 4, limbs: 2 };
        assert!(good.check().is_ok());
        for bad in [
            InputLayout { rows: 5, ..good },
            InputLayout { stride: 24, ..good },
            InputLayout { block: 32, ..good },
            InputLayout { block: 0, ..good },
            InputLayout { limbs: 0, ..good },
            InputLayout { inner: 0, ..good },
            InputLayout { inner: usize::MAX, ..good },
        ] {
            assert!(bad.check().is_err(), "{bad:?}");
        }
    }
}
