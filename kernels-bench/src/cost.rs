//! What a kernel cannot do without: bytes moved and 32-bit multiplies, and the time that a machine needs for them.
//!
//! The model is a lower bound, the same for every device and product form:
//!
//! * *Bytes*: every operand is read once and every result written once, 4 bytes a residue (2 a small weight). What a kernel
//!   keeps for itself between its passes does not count.
//! * *Multiplies*: instructions that multiply two 32-bit integers, whichever half of the product (or both) they give. A
//!   butterfly with Shoup's twiddles has 3 (the high half of one product, the low halves of two), of which a transform has
//!   `N/2 log2 N`; a product of residues has 3 (the product, two for its reduction); a term of a lazy sum of products has 1,
//!   its one reduction at the end 2. Additions and comparisons are not counted.
//!
//! The limit is `max(bytes / copy bandwidth, multiplies / multiply rate)` with the rates that this run measured on this
//! device, the bandwidth at the working set's size. Fractions of the limit may exceed 1 where a device has a shorter way than
//! the model's, such as 8-bit dot products in a GEMM, or where a working set stays in a cache of a GPU, whose bandwidth is
//! measured in memory only.

use heliostat::engine::RingOperand;

use crate::kernels::{Case, Kernel};

/// Multiplies of one butterfly.
const BUTTERFLY: f64 = 3.0;

/// Multiplies of one product of residues.
const PRODUCT: f64 = 3.0;

/// Multiplies of reducing a lazy sum.
const REDUCTION: f64 = 2.0;

/// Bytes and 32-bit multiplies of one operation.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// Bytes read and written.
    pub bytes: f64,
    /// Multiplies.
    pub multiplies: f64,
}

impl Cost {
    /// Of `residues` words moved and `multiplies`.
    fn new(residues: usize, multiplies: f64) -> Self {
        Self { bytes: 4.0 * residues as f64, multiplies }
    }

    /// Multiplies for each byte; `None` for what does not multiply.
    pub fn intensity(&self) -> Option<f64> {
        (self.multiplies > 0.0 && self.bytes > 0.0).then(|| self.multiplies / self.bytes)
    }
}

/// Multiplies of `rows` transforms of one limb of one polynomial.
pub fn transforms(n: usize, rows: usize) -> f64 {
    (rows * n / 2) as f64 * f64::from(n.trailing_zeros()) * BUTTERFLY
}

/// The cost of a case.
pub fn of(case: &Case) -> Cost {
    let Case { n, limbs, batch, .. } = *case;
    // Residues of the batch, and multiplies of `k` products for each.
    let all = batch * limbs * n;
    let products = |residues: usize| residues as f64 * PRODUCT;
    match case.kernel {
        Kernel::NttForward | Kernel::NttInverse => Cost::new(2 * all, transforms(n, batch * limbs)),
        Kernel::Add | Kernel::Sub => Cost::new(3 * all, 0.0),
        Kernel::Mul => Cost::new(3 * all, products(all)),
        Kernel::MulAccumulate => Cost::new(4 * all, products(all)),
        Kernel::MulScalar => Cost::new(2 * all, products(all)),
        Kernel::MatmulPlain { inputs, outputs } => {
            let (ct, out) = (2 * inputs * all, 2 * outputs * all);
            let terms = (out * inputs) as f64;
            Cost::new(ct + inputs * outputs * all + out, terms + out as f64 * REDUCTION)
        }
        // The values come as 64-bit integers.
        Kernel::Expand { positions } => Cost::new(all + 2 * batch * positions, 0.0),
        Kernel::PackStep => Cost::new(8 * all, 0.0),
        Kernel::Automorphism | Kernel::AutomorphismNtt => Cost::new(2 * all, 0.0),
        Kernel::KeySwitch { special, digit_limbs } => {
            let switch = Switch { n, limbs, special, digit_limbs };
            let (decompose, finish) = (switch.decompose(), switch.finish());
            let moved = 3 * all + switch.digits() * 2 * switch.rows() * n;
            Cost::new(moved, batch as f64 * (decompose + finish))
        }
        Kernel::Rotate { rotations } => {
            let switch = Switch { n, limbs, special: 1, digit_limbs: 1 };
            let keys = rotations * switch.digits() * 2 * switch.rows() * n;
            let moved = 2 * all + keys + 2 * rotations * all;
            Cost::new(moved, batch as f64 * (switch.decompose() + rotations as f64 * switch.finish()))
        }
        Kernel::BaseConvert => {
            let terms = (all * limbs) as f64;
            Cost::new(2 * all, products(all) + terms + all as f64 * REDUCTION)
        }
        Kernel::ModularGemm { inputs, outputs } => {
            let terms = (outputs * inputs * all) as f64;
            Cost::new(all * (inputs + outputs) + inputs * outputs / 2, terms + (outputs * all) as f64 * REDUCTION)
        }
        Kernel::RingGemm { bits, rows, inner, cols, operand } => {
            let element = if bits <= 32 { 1 } else { 2 };
            let terms = (batch * rows * inner * cols) as f64;
            let (right, multiplies) = match operand {
                RingOperand::Small => (inner * cols / 2, element as f64),
                RingOperand::Ring => (inner * cols * element, if element == 1 { 1.0 } else { 3.0 }),
            };
            Cost::new(batch * (rows * inner * element + right + rows * cols * element), terms * multiplies)
        }
        Kernel::ExpandMatrix { inner, cols, block, columns } => {
            let polys = cols.div_ceil(columns) * inner.div_ceil(block);
            // Stages whose butterflies all have a zero operand are copies.
            let stages = f64::from((block * columns).next_power_of_two().trailing_zeros());
            let multiplies = (polys * limbs * n / 2) as f64 * stages * BUTTERFLY;
            Cost::new(inner * cols / 2 + polys * limbs * n, multiplies)
        }
        Kernel::Gather => Cost::new(2 * all, 0.0),
        Kernel::ModSwitch { target } => {
            let steps: usize = (target..limbs).sum();
            Cost::new(all + batch * target * n, products(batch * n * steps))
        }
    }
}

