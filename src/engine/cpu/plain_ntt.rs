//! The negacyclic NTT on vectors: the permissive implementation, the twin of the NTT shaders and the source of their
//! tables.
//!
//! Forward: Cooley-Tukey with `psi` merged into the twiddles (Longa and Naehrig, CANS 2016). Inverse: Gentleman-Sande. The
//! butterflies are lazy (Harvey, "Faster arithmetic for number-theoretic transforms", 2014): values stay in `[0, 4p)`
//! forward and `[0, 2p)` inverse, and multiplications by constants follow Shoup. No bit-reversal pass is needed: the
//! forward transform takes natural order to bit-reversed order, `fwd(f)[i] = f(psi^(2*brv(i)+1))`, and the inverse goes back.
//!
//! A butterfly of vectors is 12 instructions, 4 of them multiplications; up to three stages run in registers between a
//! load and a store, so that the multipliers are the limit and not the cache.

use super::{
    lane_residue::{Factor, LaneModulus},
    lanes::{Lanes, WithLanes, with_widest},
};
use crate::{arith::Modulus, engine::RnsRing};

/// Twiddle factors of one limb of a ring, as CPU and GPU use them.
///
/// A stage with `m` blocks (`m = 1, 2, 4, .. N/2`) takes the factor of its block `i` at index `m + i`. Index 0 is unused by
/// the transforms (it holds 1). A `_shoup` table holds `floor(w * 2^32 / p)` for every `w` of its table.
pub(crate) struct Twiddles {
    /// The modulus `p`.
    pub modulus: Modulus,
    /// `psi^brv(k)`, `brv` on `log2 N` bits, at index `k < N`.
    pub forward: Vec<u32>,
    /// Shoup companions of `forward`.
    pub forward_shoup: Vec<u32>,
    /// `psi^-brv(k)` at index `k < N`.
    pub inverse: Vec<u32>,
    /// Shoup companions of `inverse`.
    pub inverse_shoup: Vec<u32>,
    /// `N^-1 mod p`, which the sum half of the last inverse stage takes.
    pub n_inv: u32,
    /// Shoup companion of `n_inv`.
    pub n_inv_shoup: u32,
    /// `inverse[1] * N^-1 mod p`, which the difference half of the last inverse stage takes.
    pub last_inverse: u32,
    /// Shoup companion of `last_inverse`.
    pub last_inverse_shoup: u32,
}

impl Twiddles {
    /// Tables of limb `limb` of `ring`.
    pub fn new(ring: &RnsRing, limb: usize) -> Self {
        let (modulus, psi, n) = (ring.moduli()[limb], ring.psi()[limb], ring.n());
        let table = |root: u32| {
            let mut table = vec![1; n];
            let mut power = 1;
            for k in 0..n as u32 {
                table[(k.reverse_bits() >> (32 - ring.log_n())) as usize] = power;
                power = modulus.mul(power, root);
            }
            table
        };
        let shoup = |table: &[u32]| table.iter().map(|&w| modulus.shoup(w)).collect();
        let (forward, inverse) = (table(psi), table(modulus.inv(psi)));
        let n_inv = modulus.inv(modulus.reduce(n as u64));
        let last_inverse = modulus.mul(inverse[1], n_inv);
        Self {
            modulus,
            forward_shoup: shoup(&forward),
            inverse_shoup: shoup(&inverse),
            forward,
            inverse,
            n_inv,
            n_inv_shoup: modulus.shoup(n_inv),
            last_inverse,
            last_inverse_shoup: modulus.shoup(last_inverse),
        }
    }

    /// Coefficients in `[0, p)`, natural order, to NTT domain in `[0, p)`, in place; `x.len() == N`.
    pub fn forward(&self, x: &mut [u32]) {
        self.transform(None, x, Direction::Forward);
    }

    /// [`Self::forward`] of `x` into `out`, both of length N.
    pub fn forward_from(&self, x: &[u32], out: &mut [u32]) {
        self.transform(Some(x), out, Direction::Forward);
    }

