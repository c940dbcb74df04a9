//! Random sampling: the private generator, the public extendable-output function, and the distributions of RLWE.
//!
//! Samplers of secret values take a fixed number of random words per value and neither branch on nor index by them. Only
//! [`uniform_residues`] rejects, and what it rejects is independent of what it returns.

use std::convert::Infallible;

use rand_chacha::ChaCha20Rng;
use rand_core::{Rng, SeedableRng, TryCryptoRng, TryRng};
use zeroize::Zeroize;

use super::{Modulus, ShareModulus};

/// Variance of [`centred_binomial`]: 21 pairs of bits, a standard deviation of 3.24.
pub const ERROR_VARIANCE: f64 = 10.5;

/// Largest magnitude that [`centred_binomial`] returns.
pub const ERROR_BOUND: i8 = 21;

/// Largest multiple of its deviation that [`rounded_gaussian`] can return, the tail beyond having probability 2^-52.
pub const GAUSSIAN_TAIL: f64 = 9.0;

/// `log2` of the largest deviation that [`rounded_gaussian`] serves.
pub const MAX_DEVIATION_LOG2: i32 = 118;

/// The private generator of a party: ChaCha20, seeded by the operating system, wiped on drop.
///
/// It has no `Debug` and no wire form. Public randomness comes from [`xof`], never from here.
pub struct SecureRng(ChaCha20Rng);

impl SecureRng {
    /// A generator seeded with 32 bytes of the operating system's entropy.
    ///
    /// # Errors
    /// If the operating system has no entropy to give.
    pub fn from_os() -> Result<Self, getrandom::Error> {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed)?;
        Ok(Self::take(&mut seed))
    }

    /// A generator with a known seed, for reproducible tests; a seed must be secret and used once anywhere else.
    pub fn from_seed(mut seed: [u8; 32]) -> Self {
        Self::take(&mut seed)
    }

    /// An independent generator seeded from this one, to hand to another thread.
    pub fn fork(&mut self) -> Self {
        let mut seed = self.bytes32();
        Self::take(&mut seed)
    }

    /// 32 random bytes, such as a public seed.
    pub fn bytes32(&mut self) -> [u8; 32] {
        let mut out = [0; 32];
        self.0.fill_bytes(&mut out);
        out
    }

    fn take(seed: &mut [u8; 32]) -> Self {
        let rng = ChaCha20Rng::from_seed(*seed);
        seed.zeroize();
        Self(rng)
    }
}

impl TryRng for SecureRng {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        self.0.try_next_u32()
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        self.0.try_next_u64()
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        self.0.try_fill_bytes(bytes)
    }
}

impl TryCryptoRng for SecureRng {}

impl Drop for SecureRng {
    fn drop(&mut self) {
        // The generator has no wiping of its own; the black box keeps the overwriting store alive.
        self.0 = ChaCha20Rng::from_seed([0; 32]);
        std::hint::black_box(&mut self.0);
    }
}

/// The public stream named by `(seed, domain, counter)`: ChaCha20 keyed by `seed` with the stream number
/// `domain * 2^56 + counter`; `None` unless `counter < 2^56`.
///
/// The seed is public by definition: it travels in the clear in place of uniform polynomials.
pub fn xof(seed: &[u8; 32], domain: u8, counter: u64) -> Option<ChaCha20Rng> {
    if counter >> 56 != 0 {
        return None;
    }
    let mut stream = ChaCha20Rng::from_seed(*seed);
    stream.set_stream((domain as u64) << 56 | counter);
    Some(stream)
}

/// Fills `out` with independent uniform residues in `[0, p)` by rejection from the bits of `p`.
pub fn uniform_residues(rng: &mut impl Rng, p: Modulus, out: &mut [u32]) {
    let mask = u32::MAX >> p.value().leading_zeros();
    for x in out {
        *x = loop {
            let candidate = rng.next_u32() & mask;
            if candidate < p.value() {
                break candidate;
            }
        };
    }
}

/// Fills `out` with independent uniform elements of the ring of shares.
pub fn uniform_ring(rng: &mut impl Rng, t: ShareModulus, out: &mut [u64]) {
    match t {
        ShareModulus::PowerOfTwo(_) => out.iter_mut().for_each(|x| *x = t.reduce(rng.next_u64())),
        ShareModulus::Prime(p) => {
            let p = u128::from(p.value());
            for x in out {
                // The high word of 128 random bits times p misses uniformity by 2^-66 and needs no rejection.
                let (high, low) = (u128::from(rng.next_u64()), u128::from(rng.next_u64()));
                *x = ((high * p + ((low * p) >> 64)) >> 64) as u64;
            }
        }
    }
}

/// Fills `out` with independent uniform elements of {-1, 0, 1}.
pub fn ternary(rng: &mut impl Rng, out: &mut [i8]) {
    for x in out {
        // The high word of 3r misses uniformity by 2^-62 and needs no rejection.
        *x = ((rng.next_u64() as u128 * 3) >> 64) as i8 - 1;
    }
}

