//! Matrix products modulo a power of two, or a prime: the linear algebra of the online phase, on shares in the clear.
//!
//! Modulo a power of two everything wraps, so that a ring of up to 32 bits is computed in 32-bit words (twice the lanes)
//! and any other in 64-bit words. The right operand is repacked into panels of a few columns; a panel meets four rows of
//! the left operand at a time, with the sums in vector registers. The loops are plain Rust, compiled for the widest vector
//! instructions of the machine.

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;
use zeroize::{Zeroize, Zeroizing};

use super::{
    gemm::small,
    pool::{Pool, Words},
};
use crate::{
    arith::{PrimeModulus, ShareModulus},
    engine::{EngineError, Op, Result, RingGemmShape, RingOperand, check},
};

/// Rows of the left operand that are worked on together.
const TILE_ROWS: usize = 4;

/// Depth of a packed panel: with its columns it stays in the first-level cache.
const TILE_DEPTH: usize = 256;

/// What the right operand may be made of: ring elements, or small signed integers such as fixed-point weights.
pub trait RingElement: Copy + Send + Sync {
    /// The element modulo 2^64, two's complement for negative values.
    fn wrap(self) -> u64;
}

impl RingElement for u64 {
    #[inline(always)]
    fn wrap(self) -> u64 {
        self
    }
}

macro_rules! signed_elements {
    ($($int:ty),*) => {$(
        impl RingElement for $int {
            #[inline(always)]
            fn wrap(self) -> u64 {
                i64::from(self) as u64
            }
        }
    )*};
}

signed_elements!(i8, i16, i32, i64);

/// `a` (`m x k`) times `b` (`k x n`), both row by row, modulo `modulus`; the result is `m x n`, row by row, reduced.
/// Modulo a power of two operands need not be reduced; modulo a prime they are residues, or `b` signed integers of at most 32
/// bits.
///
/// # Errors
/// If an operand's length does not fit the sizes or the modulus is invalid.
pub fn matmul<B: RingElement>(
    a: &[u64],
    b: &[B],
    m: usize,
    k: usize,
    n: usize,
    modulus: ShareModulus,
) -> Result<Vec<u64>> {
    product(a, b, [m, k, n], modulus, |depth, column| depth * n + column)
}

/// `a` (`m x k`) times the transpose of `b` (`n x k`), both row by row, modulo `modulus`; the result is `m x n`, row by
/// row, reduced. This is the layout of `Q K^T` and of weights stored output by output.
///
/// # Errors
/// As [`matmul`].
pub fn matmul_transposed<B: RingElement>(
    a: &[u64],
    b: &[B],
    m: usize,
    k: usize,
    n: usize,
    modulus: ShareModulus,
) -> Result<Vec<u64>> {
    product(a, b, [m, k, n], modulus, |depth, column| column * k + depth)
}

fn product<B: RingElement>(
    a: &[u64],
    b: &[B],
    [m, k, n]: [usize; 3],
    modulus: ShareModulus,
    index: impl Fn(usize, usize) -> usize + Copy + Send + Sync,
) -> Result<Vec<u64>> {
    if !modulus.is_valid() {
        let detail = format!("{modulus:?} is not a ring of shares: use 2^1 to 2^64");
        return Err(EngineError::Shape { operation: Op::RingGemm.name(), detail });
    }
    for (what, [rows, width], found) in [("the left operand", [m, k], a.len()), ("the right operand", [k, n], b.len())]
    {
        check::require(Op::RingGemm, rows.checked_mul(width) == Some(found), || {
            format!("{what} has {found} elements, not {rows} x {width}")
        })?;
    }
    check::require(Op::RingGemm, m.checked_mul(n).is_some(), || format!("a result of {m} x {n} is too large"))?;
    if m == 0 || n == 0 {
        return Ok(Vec::new());
    }
    if let ShareModulus::Prime(p) = modulus {
        return Ok(modulo_prime(a, b, [m, k, n], p, index));
    }
    if modulus.bits() <= 32 {
        let mut narrow: Vec<u32> = a.iter().map(|&x| x as u32).collect();
        let out = panels::<u32, B, 32>(&narrow, b, [m, k, n], modulus, index);
        narrow.zeroize();
        Ok(out)
    } else {
        Ok(panels::<u64, B, 16>(a, b, [m, k, n], modulus, index))
    }
}

