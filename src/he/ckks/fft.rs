//! The transform of the canonical embedding: a polynomial of degree below N at the primitive 2N-th roots of unity of one half.
//!
//! With `zeta = exp(i pi / N)` and `S = N/2`, slot `j` is `m(zeta^(5^j))`; the other half are their conjugates. Exponents
//! `5^j mod 2N` are the numbers `4t + 1`, and `m(zeta^(4t+1)) = sum_(k<S) (m_k + i m_(k+S)) zeta^k omega^(tk)`, `omega = zeta^4`: a
//! cyclic transform of size `S` after a twist.
//!
//! With relative rounding `u` of the arithmetic (`2^-53` or `2^-100`) the error of a slot is below `4 u log2(N)` times the root of
//! the sum of squares of the coefficients, times `sqrt(S)` (Higham, Accuracy and Stability of Numerical Algorithms, 24.1).

use super::real::{DoubleDouble, Real};

/// Real and imaginary part.
pub type Complex<R> = [R; 2];

/// Tables for one ring dimension.
pub(super) struct Fft<R> {
    /// `zeta^k`, `k < S`.
    twist: Vec<Complex<R>>,
    /// For halves `h = 1, 2, 4 .. S/2`: `exp(i pi k / h)`, `k < h`, from index `h - 1` on.
    roots: Vec<Complex<R>>,
    /// Where slot `j` is in the transform's bit-reversed order.
    place: Vec<u32>,
}

#[inline(always)]
fn times<R: Real>([a, b]: Complex<R>, [c, d]: Complex<R>) -> Complex<R> {
    [a * c - b * d, a * d + b * c]
}

#[inline(always)]
fn conjugate<R: Real>([a, b]: Complex<R>) -> Complex<R> {
    [a, -b]
}

/// `exp(i pi k / 2^log)` for `k < 2^log`, from half angles and products of at most `log` of them.
fn half_turn(log: u32) -> Vec<Complex<DoubleDouble>> {
    let (one, half) = (DoubleDouble::new(1.0), DoubleDouble::new(0.5));
    let mut table = vec![[one, DoubleDouble::ZERO]];
    // exp(i pi / 2), then half the angle each time; the finest step comes last.
    let mut steps = vec![[DoubleDouble::ZERO, one]];
    for _ in 1..log {
        let [cos, sin] = steps[steps.len() - 1];
        let next = ((one + cos) * half).sqrt();
        steps.push([next, (sin * half).div(next)]);
    }
    for &step in steps.iter().take(log as usize).rev() {
        let size = table.len();
        for k in 0..size {
            table.push(times(table[k], step));
        }
    }
    table
}

impl<R: Real> Fft<R> {
    /// Tables for dimension `n`, a power of two from 8.
    pub(super) fn new(n: usize) -> Self {
        let (slots, log) = (n / 2, n.trailing_zeros());
        let convert = |x: &Complex<DoubleDouble>| x.map(R::from_pair);
        let turn = half_turn(log);
        let twist = turn[..slots].iter().map(convert).collect();
        let mut roots = Vec::with_capacity(slots);
        let mut half = 1;
        while half < slots {
            roots.extend(turn.iter().step_by(n / half).take(half).map(convert));
            half *= 2;
        }
        let mut place = Vec::with_capacity(slots);
        let mut power = 1;
        for _ in 0..slots {
            let t = (power - 1) / 4;
            place.push((t as u32).reverse_bits() >> (33 - log));
            power = power * 5 % (2 * n);
        }
        Self { twist, roots, place }
    }