    /// NTT domain in `[0, p)` to coefficients in `[0, p)`, `1/N` included, in place; `x.len() == N`.
    pub fn inverse(&self, x: &mut [u32]) {
        self.transform(None, x, Direction::Inverse);
    }

    /// [`Self::inverse`] of `x` into `out`, both of length N.
    pub fn inverse_from(&self, x: &[u32], out: &mut [u32]) {
        self.transform(Some(x), out, Direction::Inverse);
    }

    /// Values `first .. first + out.len()` of the transform of the polynomial with coefficients `low`, at least
    /// [`Self::SHORTEST`] of them, a power of two below N, and zeros above. `first` and `out.len()` are multiples of their number.
    ///
    /// A stage on zeros copies, so that the first `log2 (N / low.len())` stages leave `low` in every block of as many values.
    pub fn forward_low(&self, low: &[u32], first: usize, out: &mut [u32]) {
        with_widest(low.len() / 2, ForwardLow { tables: self, low, first, out });
    }

    /// Coefficients that [`Self::forward_low`] takes at least: two of the narrowest vectors.
    pub const SHORTEST: usize = 8;

    /// Transforms `x` in place, or `from` into `x`.
    fn transform(&self, from: Option<&[u32]>, x: &mut [u32], direction: Direction) {
        // Blocks of two vectors are the shortest.
        with_widest(x.len() / 2, Transform { tables: self, from, x, direction });
    }
}

struct Transform<'a> {
    tables: &'a Twiddles,
    from: Option<&'a [u32]>,
    x: &'a mut [u32],
    direction: Direction,
}

impl WithLanes for Transform<'_> {
    #[inline(always)]
    fn with<L: Lanes>(self, lanes: L) {
        let (vectors, x) = (Vectors::new(self.tables, lanes), bytemuck::cast_slice_mut(self.x));
        match (self.direction, self.from) {
            (Direction::Forward, None) => vectors.forward(InPlace, x),
            (Direction::Forward, Some(from)) => vectors.forward(From(bytemuck::cast_slice(from)), x),
            (Direction::Inverse, None) => vectors.inverse(InPlace, x),
            (Direction::Inverse, Some(from)) => vectors.inverse(From(bytemuck::cast_slice(from)), x),
        }
    }
}

struct ForwardLow<'a> {
    tables: &'a Twiddles,
    low: &'a [u32],
    first: usize,
    out: &'a mut [u32],
}

impl WithLanes for ForwardLow<'_> {
    #[inline(always)]
    fn with<L: Lanes>(self, lanes: L) {
        let blocks = self.tables.forward.len() / self.low.len();
        let k = blocks + self.first / self.low.len();
        let vectors = Vectors::new(self.tables, lanes);
        let low: &[L::Words] = bytemuck::cast_slice(self.low);
        let out: &mut [L::Words] = bytemuck::cast_slice_mut(self.out);
        match low.len() {
            2 => vectors.forward_tails::<2>(Repeat(low), out, k),
            4 => vectors.forward_tails::<4>(Repeat(low), out, k),
            TAIL => vectors.forward_tails::<TAIL>(Repeat(low), out, k),
            _ => {
                for (out, k) in out.chunks_exact_mut(low.len()).zip(k..) {
                    out.copy_from_slice(low);
                    vectors.forward_part(out, k);
                }
            }
        }
    }
}

/// Where the first pass of a transform reads its vectors.
trait Source<W>: Copy {
    /// Vector `index`, whose place in the result is `place`.
    fn vector<'a>(&'a self, place: &'a W, index: usize) -> &'a W;

    /// The source of the vectors from `first` on.
    fn part(self, first: usize) -> Self;
}

#[derive(Clone, Copy)]
struct InPlace;

impl<W> Source<W> for InPlace {
    #[inline(always)]
    fn vector<'a>(&'a self, place: &'a W, _: usize) -> &'a W {
        place
    }