/// Modulo a prime below `2^62`: sums of 128 bits, reduced before they could overflow.
fn modulo_prime<B: RingElement>(
    a: &[u64],
    b: &[B],
    [m, k, n]: [usize; 3],
    p: PrimeModulus,
    index: impl Fn(usize, usize) -> usize + Copy + Send + Sync,
) -> Vec<u64> {
    // Elements of `a` are residues, those of `b` residues or signed integers of 32 bits.
    let together = 1usize << (126 - p.bits() - p.bits().max(32)).min(24);
    let mut out = vec![0; m * n];
    out.par_chunks_exact_mut(n).zip(a.par_chunks_exact(k.max(1))).for_each_init(
        || Zeroizing::new(vec![0i128; n]),
        |sums, (out, row)| {
            sums.fill(0);
            for (part, row) in row.chunks(together).enumerate() {
                for (depth, &x) in row.iter().enumerate() {
                    for (column, sum) in sums.iter_mut().enumerate() {
                        let y = b[index(part * together + depth, column)].wrap() as i64;
                        *sum += i128::from(x) * i128::from(y);
                    }
                }
                sums.iter_mut().for_each(|sum| *sum = sum.rem_euclid(i128::from(p.value())));
            }
            out.iter_mut().zip(sums.iter()).for_each(|(out, &sum)| *out = sum as u64);
        },
    );
    out
}

/// The word that a ring is computed in.
trait Word: Copy + Default + Send + Sync {
    fn truncate(x: u64) -> Self;
    fn extend(self) -> u64;
    fn mul_add(self, x: Self, y: Self) -> Self;
}

macro_rules! words {
    ($($word:ty),*) => {$(
        impl Word for $word {
            #[inline(always)]
            fn truncate(x: u64) -> Self {
                x as $word
            }
            #[inline(always)]
            fn extend(self) -> u64 {
                u64::from(self)
            }
            #[inline(always)]
            fn mul_add(self, x: Self, y: Self) -> Self {
                self.wrapping_add(x.wrapping_mul(y))
            }
        }
    )*};
}

words!(u32, u64);

/// Panels of `COLUMNS` columns in parallel, then one pass that puts them side by side and reduces.
fn panels<W: Word, B: RingElement, const COLUMNS: usize>(
    a: &[W],
    b: &[B],
    [m, k, n]: [usize; 3],
    modulus: ShareModulus,
    index: impl Fn(usize, usize) -> usize + Copy + Send + Sync,
) -> Vec<u64> {
    let mut sums = vec![[W::default(); COLUMNS]; m * n.div_ceil(COLUMNS)];
    sums.par_chunks_exact_mut(m).enumerate().for_each_init(
        || vec![[W::default(); COLUMNS]; TILE_DEPTH.min(k)],
        |panel, (p, sums)| {
            let first = p * COLUMNS;
            let columns = COLUMNS.min(n - first);
            for start in (0..k).step_by(TILE_DEPTH) {
                let panel = &mut panel[..TILE_DEPTH.min(k - start)];
                for (depth, row) in panel.iter_mut().enumerate() {
                    for (column, x) in row[..columns].iter_mut().enumerate() {
                        *x = W::truncate(b[index(start + depth, first + column)].wrap());
                    }
                }
                Arch::new().dispatch(PanelProduct { a, k, start, panel, sums });
            }
        },
    );
    let mut out = vec![0; m * n];
    out.par_chunks_exact_mut(n).enumerate().for_each(|(i, row)| {
        for (p, part) in row.chunks_mut(COLUMNS).enumerate() {
            for (x, sum) in part.iter_mut().zip(&sums[p * m + i]) {
                *x = modulus.reduce(sum.extend());
            }
        }
    });
    out
}

/// Adds columns `start ..` of `a` (rows of `k`) times the panel to the sums, one row of sums to a row of `a`.
struct PanelProduct<'a, W, const COLUMNS: usize> {
    a: &'a [W],
    k: usize,
    start: usize,
    panel: &'a [[W; COLUMNS]],
    sums: &'a mut [[W; COLUMNS]],
}