/// Fills `out` with centred binomial integers of variance [`ERROR_VARIANCE`], in `[-21, 21]`.
pub fn centred_binomial(rng: &mut impl Rng, out: &mut [i8]) {
    const LOW: u64 = (1 << 21) - 1;
    for x in out {
        let bits = rng.next_u64();
        *x = (bits & LOW).count_ones() as i8 - (bits >> 21 & LOW).count_ones() as i8;
    }
}

/// Fills `out` with rounded Gaussian integers of the given standard deviation, `1 <= deviation <= 2^118` (clamped).
///
/// A double has too few bits for deviations such as 2^95, and the missing low bits would leave what they are added to
/// bare. So each value is a sum of independent Gaussians: the first rounded to a multiple `g` of about `2^-36` of its
/// deviation, the next of deviation `64 g` (which smooths the steps of the first beyond any detection), and so on until
/// the step is 1. The total deviation exceeds the one asked for by a factor below `1 + 2^-60`.
pub fn rounded_gaussian(rng: &mut impl Rng, deviation: f64, out: &mut [i128]) {
    const PRECISION: u32 = 36;
    let deviation = deviation.clamp(1.0, 2f64.powi(MAX_DEVIATION_LOG2));
    // Deviations and steps are public.
    let mut levels = Vec::new();
    let (mut width, mut log) = (deviation, deviation.log2().floor() as u32);
    loop {
        let shift = log.saturating_sub(PRECISION);
        levels.push((width / 2f64.powi(shift as i32), shift));
        if shift == 0 {
            break;
        }
        log = shift + 6;
        width = 2f64.powi(log as i32);
    }
    for pair in out.chunks_mut(2) {
        let mut sum = [0i128; 2];
        for &(scale, shift) in &levels {
            let (x, y) = gaussian_pair(rng);
            sum[0] += (round_to_integer(x * scale) as i128) << shift;
            sum[1] += (round_to_integer(y * scale) as i128) << shift;
        }
        pair.copy_from_slice(&sum[..pair.len()]);
        sum.zeroize();
    }
}

/// Two independent standard normals (Box and Muller 1958), without branches; at most 8.6 in magnitude.
fn gaussian_pair(rng: &mut impl Rng) -> (f64, f64) {
    let (first, second) = (rng.next_u64(), rng.next_u64());
    // An odd multiple of 2^-53, never 0 or 1.
    let u = ((first >> 12) * 2 + 1) as f64 * 2f64.powi(-53);
    let radius = (-2.0 * ln(u)).sqrt();
    // An angle in (-pi/4, pi/4), then a random element of the symmetry group of the square.
    let angle = (((second >> 12) * 2 + 1) as f64 * 2f64.powi(-53) - 0.5) * std::f64::consts::FRAC_PI_2;
    let (sin, cos) = sin_cos(angle);
    let (a, b) = ((radius * cos).to_bits(), (radius * sin).to_bits());
    let swap = (a ^ b) & (second & 1).wrapping_neg();
    let (a, b) = (a ^ swap ^ (second & 2) << 62, b ^ swap ^ (second & 4) << 61);
    (f64::from_bits(a), f64::from_bits(b))
}

/// Natural logarithm of a normal positive double, to about 2^-51 relative, without branches.
fn ln(x: f64) -> f64 {
    const SQRT_HALF: u64 = 0x3fe6_a09e_667f_3bcd;
    let bits = x.to_bits();
    // Splits x = 2^e m with m in [sqrt(1/2), sqrt(2)).
    let e = (bits.wrapping_sub(SQRT_HALF) as i64) >> 52;
    let m = f64::from_bits(bits.wrapping_sub((e << 52) as u64));
    let f = (m - 1.0) / (m + 1.0);
    let s = f * f;
    let mut series = 1.0 / 23.0;
    for k in (1..=21).rev().step_by(2) {
        series = series * s + 1.0 / k as f64;
    }
    e as f64 * std::f64::consts::LN_2 + 2.0 * f * series
}

/// Sine and cosine on `[-pi/4, pi/4]` by their Taylor series, error below 2^-52.
fn sin_cos(x: f64) -> (f64, f64) {
    let s = x * x;
    let (mut sin, mut cos) = (1.0, 1.0);
    for k in (1..=9).rev() {
        let k = k as f64;
        sin = 1.0 - sin * s / ((2.0 * k) * (2.0 * k + 1.0));
        cos = 1.0 - cos * s / ((2.0 * k) * (2.0 * k - 1.0));
    }
    (x * sin, cos)
}