    #[inline(always)]
    fn part(self, _: usize) -> Self {
        self
    }
}

/// Another array of the same length.
struct From<'a, W>(&'a [W]);

impl<W> Clone for From<'_, W> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}

impl<W> Copy for From<'_, W> {}

impl<W> Source<W> for From<'_, W> {
    #[inline(always)]
    fn vector<'a>(&'a self, _: &'a W, index: usize) -> &'a W {
        &self.0[index]
    }

    #[inline(always)]
    fn part(self, first: usize) -> Self {
        Self(&self.0[first..])
    }
}

/// The same few vectors, a power of two, over and over.
struct Repeat<'a, W>(&'a [W]);

impl<W> Clone for Repeat<'_, W> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}

impl<W> Copy for Repeat<'_, W> {}

impl<W> Source<W> for Repeat<'_, W> {
    #[inline(always)]
    fn vector<'a>(&'a self, _: &'a W, index: usize) -> &'a W {
        &self.0[index & (self.0.len() - 1)]
    }

    #[inline(always)]
    fn part(self, _: usize) -> Self {
        self
    }
}

#[derive(Clone, Copy)]
enum Direction {
    Forward,
    Inverse,
}

/// Words that the first-level cache holds: a larger transform first becomes eight smaller ones.
const CACHED_WORDS: usize = 8192;

/// Vectors of the blocks that are transformed to the end without leaving the registers.
const TAIL: usize = 8;

/// The transforms of one limb on vectors of one instruction set.
///
/// A block of the transform is named by its place in the tree of blocks: the root is 1, the halves of block `k` are `2k`
/// and `2k + 1`. The factor of a block is at its name's index in the tables. A pass over columns loads one vector of each
/// of `ROWS` equal parts of a block and does `log2 ROWS` stages on them; the pass over tails does all stages of a block of
/// a few vectors. Blocks shorter than two vectors are interleaved with others, so that all lanes always work.
///
/// Nothing wraps on canonical input; arithmetic of vectors never panics on any other.
#[derive(Clone, Copy)]
struct Vectors<'a, L: Lanes> {
    tables: &'a Twiddles,
    lanes: L,
    m: LaneModulus<L>,
}

impl<'a, L: Lanes> Vectors<'a, L> {
    #[inline(always)]
    fn new(tables: &'a Twiddles, lanes: L) -> Self {
        Self { tables, lanes, m: LaneModulus::new(lanes, tables.modulus) }
    }

    #[inline(always)]
    fn forward(self, from: impl Source<L::Words>, x: &mut [L::Words]) {
        match x.len() {
            2 => return self.forward_tails::<2>(from, x, 1),
            4 => return self.forward_tails::<4>(from, x, 1),
            TAIL => return self.forward_tails::<TAIL>(from, x, 1),
            _ => {}
        }
        let log = first_pass::<L>(x.len());
        self.forward_pass(log, from, x, 1);
        let part = x.len() >> log;
        for (part, k) in x.chunks_exact_mut(part).zip(1 << log..) {
            self.forward_part(part, k);
        }
    }

    /// All stages of block `k`.
    #[inline(always)]
    fn forward_part(self, x: &mut [L::Words], k: usize) {
        let mut block = x.len();
        while block > TAIL {
            let log = stages_of_pass::<L>((block / TAIL).ilog2());
            let first = k * (x.len() / block);
            for (block, k) in x.chunks_exact_mut(block).zip(first..) {
                self.forward_pass(log, InPlace, block, k);
            }
            block >>= log;
        }
        self.forward_tails::<TAIL>(InPlace, x, k * (x.len() / TAIL));
    }

    /// The first `log` stages of block `k`.
    #[inline(always)]
    fn forward_pass(self, log: u32, from: impl Source<L::Words>, x: &mut [L::Words], k: usize) {
        match log {
            3 => self.forward_columns::<8>(from, x, k),
            2 => self.forward_columns::<4>(from, x, k),
            _ => self.forward_columns::<2>(from, x, k),
        }
    }

