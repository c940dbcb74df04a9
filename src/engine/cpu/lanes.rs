//! Vectors of 32-bit words of one instruction set, for the loops that compilers do not vectorise well by themselves.
//!
//! The vector units hand out a token only where the processor has them, so everything here is safe. Code that takes a
//! token must be `#[inline(always)]` below [`Lanes::run`], closures too, else it is compiled without the wide instructions
//! and becomes a hundred times slower.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{__m256i, __m512i};

use bytemuck::Pod;
#[cfg(target_arch = "x86_64")]
use pulp::{
    cast,
    x86::{V3, V4},
};

/// An instruction set with vectors of `WIDTH` words of 32 bits; arithmetic wraps.
pub(super) trait Lanes: Copy {
    /// `log2 WIDTH`.
    const LOG_WIDTH: u32;
    /// Words of a vector.
    const WIDTH: usize = 1 << Self::LOG_WIDTH;
    /// `log2` of the number of vectors that a transform may hold in registers, twiddle factors beside them.
    const LOG_ROWS: u32;
    /// `[u32; WIDTH]`.
    type Words: Pod;
    /// A vector in a register.
    type Vector: Copy;

    /// Runs `f`, compiled for this instruction set.
    fn run<R>(self, f: impl FnOnce() -> R) -> R;

    fn load(self, words: &Self::Words) -> Self::Vector;
    fn store(self, words: &mut Self::Words, x: Self::Vector);
    fn splat(self, word: u32) -> Self::Vector;
    /// The first `2^log_period <= WIDTH` words of `words`, over and over; zeros if there are not as many.
    fn repeat(self, words: &[u32], log_period: u32) -> Self::Vector;