impl<W: Word, const COLUMNS: usize> WithSimd for PanelProduct<'_, W, COLUMNS> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { a, k, start, panel, sums } = self;
        for (group, sums) in sums.chunks_mut(TILE_ROWS).enumerate() {
            let row = |i: usize| {
                let at = (group * TILE_ROWS + i) * k + start;
                &a[at..at + panel.len()]
            };
            if let [s0, s1, s2, s3] = sums {
                let (mut t0, mut t1, mut t2, mut t3) = (*s0, *s1, *s2, *s3);
                for ((((b, &x0), &x1), &x2), &x3) in panel.iter().zip(row(0)).zip(row(1)).zip(row(2)).zip(row(3)) {
                    for c in 0..COLUMNS {
                        t0[c] = t0[c].mul_add(x0, b[c]);
                        t1[c] = t1[c].mul_add(x1, b[c]);
                        t2[c] = t2[c].mul_add(x2, b[c]);
                        t3[c] = t3[c].mul_add(x3, b[c]);
                    }
                }
                (*s0, *s1, *s2, *s3) = (t0, t1, t2, t3);
            } else {
                for (i, sum) in sums.iter_mut().enumerate() {
                    for (b, &x) in panel.iter().zip(row(i)) {
                        for c in 0..COLUMNS {
                            sum[c] = sum[c].mul_add(x, b[c]);
                        }
                    }
                }
            }
        }
    }
}