    /// The first `log2 ROWS` stages of block `k`.
    #[inline(always)]
    fn forward_columns<const ROWS: usize>(self, from: impl Source<L::Words>, x: &mut [L::Words], k: usize) {
        let factors = self.factors::<ROWS>(&self.tables.forward, &self.tables.forward_shoup, k);
        let part = x.len() / ROWS;
        let mut parts = x.chunks_exact_mut(part);
        let rows: [&mut [L::Words]; ROWS] = std::array::from_fn(|_| parts.next().unwrap_or_default());
        for column in 0..part {
            let mut v = [self.lanes.splat(0); ROWS];
            for row in 0..ROWS {
                v[row] = self.lanes.load(from.vector(&rows[row][column], row * part + column));
            }
            self.forward_stages(&mut v, &factors);
            for row in 0..ROWS {
                self.lanes.store(&mut rows[row][column], v[row]);
            }
        }
    }

    /// All stages of the blocks of `ROWS` vectors from `k` on, and the full reduction.
    #[inline(always)]
    fn forward_tails<const ROWS: usize>(self, from: impl Source<L::Words>, x: &mut [L::Words], k: usize) {
        let (blocks, _) = x.as_chunks_mut::<ROWS>();
        for (index, block) in blocks.iter_mut().enumerate() {
            let k = k + index;
            let mut v = [self.lanes.splat(0); ROWS];
            for row in 0..ROWS {
                v[row] = self.lanes.load(from.vector(&block[row], index * ROWS + row));
            }
            self.forward_stages(&mut v, &self.factors(&self.tables.forward, &self.tables.forward_shoup, k));
            let pairs = k * ROWS / 2;
            self.forward_lane_stage(&mut v, pairs, 1);
            self.forward_lane_stage(&mut v, pairs, 2);
            self.forward_lane_stage(&mut v, pairs, 3);
            self.forward_lane_stage(&mut v, pairs, 4);
            for pair in 0..ROWS / 2 {
                (v[2 * pair], v[2 * pair + 1]) = self.lanes.interleave(v[2 * pair], v[2 * pair + 1]);
            }
            for (words, x) in block.iter_mut().zip(v) {
                self.lanes.store(words, self.m.reduce_once(self.m.reduce_once(x, self.m.two_p), self.m.p));
            }
        }
    }

    /// Stage `log` of pairs of vectors, of which `k` is the first, if they are long enough to have it.
    #[inline(always)]
    fn forward_lane_stage<const ROWS: usize>(self, v: &mut [L::Vector; ROWS], k: usize, log: u32) {
        if log > L::LOG_WIDTH {
            return;
        }
        for pair in 0..ROWS / 2 {
            let factor = self.lane_factors(&self.tables.forward, &self.tables.forward_shoup, k + pair, log);
            let (a, b) = self.lanes.interleave(v[2 * pair], v[2 * pair + 1]);
            (v[2 * pair], v[2 * pair + 1]) = self.forward_butterfly(a, self.m.mul_lazy_each(b, factor));
        }
    }

    /// Stages across vectors, factors as [`Self::factors`] has them. Stages are written out, here and elsewhere: only then the
    /// compiler keeps the vectors in registers.
    #[inline(always)]
    fn forward_stages<const ROWS: usize>(self, v: &mut [L::Vector; ROWS], factors: &[Factor<L>; ROWS]) {
        self.forward_stage::<ROWS, 4>(v, factors);
        self.forward_stage::<ROWS, 2>(v, factors);
        self.forward_stage::<ROWS, 1>(v, factors);
    }

    /// The stage between vectors `HALF` apart, if there are as many.
    #[inline(always)]
    fn forward_stage<const ROWS: usize, const HALF: usize>(
        self,
        v: &mut [L::Vector; ROWS],
        factors: &[Factor<L>; ROWS],
    ) {
        if HALF >= ROWS {
            return;
        }
        for row in 0..ROWS {
            if row & HALF == 0 {
                let product = self.m.mul_lazy(v[row + HALF], factors[(ROWS + row) / (2 * HALF)]);
                (v[row], v[row + HALF]) = self.forward_butterfly(v[row], product);
            }
        }
    }