/// Nearest integer of `|x| < 2^50`: adding 1.5 * 2^52 leaves it in the low bits of the mantissa.
fn round_to_integer(x: f64) -> i64 {
    const MAGIC: f64 = 6_755_399_441_055_744.0;
    (x + MAGIC).to_bits().wrapping_sub(MAGIC.to_bits()) as i64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arith::primes::ntt_primes;

    fn rng(tag: u8) -> SecureRng {
        SecureRng::from_seed([tag; 32])
    }

    /// Pearson's statistic of counts that should be equal, as standard deviations from its mean.
    fn chi_square_score(counts: &[u64]) -> f64 {
        let expected = counts.iter().sum::<u64>() as f64 / counts.len() as f64;
        let statistic: f64 = counts.iter().map(|&c| (c as f64 - expected).powi(2) / expected).sum();
        let freedom = (counts.len() - 1) as f64;
        (statistic - freedom) / (2.0 * freedom).sqrt()
    }

    #[test]
    fn residues_are_uniform_and_canonical() {
        for p in [12289, ntt_primes(30, 8192, 1).unwrap()[0]] {
            let m = Modulus::new(p).unwrap();
            let mut x = vec![0; 1 << 17];
            uniform_residues(&mut rng(1), m, &mut x);
            let mut counts = [0; 64];
            for &x in &x {
                assert!(x < p);
                counts[(x as u64 * 64 / p as u64) as usize] += 1;
            }
            assert!(chi_square_score(&counts).abs() < 6.0);
        }
    }

    #[test]
    fn ternary_and_binomial_moments() {
        let mut x = vec![0; 1 << 17];
        ternary(&mut rng(2), &mut x);
        let count = |v| x.iter().filter(|&&x| x == v).count() as u64;
        assert!(chi_square_score(&[count(-1), count(0), count(1)]).abs() < 6.0);
        centred_binomial(&mut rng(3), &mut x);
        let n = x.len() as f64;
        let mean = x.iter().map(|&x| x as f64).sum::<f64>() / n;
        let variance = x.iter().map(|&x| (x as f64).powi(2)).sum::<f64>() / n - mean * mean;
        assert!(x.iter().all(|x| x.abs() <= ERROR_BOUND));
        assert!(mean.abs() < 0.06 && (variance / ERROR_VARIANCE - 1.0).abs() < 0.03, "{mean} {variance}");
    }

    #[test]
    fn kernels_agree_with_the_standard_library() {
        let mut g = rng(4);
        for _ in 0..20_000 {
            let u = ((g.next_u64() >> 12) * 2 + 1) as f64 * 2f64.powi(-53);
            let u = u * 2f64.powi(-((g.next_u32() % 40) as i32));
            assert!((ln(u) / u.ln() - 1.0).abs() < 1e-14, "{u}");
            let x = (u - 0.5) * std::f64::consts::FRAC_PI_2;
            let (s, c) = sin_cos(x);
            assert!((s - x.sin()).abs() < 4e-16 && (c - x.cos()).abs() < 4e-16);
            let big = (u - 0.5) * 2f64.powi(41);
            assert_eq!(round_to_integer(big) as f64, big.round_ties_even());
        }
    }

    #[test]
    fn gaussian_has_its_deviation_shape_and_low_bits() {
        for log in [0, 20, 36, 37, 60, 95, 100, 115] {
            let deviation = 1.37 * 2f64.powi(log);
            let mut x = vec![0i128; 40_001];
            rounded_gaussian(&mut rng(log as u8), deviation, &mut x);
            let n = x.len() as f64;
            let unit: Vec<f64> = x.iter().map(|&x| x as f64 / deviation).collect();
            let moment = |k| unit.iter().map(|x| x.powi(k)).sum::<f64>() / n;
            // Rounding adds 1/12 to the variance, which shows at small deviations only.
            let variance = 1.0 + 1.0 / (12.0 * deviation * deviation);
            assert!(moment(1).abs() < 0.03 && (moment(2) / variance - 1.0).abs() < 0.04, "{log}");
            assert!((moment(4) / (3.0 * variance * variance) - 1.0).abs() < 0.12, "{log} {}", moment(4));
            assert!(unit.iter().all(|x| x.abs() < GAUSSIAN_TAIL));
            if log >= 20 {
                let mut counts = [0; 256];
                x.iter().for_each(|&x| counts[(x & 255) as usize] += 1);
                assert!(chi_square_score(&counts).abs() < 6.0, "{log}");
                let within = unit.iter().filter(|x| x.abs() < 1.0).count() as f64 / n;
                assert!((within - 0.6827).abs() < 0.02);
            }
        }
    }

    #[test]
    fn streams_are_separated_and_repeatable() {
        let seed = [9; 32];
        let first = |domain, counter| xof(&seed, domain, counter).unwrap().next_u64();
        assert_eq!(first(1, 2), first(1, 2));
        assert!(first(1, 2) != first(1, 3) && first(1, 2) != first(2, 2));
        assert!(xof(&seed, 0, 1 << 56).is_none());
        let mut parent = rng(5);
        assert!(parent.fork().next_u64() != parent.fork().next_u64());
    }
}
