//! NTT-friendly primes.

use super::Modulus;

/// The `count` largest primes below `2^bits` that are 1 mod `2n`, in descending order; `None` when there are not that many
/// or the arguments are out of range (`n` a power of two, `bits <= 30`).
///
/// Taken from the top of the octave: `log2` of a product of `k` of them is `k * bits` to within a few thousandths.
pub fn ntt_primes(bits: u32, n: usize, count: usize) -> Option<Vec<u32>> {
    if !n.is_power_of_two() || !(4..=Modulus::MAX_BITS).contains(&bits) || 2 * n as u64 >= 1 << bits {
        return None;
    }
    let step = 2 * n as u32;
    let top = 1u32 << bits;
    // Stays in the octave [2^(bits-1), 2^bits).
    let mut candidate = top - step + 1;
    let mut found = Vec::with_capacity(count);
    while found.len() < count {
        if candidate < top / 2 {
            return None;
        }
        if is_prime(candidate) {
            found.push(candidate);
        }
        candidate = candidate.checked_sub(step)?;
    }
    Some(found)
}

/// The largest prime of exactly `bits` bits that is 1 mod `2n`: a plaintext modulus with `n` slots. `None` if there is none, or
/// the arguments are out of range (`n` a power of two, `bits` up to 62).
pub fn slot_prime(bits: u32, n: usize) -> Option<u64> {
    if !n.is_power_of_two() || !(4..=62).contains(&bits) || 2 * n as u64 >= 1 << bits {
        return None;
    }
    let (step, top) = (2 * n as u64, 1u64 << bits);
    (1..=top / 2 / step).map(|k| top - k * step + 1).find(|&p| is_prime64(p))
}

/// Deterministic Miller-Rabin for 64-bit integers (the first twelve primes as bases: Sorenson and Webster 2015).
pub fn is_prime64(p: u64) -> bool {
    const BASES: [u64; 12] = [2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37];
    if p < 2 {
        return false;
    }
    if let Some(base) = BASES.into_iter().find(|&base| p.is_multiple_of(base)) {
        return p == base;
    }
    let mul = |a: u64, b: u64| (a as u128 * b as u128 % p as u128) as u64;
    let s = (p - 1).trailing_zeros();
    'witness: for a in BASES {
        let (mut base, mut e, mut x) = (a, (p - 1) >> s, 1);
        while e > 0 {
            if e & 1 == 1 {
                x = mul(x, base);
            }
            base = mul(base, base);
            e >>= 1;
        }
        if x == 1 || x == p - 1 {
            continue;
        }
        for _ in 1..s {
            x = mul(x, x);
            if x == p - 1 {
                continue 'witness;
            }
        }
        return false;
    }
    true
}

/// Deterministic Miller-Rabin for 32-bit integers (bases 2, 7, 61: Jaeschke 1993).
pub fn is_prime(p: u32) -> bool {
    if p < 2 {
        return false;
    }
    for small in [2u32, 3, 5, 7, 11, 13, 17, 19, 23, 61] {
        if p.is_multiple_of(small) {
            return p == small;
        }
    }
    let pow = |a: u64, mut e: u32| {
        let (mut base, mut acc) = (a % p as u64, 1u64);
        while e > 0 {
            if e & 1 == 1 {
                acc = acc * base % p as u64;
            }
            base = base * base % p as u64;
            e >>= 1;
        }
        acc
    };
    let s = (p - 1).trailing_zeros();
    let d = (p - 1) >> s;
    'witness: for a in [2u64, 7, 61] {
        let mut x = pow(a, d);
        if x == 1 || x == p as u64 - 1 {
            continue;
        }
        for _ in 1..s {
            x = x * x % p as u64;
            if x == p as u64 - 1 {
                continue 'witness;
            }
        }
        return false;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_trial_division() {
        let naive = |p: u32| p >= 2 && (2..).take_while(|d| d * d <= p).all(|d| !p.is_multiple_of(d));
        assert!((0..20_000).all(|p| is_prime(p) == naive(p) && is_prime64(p.into()) == naive(p)));
        // Strong pseudoprimes to the first bases, and a product of two large primes.
        assert!(
            is_prime64(u64::MAX - 58)
                && !is_prime64(3_825_123_056_546_413_051)
                && !is_prime64(4_294_967_291 * 4_294_967_279)
        );
        assert!(is_prime(4_294_967_291) && !is_prime(4_294_967_295) && !is_prime(3_215_031_751));
    }

    #[test]
    fn primes_are_friendly_and_at_the_top() {
        let primes = ntt_primes(30, 8192, 6).unwrap();
        assert!(primes.windows(2).all(|w| w[0] > w[1]));
        assert!(primes.iter().all(|p| p % 16384 == 1 && is_prime(*p) && *p > (1 << 30) - (1 << 24)));
        let slots = slot_prime(38, 8192).unwrap();
        assert!(slots % 16384 == 1 && is_prime64(slots) && slots > (1 << 38) - (1 << 24));
        assert!(slot_prime(14, 8192).is_none() && slot_prime(63, 8192).is_none());
        assert!(ntt_primes(14, 8192, 1).is_none() && ntt_primes(31, 8192, 1).is_none());
    }
}