    #[inline(always)]
    fn inverse(self, from: impl Source<L::Words>, x: &mut [L::Words]) {
        match x.len() {
            2 => return self.inverse_tails::<2>(from, x, 1),
            4 => return self.inverse_tails::<4>(from, x, 1),
            TAIL => return self.inverse_tails::<TAIL>(from, x, 1),
            _ => {}
        }
        let log = first_pass::<L>(x.len());
        let part = x.len() >> log;
        for (index, x) in x.chunks_exact_mut(part).enumerate() {
            self.inverse_part(from.part(index * part), x, (1 << log) + index);
        }
        self.inverse_pass(log, x, 1);
    }

    /// All stages of block `k`.
    #[inline(always)]
    fn inverse_part(self, from: impl Source<L::Words>, x: &mut [L::Words], k: usize) {
        self.inverse_tails::<TAIL>(from, x, k * (x.len() / TAIL));
        let mut block = TAIL;
        while block < x.len() {
            let log = stages_of_pass::<L>((x.len() / block).ilog2());
            block <<= log;
            let first = k * (x.len() / block);
            for (block, k) in x.chunks_exact_mut(block).zip(first..) {
                self.inverse_pass(log, block, k);
            }
        }
    }

    /// The last `log` stages of block `k`.
    #[inline(always)]
    fn inverse_pass(self, log: u32, x: &mut [L::Words], k: usize) {
        match log {
            3 => self.inverse_columns::<8>(x, k),
            2 => self.inverse_columns::<4>(x, k),
            _ => self.inverse_columns::<2>(x, k),
        }
    }

    /// The last `log2 ROWS` stages of block `k`.
    #[inline(always)]
    fn inverse_columns<const ROWS: usize>(self, x: &mut [L::Words], k: usize) {
        let factors = self.inverse_factors::<ROWS>(k);
        let part = x.len() / ROWS;
        let mut parts = x.chunks_exact_mut(part);
        let rows: [&mut [L::Words]; ROWS] = std::array::from_fn(|_| parts.next().unwrap_or_default());
        for column in 0..part {
            let mut v = [self.lanes.splat(0); ROWS];
            for row in 0..ROWS {
                v[row] = self.lanes.load(&rows[row][column]);
            }
            self.inverse_stages(&mut v, &factors, k);
            for row in 0..ROWS {
                self.lanes.store(&mut rows[row][column], v[row]);
            }
        }
    }

    /// All stages of the blocks of `ROWS` vectors from `k` on.
    #[inline(always)]
    fn inverse_tails<const ROWS: usize>(self, from: impl Source<L::Words>, x: &mut [L::Words], k: usize) {
        let (blocks, _) = x.as_chunks_mut::<ROWS>();
        for (index, block) in blocks.iter_mut().enumerate() {
            let k = k + index;
            let mut v = [self.lanes.splat(0); ROWS];
            for row in 0..ROWS {
                v[row] = self.lanes.load(from.vector(&block[row], index * ROWS + row));
            }
            for pair in 0..ROWS / 2 {
                (v[2 * pair], v[2 * pair + 1]) = self.lanes.deinterleave(v[2 * pair], v[2 * pair + 1]);
            }
            let pairs = k * ROWS / 2;
            self.inverse_lane_stage(&mut v, pairs, 4);
            self.inverse_lane_stage(&mut v, pairs, 3);
            self.inverse_lane_stage(&mut v, pairs, 2);
            self.inverse_lane_stage(&mut v, pairs, 1);
            self.inverse_stages(&mut v, &self.inverse_factors(k), k);
            for (words, x) in block.iter_mut().zip(v) {
                self.lanes.store(words, x);
            }
        }
    }