    fn add(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    fn sub(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// The smaller one, as unsigned integers.
    fn min(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// Low words of the products.
    fn mul_low(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// High words of the products.
    #[inline(always)]
    fn mul_high(self, a: Self::Vector, b: Self::Vector) -> Self::Vector {
        self.join_high(self.mul_even(a, b), self.mul_even(self.odd(a), self.odd(b)))
    }
    /// [`Self::mul_high`] where all words of `b` at odd places equal their left neighbours.
    #[inline(always)]
    fn mul_high_by_pairs(self, a: Self::Vector, b: Self::Vector) -> Self::Vector {
        self.join_high(self.mul_even(a, b), self.mul_even(self.odd(a), b))
    }

    /// Products of the words at even places, 64 bits each, the low word first.
    fn mul_even(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// The words at odd places in their left neighbours' place, zeros in theirs.
    fn odd(self, x: Self::Vector) -> Self::Vector;
    /// Sums of 64-bit words.
    fn add_wide(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// 64-bit words divided by `2^by`, `by < 64`.
    fn shift_wide(self, x: Self::Vector, by: u32) -> Self::Vector;
    /// Low words of 64-bit words: those of `even` at even places, those of `odd` at odd ones.
    fn join_low(self, even: Self::Vector, odd: Self::Vector) -> Self::Vector;
    /// As [`Self::join_low`], the high words.
    fn join_high(self, even: Self::Vector, odd: Self::Vector) -> Self::Vector;

    /// Sums of the two products of signed 16-bit halves: `low(a) low(b) + high(a) high(b)`.
    fn dot_halves(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;

    /// `(low, carry)` with `x = low + 2^15 carry`, signed, `low` in `[0, 2^15)`.
    fn carry(self, x: Self::Vector) -> (Self::Vector, Self::Vector);

    /// `x[i mod WIDTH]` for every word `i` of `indices`.
    fn permute(self, x: Self::Vector, indices: Self::Vector) -> Self::Vector;
    /// `a0 b0 a1 b1 ..`, as two vectors.
    fn interleave(self, a: Self::Vector, b: Self::Vector) -> (Self::Vector, Self::Vector);
    /// The inverse of [`Self::interleave`].
    fn deinterleave(self, a: Self::Vector, b: Self::Vector) -> (Self::Vector, Self::Vector);
}

/// What can run on any vectors.
pub(super) trait WithLanes {
    /// Runs on the vectors of `lanes`; must be `#[inline(always)]`.
    fn with<L: Lanes>(self, lanes: L);
}

/// Runs `op` on the widest vectors of this machine of which a block of `words` words has a whole number.
pub(super) fn with_widest(words: usize, op: impl WithLanes) {
    #[cfg(target_arch = "x86_64")]
    {
        if words.is_multiple_of(V4::WIDTH)
            && let Some(lanes) = V4::try_new()
        {
            return lanes.run(
                #[inline(always)]
                || op.with(lanes),
            );
        }
        if words.is_multiple_of(V3::WIDTH)
            && let Some(lanes) = V3::try_new()
        {
            return lanes.run(
                #[inline(always)]
                || op.with(lanes),
            );
        }
    }
    op.with(Portable);
}

/// Four lanes in plain Rust, for every processor; compilers turn them into 128-bit vectors.
#[derive(Clone, Copy)]
pub(super) struct Portable;

impl Lanes for Portable {
    const LOG_WIDTH: u32 = 2;
    const LOG_ROWS: u32 = 2;
    type Words = [u32; 4];
    type Vector = [u32; 4];

    #[inline(always)]
    fn run<R>(self, f: impl FnOnce() -> R) -> R {
        f()
    }

    #[inline(always)]
    fn load(self, words: &[u32; 4]) -> [u32; 4] {
        *words
    }

    #[inline(always)]
    fn store(self, words: &mut [u32; 4], x: [u32; 4]) {
        *words = x;
    }

    #[inline(always)]
    fn splat(self, word: u32) -> [u32; 4] {
        [word; 4]
    }

    #[inline(always)]
    fn repeat(self, words: &[u32], log_period: u32) -> [u32; 4] {
        match (log_period, words) {
            (0, &[a, ..]) => [a; 4],
            (1, &[a, b, ..]) => [a, b, a, b],
            (_, &[a, b, c, d, ..]) => [a, b, c, d],
            _ => [0; 4],
        }
    }

    #[inline(always)]
    fn add(self, a: [u32; 4], b: [u32; 4]) -> [u32; 4] {
        std::array::from_fn(|i| a[i].wrapping_add(b[i]))
    }

    #[inline(always)]
    fn sub(self, a: [u32; 4], b: [u32; 4]) -> [u32; 4] {
        std::array::from_fn(|i| a[i].wrapping_sub(b[i]))
    }

    #[inline(always)]
    fn min(self, a: [u32; 4], b: [u32; 4]) -> [u32; 4] {
        std::array::from_fn(|i| a[i].min(b[i]))
    }

    #[inline(always)]
    fn mul_low(self, a: [u32; 4], b: [u32; 4]) -> [u32; 4] {
        std::array::from_fn(|i| a[i].wrapping_mul(b[i]))
    }

    #[inline(always)]
    fn mul_even(self, a: [u32; 4], b: [u32; 4]) -> [u32; 4] {
        narrow([a[0] as u64 * b[0] as u64, a[2] as u64 * b[2] as u64])
    }

    #[inline(always)]
    fn odd(self, x: [u32; 4]) -> [u32; 4] {
        [x[1], 0, x[3], 0]
    }

    #[inline(always)]
    fn add_wide(self, a: [u32; 4], b: [u32; 4]) -> [u32; 4] {
        let (a, b) = (widen(a), widen(b));
        narrow([a[0].wrapping_add(b[0]), a[1].wrapping_add(b[1])])
    }

    #[inline(always)]
    fn shift_wide(self, x: [u32; 4], by: u32) -> [u32; 4] {
        narrow(widen(x).map(|x| x >> (by & 63)))
    }

    #[inline(always)]
    fn join_low(self, even: [u32; 4], odd: [u32; 4]) -> [u32; 4] {
        [even[0], odd[0], even[2], odd[2]]
    }

    #[inline(always)]
    fn join_high(self, even: [u32; 4], odd: [u32; 4]) -> [u32; 4] {
        [even[1], odd[1], even[3], odd[3]]
    }

    #[inline(always)]
    fn dot_halves(self, a: [u32; 4], b: [u32; 4]) -> [u32; 4] {
        let product = |x: u32, y: u32| (x as i16 as i32).wrapping_mul(y as i16 as i32);
        std::array::from_fn(|i| product(a[i], b[i]).wrapping_add(product(a[i] >> 16, b[i] >> 16)) as u32)
    }

    #[inline(always)]
    fn carry(self, x: [u32; 4]) -> ([u32; 4], [u32; 4]) {
        (x.map(|x| x & 0x7fff), x.map(|x| (x as i32 >> 15) as u32))
    }

    #[inline(always)]
    fn permute(self, x: [u32; 4], indices: [u32; 4]) -> [u32; 4] {
        indices.map(|i| x[i as usize % 4])
    }

    #[inline(always)]
    fn interleave(self, a: [u32; 4], b: [u32; 4]) -> ([u32; 4], [u32; 4]) {
        ([a[0], b[0], a[1], b[1]], [a[2], b[2], a[3], b[3]])
    }

    #[inline(always)]
    fn deinterleave(self, a: [u32; 4], b: [u32; 4]) -> ([u32; 4], [u32; 4]) {
        ([a[0], a[2], b[0], b[2]], [a[1], a[3], b[1], b[3]])
    }
}

/// AVX2: eight lanes.
#[cfg(target_arch = "x86_64")]
impl Lanes for V3 {
    const LOG_WIDTH: u32 = 3;
    const LOG_ROWS: u32 = 2;
    type Words = [u32; 8];
    type Vector = __m256i;

    #[inline(always)]
    fn run<R>(self, f: impl FnOnce() -> R) -> R {
        self.vectorize(f)
    }

    #[inline(always)]
    fn load(self, words: &[u32; 8]) -> Self::Vector {
        cast(*words)
    }

    #[inline(always)]
    fn store(self, words: &mut [u32; 8], x: Self::Vector) {
        *words = cast(x);
    }

    #[inline(always)]
    fn splat(self, word: u32) -> Self::Vector {
        self.avx._mm256_set1_epi32(word as i32)
    }

    #[inline(always)]
    fn repeat(self, words: &[u32], log_period: u32) -> Self::Vector {
        match log_period {
            0 => self.splat(first::<1>(words)[0]),
            1 => self.avx._mm256_set1_epi64x(cast(first::<2>(words))),
            2 => self.avx2._mm256_broadcastsi128_si256(cast(first::<4>(words))),
            _ => cast(first::<8>(words)),
        }
    }

    #[inline(always)]
    fn add(self, a: Self::Vector, b: Self::Vector) -> Self::Vector {
        self.avx2._mm256_add_epi32(a, b)
    }

    #[inline(always)]
    fn sub(self, a: Self::Vector, b: Self::Vector) -> Self::Vector {
        self.avx2._mm256_sub_epi32(a, b)
    }

    #[inline(always)]
    fn min(self, a: Self::Vector, b: Self::Vector) -> Self::Vector {
        self.avx2._mm256_min_epu32(a, b)
    }

    #[inline(always)]
    fn mul_low(self, a: Self::Vector, b: Self::Vector) -> Self::Vector {
        self.avx2._mm256_mullo_epi32(a, b)
    }

    #[inline(always)]
    fn mul_even(self, a: Self::Vector, b: Self::Vector) -> Self::Vector {
        self.avx2._mm256_mul_epu32(a, b)
    }

    #[inline(always)]
    fn odd(self, x: Self::Vector) -> Self::Vector {
        self.avx2._mm256_srli_epi64::<32>(x)
    }

    #[inline(always)]
    fn add_wide(self, a: Self::Vector, b: Self::Vector) -> Self::Vector {
        self.avx2._mm256_add_epi64(a, b)
    }

    #[inline(always)]
    fn shift_wide(self, x: Self::Vector, by: u32) -> Self::Vector {
        self.avx2._mm256_srlv_epi64(x, self.avx._mm256_set1_epi64x(by as i64))
    }

    #[inline(always)]
    fn join_low(self, even: Self::Vector, odd: Self::Vector) -> Self::Vector {
        self.avx2._mm256_blend_epi32::<0b1010_1010>(even, self.avx2._mm256_slli_epi64::<32>(odd))
    }

    #[inline(always)]
    fn join_high(self, even: Self::Vector, odd: Self::Vector) -> Self::Vector {
        self.avx2._mm256_blend_epi32::<0b1010_1010>(self.odd(even), odd)
    }

    #[inline(always)]
    fn dot_halves(self, a: Self::Vector, b: Self::Vector) -> Self::Vector {
        self.avx2._mm256_madd_epi16(a, b)
    }

    #[inline(always)]
    fn carry(self, x: Self::Vector) -> (Self::Vector, Self::Vector) {
        (self.avx2._mm256_and_si256(x, self.splat(0x7fff)), self.avx2._mm256_srai_epi32::<15>(x))
    }

    #[inline(always)]
    fn permute(self, x: Self::Vector, indices: Self::Vector) -> Self::Vector {
        self.avx2._mm256_permutevar8x32_epi32(x, indices)
    }

    #[inline(always)]
    fn interleave(self, a: Self::Vector, b: Self::Vector) -> (Self::Vector, Self::Vector) {
        let (low, high) = (self.avx2._mm256_unpacklo_epi32(a, b), self.avx2._mm256_unpackhi_epi32(a, b));
        (self.avx2._mm256_permute2x128_si256::<0x20>(low, high), self.avx2._mm256_permute2x128_si256::<0x31>(low, high))
    }

    #[inline(always)]
    fn deinterleave(self, a: Self::Vector, b: Self::Vector) -> (Self::Vector, Self::Vector) {
        // Even words, then odd words, of each half of a and of b.
        let (a, b) =
            (self.avx2._mm256_shuffle_epi32::<0b11_01_10_00>(a), self.avx2._mm256_shuffle_epi32::<0b11_01_10_00>(b));
        let (even, odd) = (self.avx2._mm256_unpacklo_epi64(a, b), self.avx2._mm256_unpackhi_epi64(a, b));
        (
            self.avx2._mm256_permute4x64_epi64::<0b11_01_10_00>(even),
            self.avx2._mm256_permute4x64_epi64::<0b11_01_10_00>(odd),
        )
    }
}

/// AVX-512: sixteen lanes.
#[cfg(target_arch = "x86_64")]
impl Lanes for V4 {
    const LOG_WIDTH: u32 = 4;
    const LOG_ROWS: u32 = 3;
    type Words = [u32; 16];
    type Vector = __m512i;

    #[inline(always)]
    fn run<R>(self, f: impl FnOnce() -> R) -> R {
        self.vectorize(f)
    }

    #[inline(always)]
    fn load(self, words: &[u32; 16]) -> Self::Vector {
        cast(*words)
    }

    #[inline(always)]
    fn store(self, words: &mut [u32; 16], x: Self::Vector) {
        *words = cast(x);
    }

    #[inline(always)]
    fn splat(self, word: u32) -> Self::Vector {
        self.avx512f._mm512_set1_epi32(word as i32)
    }

    #[inline(always)]
    fn repeat(self, words: &[u32], log_period: u32) -> Self::Vector {
        match log_period {
            0 => self.splat(first::<1>(words)[0]),
            1 => self.avx512f._mm512_set1_epi64(cast(first::<2>(words))),
            2 => self.avx512f._mm512_broadcast_i32x4(cast(first::<4>(words))),
            3 => self.avx512f._mm512_broadcast_i64x4(cast(first::<8>(words))),
            _ => cast(first::<16>(words)),
        }
    }

    #[inline(always)]
    fn add(self, a: Self::Vector, b: Self::Vector) -> Self::Vector {
        self.avx512f._mm512_add_epi32(a, b)
    }

    #[inline(always)]
    fn sub(self, a: Self::Vector, b: Self::Vector) -> Self::Vector {
        self.avx512f._mm512_sub_epi32(a, b)
    }

    #[inline(always)]
    fn min(self, a: Self::Vector, b: Self::Vector) -> Self::Vector {
        self.avx512f._mm512_min_epu32(a, b)
    }

    #[inline(always)]
    fn mul_low(self, a: Self::Vector, b: Self::Vector) -> Self::Vector {
        self.avx512f._mm512_mullo_epi32(a, b)
    }

    #[inline(always)]
    fn mul_even(self, a: Self::Vector, b: Self::Vector) -> Self::Vector {
        self.avx512f._mm512_mul_epu32(a, b)
    }

    #[inline(always)]
    fn odd(self, x: Self::Vector) -> Self::Vector {
        self.avx512f._mm512_srli_epi64::<32>(x)
    }

    #[inline(always)]
    fn add_wide(self, a: Self::Vector, b: Self::Vector) -> Self::Vector {
        self.avx512f._mm512_add_epi64(a, b)
    }

    #[inline(always)]
    fn shift_wide(self, x: Self::Vector, by: u32) -> Self::Vector {
        self.avx512f._mm512_srlv_epi64(x, self.avx512f._mm512_set1_epi64(by as i64))
    }

    #[inline(always)]
    fn join_low(self, even: Self::Vector, odd: Self::Vector) -> Self::Vector {
        self.avx512f._mm512_mask_shuffle_epi32::<0b10_10_00_00>(even, 0xaaaa, odd)
    }

    #[inline(always)]
    fn join_high(self, even: Self::Vector, odd: Self::Vector) -> Self::Vector {
        self.avx512f._mm512_mask_shuffle_epi32::<0b11_11_01_01>(odd, 0x5555, even)
    }

    #[inline(always)]
    fn dot_halves(self, a: Self::Vector, b: Self::Vector) -> Self::Vector {
        self.avx512bw._mm512_madd_epi16(a, b)
    }

    #[inline(always)]
    fn carry(self, x: Self::Vector) -> (Self::Vector, Self::Vector) {
        (self.avx512f._mm512_and_si512(x, self.splat(0x7fff)), self.avx512f._mm512_srai_epi32::<15>(x))
    }

    #[inline(always)]
    fn permute(self, x: Self::Vector, indices: Self::Vector) -> Self::Vector {
        self.avx512f._mm512_permutexvar_epi32(indices, x)
    }

    #[inline(always)]
    fn interleave(self, a: Self::Vector, b: Self::Vector) -> (Self::Vector, Self::Vector) {
        // Places 0..16 are a, 16..32 are b.
        const LOW: [u32; 16] = [0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23];
        const HIGH: [u32; 16] = [8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31];
        (
            self.avx512f._mm512_permutex2var_epi32(a, cast(LOW), b),
            self.avx512f._mm512_permutex2var_epi32(a, cast(HIGH), b),
        )
    }

    #[inline(always)]
    fn deinterleave(self, a: Self::Vector, b: Self::Vector) -> (Self::Vector, Self::Vector) {
        const EVEN: [u32; 16] = [0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30];
        const ODD: [u32; 16] = [1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31];
        (
            self.avx512f._mm512_permutex2var_epi32(a, cast(EVEN), b),
            self.avx512f._mm512_permutex2var_epi32(a, cast(ODD), b),
        )
    }
}

/// Four words as two of 64 bits.
#[inline(always)]
fn widen(x: [u32; 4]) -> [u64; 2] {
    [x[0] as u64 | (x[1] as u64) << 32, x[2] as u64 | (x[3] as u64) << 32]
}

/// The inverse of [`widen`].
#[inline(always)]
fn narrow([a, b]: [u64; 2]) -> [u32; 4] {
    [a as u32, (a >> 32) as u32, b as u32, (b >> 32) as u32]
}

/// The first words of `words`, zeros if there are too few.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn first<const K: usize>(words: &[u32]) -> [u32; K] {
    words.first_chunk().copied().unwrap_or([0; K])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Every operation against one word at a time.
    fn check<L: Lanes>(lanes: L, a: &[u32], b: &[u32]) {
        let words = |x: L::Vector| {
            let mut words: L::Words = bytemuck::Zeroable::zeroed();
            lanes.store(&mut words, x);
            bytemuck::cast_slice::<L::Words, u32>(&[words]).to_vec()
        };
        let load = |x: &[u32]| lanes.load(&bytemuck::cast_slice(&x[..L::WIDTH])[0]);
        let (x, y) = (load(a), load(b));
        let each =
            |f: &dyn Fn(u32, u32) -> u32| a.iter().zip(b).take(L::WIDTH).map(|(&a, &b)| f(a, b)).collect::<Vec<_>>();
        let high = |a: u32, b: u32| ((a as u64 * b as u64) >> 32) as u32;
        assert_eq!(words(lanes.add(x, y)), each(&u32::wrapping_add));
        assert_eq!(words(lanes.sub(x, y)), each(&u32::wrapping_sub));
        assert_eq!(words(lanes.min(x, y)), each(&u32::min));
        assert_eq!(words(lanes.mul_low(x, y)), each(&u32::wrapping_mul));
        assert_eq!(words(lanes.mul_high(x, y)), each(&high));
        let wide =
            |x: L::Vector| -> Vec<u64> { words(x).chunks(2).map(|x| x[0] as u64 | (x[1] as u64) << 32).collect() };
        let (even, odd) = (lanes.mul_even(x, y), lanes.mul_even(lanes.odd(x), lanes.odd(y)));
        assert_eq!(words(lanes.join_low(even, odd)), each(&u32::wrapping_mul));
        assert_eq!(words(lanes.join_high(even, odd)), each(&high));
        let sums: Vec<u64> = wide(x).iter().zip(wide(y)).map(|(&x, y)| x.wrapping_add(y)).collect();
        assert_eq!(wide(lanes.add_wide(x, y)), sums);
        for by in [0, 13, 32, 63] {
            assert_eq!(wide(lanes.shift_wide(x, by)), wide(x).iter().map(|x| x >> by).collect::<Vec<_>>());
        }
        let product = |a: u32, b: u32| (a as i16 as i32) * (b as i16 as i32);
        let dot = |a: u32, b: u32| product(a, b).wrapping_add(product(a >> 16, b >> 16)) as u32;
        assert_eq!(words(lanes.dot_halves(x, y)), each(&dot));
        let (low, carry) = lanes.carry(x);
        assert_eq!(words(low), a[..L::WIDTH].iter().map(|&a| a & 0x7fff).collect::<Vec<_>>());
        assert_eq!(
            words(carry),
            a[..L::WIDTH].iter().map(|&a| (a as i32).div_euclid(1 << 15) as u32).collect::<Vec<_>>()
        );
        assert_eq!(
            words(lanes.permute(x, y)),
            b[..L::WIDTH].iter().map(|&i| a[i as usize % L::WIDTH]).collect::<Vec<_>>()
        );
        assert_eq!(
            words(lanes.mul_high_by_pairs(x, lanes.splat(b[0]))),
            a[..L::WIDTH].iter().map(|&a| high(a, b[0])).collect::<Vec<_>>()
        );
        for log in 0..=L::LOG_WIDTH {
            let expected: Vec<u32> = (0..L::WIDTH).map(|i| a[i % (1 << log)]).collect();
            assert_eq!(words(lanes.repeat(a, log)), expected, "period 2^{log}");
        }
        let (low, high) = lanes.interleave(x, y);
        let mixed: Vec<u32> = a.iter().zip(b).take(L::WIDTH).flat_map(|(&a, &b)| [a, b]).collect();
        assert_eq!([words(low), words(high)].concat(), mixed);
        let (even, odd) = lanes.deinterleave(low, high);
        assert_eq!((words(even), words(odd)), (words(x), words(y)));
    }

    proptest! {
        #[test]
        fn every_instruction_set_computes_word_by_word(a: [u32; 16], b: [u32; 16]) {
            check(Portable, &a, &b);
            #[cfg(target_arch = "x86_64")]
            if let Some(lanes) = V3::try_new() {
                lanes.run(#[inline(always)] || check(lanes, &a, &b));
            }
            #[cfg(target_arch = "x86_64")]
            if let Some(lanes) = V4::try_new() {
                lanes.run(#[inline(always)] || check(lanes, &a, &b));
            }
        }
    }
}