    /// Slots of a polynomial.
    pub(super) fn slots(&self, coefficients: &[R]) -> Vec<Complex<R>> {
        let half = self.twist.len();
        let (low, high) = coefficients.split_at(half);
        let twisted = low.iter().zip(high).zip(&self.twist);
        let mut x: Vec<Complex<R>> = twisted.map(|((&re, &im), &w)| times([re, im], w)).collect();
        let mut span = half / 2;
        while span > 0 {
            let roots = &self.roots[span - 1..][..span];
            for block in x.chunks_mut(2 * span) {
                let (low, high) = block.split_at_mut(span);
                for ((a, b), &w) in low.iter_mut().zip(high).zip(roots) {
                    let difference = [a[0] - b[0], a[1] - b[1]];
                    *a = [a[0] + b[0], a[1] + b[1]];
                    *b = times(difference, w);
                }
            }
            span /= 2;
        }
        self.place.iter().map(|&at| x[at as usize]).collect()
    }

    /// `S` times the polynomial with the given slots.
    pub(super) fn coefficients(&self, slots: &[Complex<R>]) -> Vec<R> {
        let half = self.twist.len();
        let mut x = vec![[R::ZERO; 2]; half];
        for (&at, &slot) in self.place.iter().zip(slots) {
            x[at as usize] = slot;
        }
        let mut span = 1;
        while span < half {
            let roots = &self.roots[span - 1..][..span];
            for block in x.chunks_mut(2 * span) {
                let (low, high) = block.split_at_mut(span);
                for ((a, b), &w) in low.iter_mut().zip(high).zip(roots) {
                    let right = times(*b, conjugate(w));
                    *b = [a[0] - right[0], a[1] - right[1]];
                    *a = [a[0] + right[0], a[1] + right[1]];
                }
            }
            span *= 2;
        }
        let mut out = vec![R::ZERO; 2 * half];
        let (low, high) = out.split_at_mut(half);
        for (((re, im), &x), &w) in low.iter_mut().zip(high).zip(&x).zip(&self.twist) {
            [*re, *im] = times(x, conjugate(w));
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `m(zeta^(5^j))` term by term.
    fn naive(m: &[f64], j: usize) -> [f64; 2] {
        let n = m.len();
        let exponent = (0..j).fold(1, |power, _| power * 5 % (2 * n));
        let term = |k: usize| (exponent * k % (2 * n)) as f64 * std::f64::consts::PI / n as f64;
        let sum = |f: fn(f64) -> f64| m.iter().enumerate().map(|(k, &m)| m * f(term(k))).sum();
        [sum(f64::cos), sum(f64::sin)]
    }

    #[test]
    fn slots_are_values_at_the_roots_and_back() {
        for n in [8, 16, 64, 256] {
            let fft = Fft::<f64>::new(n);
            let m: Vec<f64> = (0..n).map(|k| ((k * 37 + 11) % 101) as f64 - 50.0).collect();
            let slots = fft.slots(&m);
            for (j, slot) in slots.iter().enumerate() {
                let expected = naive(&m, j);
                assert!((0..2).all(|part| (slot[part] - expected[part]).abs() < 1e-9), "{n} {j} {slot:?} {expected:?}");
            }
            let back = fft.coefficients(&slots);
            assert!(back.iter().zip(&m).all(|(b, m)| (b / (n / 2) as f64 - m).abs() < 1e-10));
        }
    }

    #[test]
    fn pairs_of_doubles_carry_ninety_bits() {
        let n = 2048;
        let fft = Fft::<DoubleDouble>::new(n);
        let m: Vec<i128> =
            (0..n as i128).map(|k| (((k * k * k + 7) % (1 << 20)) << 67) | ((k * 77) & 0xffff)).collect();
        let pairs: Vec<DoubleDouble> = m.iter().map(|&m| DoubleDouble::from_integer(m)).collect();
        let back = fft.coefficients(&fft.slots(&pairs));
        let scale = DoubleDouble::new(2.0 / n as f64);
        assert!(back.iter().zip(&m).all(|(&b, &m)| (b * scale).round() == m));
        let double = Fft::<f64>::new(n).slots(&m.iter().map(|&m| m as f64).collect::<Vec<_>>());
        for (pair, double) in fft.slots(&pairs).iter().zip(&double) {
            assert!((0..2).all(|part| (pair[part].to_f64() - double[part]).abs() < 2f64.powi(87 + 11 - 45)));
        }
    }
}