    /// The mirror of [`Self::forward_lane_stage`].
    #[inline(always)]
    fn inverse_lane_stage<const ROWS: usize>(self, v: &mut [L::Vector; ROWS], k: usize, log: u32) {
        if log > L::LOG_WIDTH {
            return;
        }
        for pair in 0..ROWS / 2 {
            let factor = self.lane_factors(&self.tables.inverse, &self.tables.inverse_shoup, k + pair, log);
            let (sum, difference) = self.inverse_butterfly(v[2 * pair], v[2 * pair + 1]);
            let product = self.m.mul_lazy_each(difference, factor);
            (v[2 * pair], v[2 * pair + 1]) = self.lanes.deinterleave(sum, product);
        }
    }

    /// The mirror of [`Self::forward_stages`]. The last stage of the transform, which ends block 1, multiplies the sums by
    /// `1/N`, which the factor of its differences has, and reduces fully.
    #[inline(always)]
    fn inverse_stages<const ROWS: usize>(self, v: &mut [L::Vector; ROWS], factors: &[Factor<L>; ROWS], k: usize) {
        self.inverse_stage::<ROWS, 1>(v, factors);
        self.inverse_stage::<ROWS, 2>(v, factors);
        self.inverse_stage::<ROWS, 4>(v, factors);
        if k == 1 {
            let n_inv = (self.lanes.splat(self.tables.n_inv), self.lanes.splat(self.tables.n_inv_shoup));
            for row in 0..ROWS {
                let x = if row < ROWS / 2 { self.m.mul_lazy(v[row], n_inv) } else { v[row] };
                v[row] = self.m.reduce_once(x, self.m.p);
            }
        }
    }

    /// The mirror of [`Self::forward_stage`].
    #[inline(always)]
    fn inverse_stage<const ROWS: usize, const HALF: usize>(
        self,
        v: &mut [L::Vector; ROWS],
        factors: &[Factor<L>; ROWS],
    ) {
        if HALF >= ROWS {
            return;
        }
        for row in 0..ROWS {
            if row & HALF == 0 {
                let (sum, difference) = self.inverse_butterfly(v[row], v[row + HALF]);
                (v[row], v[row + HALF]) = (sum, self.m.mul_lazy(difference, factors[(ROWS + row) / (2 * HALF)]));
            }
        }
    }

    /// [`Self::factors`] of an inverse pass.
    #[inline(always)]
    fn inverse_factors<const ROWS: usize>(self, k: usize) -> [Factor<L>; ROWS] {
        let mut factors = self.factors(&self.tables.inverse, &self.tables.inverse_shoup, k);
        if k == 1 {
            let tables = self.tables;
            factors[1] = (self.lanes.splat(tables.last_inverse), self.lanes.splat(tables.last_inverse_shoup));
        }
        factors
    }

    /// Factors of block `k` and of its parts, at their names in the tree below `k`; index 0 is unused.
    #[inline(always)]
    fn factors<const ROWS: usize>(self, table: &[u32], shoup: &[u32], k: usize) -> [Factor<L>; ROWS] {
        let mut factors = [(self.lanes.splat(0), self.lanes.splat(0)); ROWS];
        for name in 1..ROWS {
            let at = name + ((k - 1) << name.ilog2());
            factors[name] = (self.lanes.splat(table[at]), self.lanes.splat(shoup[at]));
        }
        factors
    }

    /// Factors of stage `log` of block `k` of two vectors, as interleaving has the lanes.
    #[inline(always)]
    fn lane_factors(self, table: &[u32], shoup: &[u32], k: usize, log: u32) -> Factor<L> {
        let at = k << log;
        (self.lanes.repeat(&table[at..], log), self.lanes.repeat(&shoup[at..], log))
    }

    /// `(a + w b, a - w b)` on `[0, 4p)`, given `a` and `w b`.
    #[inline(always)]
    fn forward_butterfly(self, a: L::Vector, product: L::Vector) -> (L::Vector, L::Vector) {
        let a = self.m.reduce_once(a, self.m.two_p);
        (self.lanes.add(a, product), self.lanes.sub(self.lanes.add(a, self.m.two_p), product))
    }