/// Multiplies of a key switch of one polynomial.
struct Switch {
    n: usize,
    limbs: usize,
    special: usize,
    digit_limbs: usize,
}

impl Switch {
    fn digits(&self) -> usize {
        self.limbs.div_ceil(self.digit_limbs)
    }

    fn rows(&self) -> usize {
        self.limbs + self.special
    }

    /// Digits modulo every limb, transformed.
    fn decompose(&self) -> f64 {
        let converted = match self.digit_limbs {
            1 => 0.0,
            wide => (self.digits() * self.rows() * self.n) as f64 * (wide as f64 + REDUCTION),
        };
        transforms(self.n, self.digits() * self.rows()) + converted
    }

    /// Inner product with the key, transforms back, special primes dropped.
    fn finish(&self) -> f64 {
        let inner = (2 * self.rows() * self.n) as f64 * (self.digits() as f64 + REDUCTION);
        let dropped: usize = (self.limbs..self.rows()).sum();
        inner + transforms(self.n, 2 * self.rows()) + (2 * self.n * dropped) as f64 * PRODUCT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(kernel: Kernel, n: usize, limbs: usize, batch: usize) -> Case {
        Case { kernel, n, bits: 30, limbs, batch }
    }

    #[test]
    fn transforms_count_butterflies() {
        let cost = of(&case(Kernel::NttForward, 1024, 2, 3));
        assert_eq!(cost, Cost { bytes: 8.0 * 6.0 * 1024.0, multiplies: 6.0 * 512.0 * 10.0 * 3.0 });
        assert_eq!(cost.intensity(), Some(3.0 * 10.0 / 16.0));
        assert_eq!(of(&case(Kernel::Add, 1024, 2, 3)).intensity(), None);
    }

    #[test]
    fn a_matrix_product_reads_its_plaintexts_once() {
        let cost = of(&case(Kernel::MatmulPlain { inputs: 3, outputs: 5 }, 1024, 2, 1));
        let poly = 2.0 * 1024.0;
        assert_eq!(cost.bytes, 4.0 * poly * (2.0 * 3.0 + 15.0 + 2.0 * 5.0));
        assert_eq!(cost.multiplies, poly * (2.0 * 15.0 + 2.0 * 5.0 * 2.0));
    }

    #[test]
    fn one_rotation_costs_a_key_switch_and_more_share_the_decomposition() {
        let switch = of(&case(Kernel::KeySwitch { special: 1, digit_limbs: 1 }, 8192, 5, 1)).multiplies;
        let [one, four] = [1, 4].map(|k| of(&case(Kernel::Rotate { rotations: k }, 8192, 5, 1)).multiplies);
        assert_eq!(one, switch);
        assert!(four < 2.5 * one && four > 2.0 * one, "{four} {one}");
        // 30 forward and 12 inverse transforms.
        let ntts = transforms(8192, 42);
        assert!(switch > ntts && switch < 1.15 * ntts);
    }

    #[test]
    fn gemm_is_one_multiply_a_term() {
        let cost = of(&case(Kernel::ModularGemm { inputs: 768, outputs: 768 }, 4096, 4, 2));
        let terms = 768.0 * 768.0 * 32768.0;
        assert!(cost.multiplies > terms && cost.multiplies < 1.01 * terms);
    }
}