/// Products on packed words; layouts as in [`crate::engine::Backend::ring_gemm`], sizes checked.
pub(super) fn ring_gemm(
    pool: &Pool,
    a: &[u32],
    b: &[u32],
    operand: RingOperand,
    shape: RingGemmShape,
) -> Result<Words> {
    let RingGemmShape { bits, batch, rows, inner, cols } = shape;
    let words = shape.element_words();
    let modulus = ShareModulus::PowerOfTwo(bits);
    let elements = |x: &[u32]| -> Vec<u64> {
        let element = |word: &[u32]| word.iter().rev().fold(0, |x, &w| x << 32 | w as u64);
        x.chunks(words).map(element).collect()
    };
    let mut out = pool.take(batch * rows * cols * words);
    for g in 0..batch {
        let mut left = elements(&a[g * rows * inner * words..][..rows * inner * words]);
        let mut product = match operand {
            RingOperand::Ring => {
                let mut right = elements(&b[g * inner * cols * words..][..inner * cols * words]);
                let product = matmul(&left, &right, rows, inner, cols, modulus)?;
                right.zeroize();
                product
            }
            RingOperand::Small => {
                let right: Vec<i16> = (0..inner * cols).map(|i| small(b, g * inner * cols + i)).collect();
                matmul(&left, &right, rows, inner, cols, modulus)?
            }
        };
        let out = &mut out[g * rows * cols * words..][..rows * cols * words];
        for (out, &x) in out.chunks_mut(words).zip(&product) {
            out.copy_from_slice(&[x as u32, (x >> 32) as u32][..words]);
        }
        left.zeroize();
        product.zeroize();
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn random(count: usize, seed: u64) -> Vec<u64> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            state ^ state >> 29
        };
        (0..count).map(|_| next()).collect()
    }

    fn naive(a: &[u64], b: &[u64], [m, k, n]: [usize; 3], modulus: ShareModulus) -> Vec<u64> {
        let entry =
            |i: usize, j: usize| (0..k).fold(0, |sum, d| modulus.add(sum, modulus.mul(a[i * k + d], b[d * n + j])));
        (0..m * n).map(|at| entry(at / n, at % n)).collect()
    }

    fn transpose<T: Copy>(b: &[T], k: usize, n: usize) -> Vec<T> {
        (0..n * k).map(|at| b[at % k * n + at / k]).collect()
    }

    fn check(m: usize, k: usize, n: usize, bits: u32) {
        let modulus = ShareModulus::pow2(bits).unwrap();
        let (a, b) = (random(m * k, 1), random(k * n, 2));
        let expected = naive(&a, &b, [m, k, n], modulus);
        assert_eq!(matmul(&a, &b, m, k, n, modulus).unwrap(), expected, "{m}x{k}x{n} mod 2^{bits}");
        assert_eq!(matmul_transposed(&a, &transpose(&b, k, n), m, k, n, modulus).unwrap(), expected);
        let weights: Vec<i16> = b.iter().map(|&x| x as i16).collect();
        let signed: Vec<u64> = weights.iter().map(|&w| modulus.from_signed(i64::from(w))).collect();
        let expected = naive(&a, &signed, [m, k, n], modulus);
        assert_eq!(matmul(&a, &weights, m, k, n, modulus).unwrap(), expected);
        let wide: Vec<i32> = weights.iter().map(|&w| i32::from(w)).collect();
        assert_eq!(matmul_transposed(&a, &transpose(&wide, k, n), m, k, n, modulus).unwrap(), expected);
    }

    #[test]
    fn primes_match_the_definition() {
        for bits in [20, 31, 38, 48, 62] {
            let modulus = ShareModulus::slots(bits, 64).unwrap();
            for (m, k, n) in [(1, 1, 1), (3, 70, 5), (2, 0, 3)] {
                let reduce = |x: Vec<u64>| x.into_iter().map(|x| modulus.reduce(x)).collect::<Vec<_>>();
                let (mut a, mut b) = (reduce(random(m * k, 1)), reduce(random(k * n, 2)));
                a.iter_mut().step_by(3).for_each(|x| *x = modulus.largest());
                b.iter_mut().step_by(2).for_each(|x| *x = modulus.largest());
                let expected = naive(&a, &b, [m, k, n], modulus);
                assert_eq!(matmul(&a, &b, m, k, n, modulus).unwrap(), expected, "{m}x{k}x{n} mod {modulus:?}");
                assert_eq!(matmul_transposed(&a, &transpose(&b, k, n), m, k, n, modulus).unwrap(), expected);
                let wide: Vec<i32> = b.iter().map(|&x| x as i32).collect();
                let signed: Vec<u64> = wide.iter().map(|&w| modulus.from_signed(i64::from(w))).collect();
                assert_eq!(matmul(&a, &wide, m, k, n, modulus).unwrap(), naive(&a, &signed, [m, k, n], modulus));
            }
        }
    }

    #[test]
    fn matches_the_definition_at_tile_edges() {
        for bits in [1, 13, 32, 33, 48, 64] {
            for (m, k, n) in
                [(1, 1, 1), (3, 5, 2), (4, 256, 16), (5, 257, 17), (8, 300, 33), (2, 2, 32), (9, 513, 40), (3, 0, 2)]
            {
                check(m, k, n, bits);
            }
        }
    }

    #[test]
    fn negative_weights_are_twos_complement() {
        let modulus = ShareModulus::pow2(40).unwrap();
        assert_eq!(matmul(&[3], &[-2i8], 1, 1, 1, modulus).unwrap(), [modulus.from_signed(-6)]);
        assert_eq!(matmul(&[3], &[i64::MIN], 1, 1, 1, modulus).unwrap(), [0]);
    }

    #[test]
    fn wrong_sizes_are_refused() {
        let t = ShareModulus::pow2(32).unwrap();
        assert!(matmul(&[1; 6], &[1u64; 6], 2, 3, 2, t).is_ok());
        assert!(matmul(&[1; 5], &[1u64; 6], 2, 3, 2, t).is_err());
        assert!(matmul(&[1; 6], &[1u64; 7], 2, 3, 2, t).is_err());
        assert!(matmul::<u64>(&[], &[], usize::MAX, 0, usize::MAX, t).is_err());
        assert!(matmul::<u64>(&[], &[], 0, usize::MAX, 2, t).is_err());
        assert!(matmul(&[1; 6], &[1u64; 6], 2, 3, 2, ShareModulus::PowerOfTwo(65)).is_err());
        assert!(matmul::<u64>(&[], &[], 0, 0, 0, t).unwrap().is_empty());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(30))]
        #[test]
        fn matches_the_definition(m in 1usize..10, k in 1usize..30, n in 1usize..70, bits in 1u32..=64) {
            check(m, k, n, bits);
        }
    }
}