    /// `(a + b, a - b)`, on `[0, 2p)` the sum, on `[0, 4p)` the difference.
    #[inline(always)]
    fn inverse_butterfly(self, a: L::Vector, b: L::Vector) -> (L::Vector, L::Vector) {
        let sum = self.m.reduce_once(self.lanes.add(a, b), self.m.two_p);
        (sum, self.lanes.sub(self.lanes.add(a, self.m.two_p), b))
    }
}

/// How many stages the pass over all `vectors` vectors does: three where what follows shall fit the cache.
#[inline(always)]
fn first_pass<L: Lanes>(vectors: usize) -> u32 {
    if vectors * L::WIDTH > CACHED_WORDS { 3 } else { stages_of_pass::<L>((vectors / TAIL).ilog2()) }
}

/// How many of `stages` stages across vectors the next pass does: as many as fit the registers, but never one at the end.
#[inline(always)]
fn stages_of_pass<L: Lanes>(stages: u32) -> u32 {
    if L::LOG_ROWS == 3 && stages == 4 { 2 } else { stages.min(L::LOG_ROWS) }
}

#[cfg(test)]
mod tests {
    #[cfg(target_arch = "x86_64")]
    use pulp::x86::{V3, V4};

    use super::*;
    use crate::{arith::primes::ntt_primes, engine::cpu::lanes::Portable};

    /// `f(psi^(2*brv(i)+1))` by Horner's rule: quadratic, plainly right.
    fn naive(ring: &RnsRing, limb: usize, f: &[u32]) -> Vec<u32> {
        let (m, psi) = (ring.moduli()[limb], ring.psi()[limb]);
        (0..ring.n() as u32)
            .map(|i| {
                let brv = i.reverse_bits() >> (32 - ring.log_n());
                let x = m.pow(psi, 2 * brv as u64 + 1);
                f.iter().rev().fold(0, |acc, &c| m.add(m.mul(acc, x), c))
            })
            .collect()
    }

    /// Both directions by every instruction set of this machine that fits: `(name, forward, inverse)`.
    fn by_every_instruction_set(tables: &Twiddles, f: &[u32]) -> Vec<(&'static str, Vec<u32>, Vec<u32>)> {
        fn both<L: Lanes>(
            lanes: L,
            name: &'static str,
            tables: &Twiddles,
            f: &[u32],
        ) -> (&'static str, Vec<u32>, Vec<u32>) {
            let transformed = |direction| {
                let mut x = f.to_vec();
                let op = Transform { tables, from: None, x: &mut x, direction };
                lanes.run(
                    #[inline(always)]
                    || op.with(lanes),
                );
                x
            };
            (name, transformed(Direction::Forward), transformed(Direction::Inverse))
        }
        let mut results = vec![both(Portable, "portable", tables, f)];
        #[cfg(target_arch = "x86_64")]
        if let (Some(lanes), true) = (V3::try_new(), f.len() >= 2 * V3::WIDTH) {
            results.push(both(lanes, "AVX2", tables, f));
        }
        #[cfg(target_arch = "x86_64")]
        if let (Some(lanes), true) = (V4::try_new(), f.len() >= 2 * V4::WIDTH) {
            results.push(both(lanes, "AVX-512", tables, f));
        }
        results
    }

    /// Uniform residues, all `p - 1`, zeros, ones.
    fn operands(m: Modulus, n: usize) -> [Vec<u32>; 4] {
        let mut state = n as u64 + m.value() as u64;
        let random = (0..n).map(|_| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            m.reduce(state >> 20)
        });
        [random.collect(), vec![m.value() - 1; n], vec![0; n], vec![1; n]]
    }

    #[test]
    fn forward_is_naive_evaluation_and_inverse_undoes_it() {
        for (bits, n) in [(14, 8), (30, 8), (30, 16), (27, 32), (27, 64), (30, 128), (30, 256), (30, 512), (30, 1024)] {
            let ring = RnsRing::new(n, &ntt_primes(bits, n, 2).unwrap()).unwrap();
            for limb in 0..2 {
                let tables = Twiddles::new(&ring, limb);
                for f in operands(tables.modulus, n) {
                    let values = naive(&ring, limb, &f);
                    for (name, forward, _) in by_every_instruction_set(&tables, &f) {
                        assert_eq!(forward, values, "{name}, N = {n}, p = {}", tables.modulus.value());
                    }
                    for (name, _, inverse) in by_every_instruction_set(&tables, &values) {
                        assert_eq!(inverse, f, "{name}, N = {n}, p = {}", tables.modulus.value());
                    }
                }
            }
        }
    }

    #[test]
    fn large_transforms_agree_with_evaluation_at_some_points() {
        for log_n in 11..=16 {
            let n = 1 << log_n;
            let ring = RnsRing::new(n, &ntt_primes(30, n, 1).unwrap()).unwrap();
            let tables = Twiddles::new(&ring, 0);
            let (m, psi) = (tables.modulus, ring.psi()[0]);
            for f in operands(m, n) {
                let results = by_every_instruction_set(&tables, &f);
                for (name, forward, inverse) in &results {
                    for i in [0, 1, n as u32 / 3, n as u32 - 1] {
                        let x = m.pow(psi, 2 * (i.reverse_bits() >> (32 - log_n)) as u64 + 1);
                        let value = f.iter().rev().fold(0, |acc, &c| m.add(m.mul(acc, x), c));
                        assert_eq!(forward[i as usize], value, "{name}, N = {n}, point {i}");
                    }
                    assert!(*forward == results[0].1 && *inverse == results[0].2, "{name} differs, N = {n}");
                    let mut back = forward.clone();
                    tables.inverse(&mut back);
                    assert!(back == f, "{name}: the inverse does not undo the transform, N = {n}");
                }
            }
        }
    }

    #[test]
    fn transforms_into_another_array_are_the_same() {
        for n in [8, 16, 32, 64, 128, 256, 8192, 32768] {
            let ring = RnsRing::new(n, &ntt_primes(30, n, 1).unwrap()).unwrap();
            let tables = Twiddles::new(&ring, 0);
            let [f, ..] = operands(tables.modulus, n);
            let (mut place, mut other) = (f.clone(), vec![7; n]);
            tables.forward(&mut place);
            tables.forward_from(&f, &mut other);
            assert!(place == other, "forward, N = {n}");
            tables.inverse_from(&place, &mut other);
            assert!(other == f, "inverse, N = {n}");
        }
    }

    #[test]
    fn transforms_of_low_coefficients_are_the_same() {
        for (n, bits) in [(16, 30), (64, 27), (1024, 30), (8192, 30)] {
            let ring = RnsRing::new(n, &ntt_primes(bits, n, 1).unwrap()).unwrap();
            let tables = Twiddles::new(&ring, 0);
            let mut length = Twiddles::SHORTEST;
            while length < n {
                for f in operands(tables.modulus, n) {
                    let mut whole = f[..length].to_vec();
                    whole.resize(n, 0);
                    tables.forward(&mut whole);
                    // In parts of one block, of two, and at once.
                    for part in [length, 2 * length, n] {
                        let mut out = vec![7; n];
                        for (index, out) in out.chunks_mut(part).enumerate() {
                            tables.forward_low(&f[..length], index * part, out);
                        }
                        assert!(out == whole, "N = {n}, {length} coefficients, parts of {part}");
                    }
                }
                length *= 2;
            }
        }
    }

    #[test]
    fn words_that_are_not_residues_do_not_panic() {
        let ring = RnsRing::new(64, &ntt_primes(30, 64, 1).unwrap()).unwrap();
        by_every_instruction_set(&Twiddles::new(&ring, 0), &[u32::MAX; 64]);
    }
}
