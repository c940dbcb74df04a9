//! Products of one party's scalars with the other's vectors, as additive shares, by correlated OT (Gilboa, CRYPTO 1999).
//!
//! The COT receiver holds `rows` scalars `x_r`, the sender a vector `y_r` of `width` elements for each. With the bits of
//! `x_r` as choices, `x_r * y_r[c] = sum_k 2^k (x_r[k] * y_r[c] mod 2^(l-k))`, so OT `k` of a row needs messages of `l - k`
//! bits only. For OT labels `q` and `q ^ delta` the sender takes masks `M0 = H(q)` and `M1 = H(q ^ delta)`, keeps `-M0` and
//! sends `D = y + M0 - M1`; the receiver holds `H(t) = M0` or `M1` and keeps `H(t) + x[k] * D`. All is modulo `2^(l-k)`.
//!
//! Message: row by row, each row in strips of up to 256 columns; within a strip bit by bit, `k = 0 ..`, the column
//! values of `l - k` bits without any padding; zero bits fill the last byte of a strip.

use bytemuck::Pod;
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;
use zeroize::{Zeroize, Zeroizing};

use super::SharedError;
use crate::arith::ShareModulus;
use crate::arith::bits::{self, BitWriter, BitsError};
use crate::mpc::block::{BLOCK_BYTES, Block};
use crate::mpc::prg::CrHash;

/// Columns that are masked together: bounds the scratch memory at 2 x 88 KiB a thread.
const STRIP: usize = 256;

/// Scalars times vectors: `rows` products of a scalar with `width` elements in a ring of shares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProductShape {
    rows: usize,
    width: usize,
    modulus: ShareModulus,
    row_bytes: usize,
    row_blocks: u64,
}

impl ProductShape {
    /// A shape that can be computed.
    ///
    /// # Errors
    /// If the modulus is no power of two or the sizes overflow.
    pub fn new(rows: usize, width: usize, modulus: ShareModulus) -> Result<Self, SharedError> {
        if !modulus.is_valid() || matches!(modulus, ShareModulus::Prime(_)) {
            return Err(SharedError::Modulus(modulus));
        }
        let l = modulus.bits() as usize;
        let too_large = SharedError::TooLarge { rows, width };
        // 2^12 is over the bits that an element takes in the message (2080) and in the masks (2752).
        let largest = rows.max(1).checked_mul(width.max(1)).and_then(|n| n.checked_mul(1 << 12));
        if largest.is_none() || rows.checked_mul(l).is_none() {
            return Err(too_large);
        }
        let (full, rest) = (width / STRIP, width % STRIP);
        let row_bytes = full * strip_bytes(STRIP, l) + strip_bytes(rest, l);
        let row_blocks = (full * strip_blocks(STRIP, l) + strip_blocks(rest, l)) as u64;
        Ok(Self { rows, width, modulus, row_bytes, row_blocks })
    }

    /// Scalars.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Elements that each scalar multiplies.
    pub fn width(&self) -> usize {
        self.width
    }

    /// The ring of the operands and of the shares.
    pub fn modulus(&self) -> ShareModulus {
        self.modulus
    }

    /// COTs used up: one per bit of a scalar.
    pub fn ots(&self) -> usize {
        self.rows * self.bits()
    }

    /// Bytes of the sender's message; depends on the shape only.
    pub fn message_len(&self) -> usize {
        self.rows * self.row_bytes
    }

    fn bits(&self) -> usize {
        self.modulus.bits() as usize
    }

    /// (first column, columns) of the strips of a row.
    fn strips(&self) -> impl Iterator<Item = (usize, usize)> {
        let width = self.width;
        (0..width).step_by(STRIP).map(move |first| (first, STRIP.min(width - first)))
    }
}

/// The receiver's choice bits for [`crate::mpc::ot::CotReceiver::extend`]: the bits of each scalar, lowest first, `l` to a
/// scalar, packed. OT `r * l + k` is bit `k` of scalar `r`.
pub fn choice_bits(x: &[u64], modulus: ShareModulus) -> Vec<u8> {
    bits::pack(x, modulus.bits())
}

/// The sender's side. `q` are its [`ProductShape::ots`] labels, `delta` their offset, `y` its vectors (`rows * width`, row
/// by row, reduced here). Returns the message and the sender's shares, row by row.
///
/// Take a fresh `hash` for each call ([`CrHash::derive`]), the same one as the receiver and for nothing else, and use
/// labels once: their masks are one-time pads.
///
/// # Errors
/// If an operand's length does not fit the shape.
pub fn send(
    shape: &ProductShape,
    hash: &CrHash,
    delta: Block,
    q: &[Block],
    y: &[u64],
) -> Result<(Vec<u8>, Vec<u64>), SharedError> {
    check("COT labels", shape.ots(), q.len())?;
    check("the sender's vectors", shape.rows * shape.width, y.len())?;
    let mut message = vec![0; shape.message_len()];
    let mut shares = vec![0; y.len()];
    if y.is_empty() {
        return Ok((message, shares));
    }
    let (l, modulus) = (shape.bits(), shape.modulus);
    let rows = message.par_chunks_exact_mut(shape.row_bytes).zip(shares.par_chunks_exact_mut(shape.width));
    let rows = rows.zip(y.par_chunks_exact(shape.width)).zip(q.par_chunks_exact(l));
    rows.enumerate().for_each_init(
        || (Scratch::new(shape), Scratch::new(shape), [0; STRIP]),
        |(zero, one, difference), (r, (((mut message, shares), y), q))| {
            let mut tweak = r as u64 * shape.row_blocks;
            for (first, width) in shape.strips() {
                zero.expand(hash, q, Block::ZERO, width, tweak);
                one.expand(hash, q, delta, width, tweak);
                tweak += strip_blocks(width, l) as u64;
                let (here, rest) = std::mem::take(&mut message).split_at_mut(strip_bytes(width, l));
                message = rest;
                let (y, shares) = (&y[first..first + width], &mut shares[first..first + width]);
                let difference = &mut difference[..width];
                Arch::new().dispatch(SendStrip { m0: &zero.0, m1: &one.0, y, difference, shares, l, message: here });
                shares.iter_mut().for_each(|s| *s = modulus.reduce(*s));
            }
        },
    );
    Ok((message, shares))
}

/// The receiver's side. `t` are its [`ProductShape::ots`] labels, `choices` the packed bits that it made them with
/// ([`choice_bits`]). Returns the receiver's shares, row by row. Takes the same time for all choices.
///
/// # Errors
/// If a length does not fit the shape or the padding of a packed array is not zero.
pub fn receive(
    shape: &ProductShape,
    hash: &CrHash,
    t: &[Block],
    choices: &[u8],
    message: &[u8],
) -> Result<Vec<u64>, SharedError> {
    check("COT labels", shape.ots(), t.len())?;
    let x = Zeroizing::new(bits::unpack(choices, shape.modulus.bits(), shape.rows)?);
    if message.len() != shape.message_len() {
        return Err(SharedError::MessageLength { expected: shape.message_len(), found: message.len() });
    }
    let mut shares = vec![0; shape.rows * shape.width];
    if shares.is_empty() {
        return Ok(shares);
    }
    let (l, modulus) = (shape.bits(), shape.modulus);
    let rows = message.par_chunks_exact(shape.row_bytes).zip(shares.par_chunks_exact_mut(shape.width));
    let rows = rows.zip(t.par_chunks_exact(l)).zip(x.par_iter());
    rows.enumerate().try_for_each_init(
        || (Scratch::new(shape), [0; STRIP]),
        |(scratch, difference), (r, (((mut message, shares), t), &x))| -> Result<(), BitsError> {
            let mut tweak = r as u64 * shape.row_blocks;
            for (first, width) in shape.strips() {
                scratch.expand(hash, t, Block::ZERO, width, tweak);
                tweak += strip_blocks(width, l) as u64;
                let (here, rest) = message.split_at(strip_bytes(width, l));
                message = rest;
                if !bits::is_padded(here, strip_bits(width, l)) {
                    return Err(BitsError::Padding);
                }
                let (shares, difference) = (&mut shares[first..first + width], &mut difference[..width]);
                Arch::new().dispatch(ReceiveStrip { masks: &scratch.0, x, difference, shares, l, message: here })?;
                shares.iter_mut().for_each(|s| *s = modulus.reduce(*s));
            }
            Ok(())
        },
    )?;
    Ok(shares)
}

/// The masks of a strip: for OT `k`, `width` words of the least of 8, 16, 32, 64 bits that holds `l - k`, as whole blocks.
struct Scratch(Vec<Block>);

impl Scratch {
    fn new(shape: &ProductShape) -> Self {
        Self(vec![Block::ZERO; strip_blocks(STRIP.min(shape.width), shape.bits())])
    }

    /// Block `i` of a strip becomes `H(label, tweak + i)`: every block of the call has its own tweak.
    fn expand(&mut self, hash: &CrHash, labels: &[Block], offset: Block, width: usize, tweak: u64) {
        let l = labels.len();
        let mut at = 0;
        for (k, &label) in labels.iter().enumerate() {
            let blocks = mask_blocks(width, l - k);
            self.0[at..at + blocks].fill(label ^ offset);
            at += blocks;
        }
        hash.hash_in_place(&mut self.0[..at], |i| tweak + i as u64);
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// The sender's work on a strip: adds its shares to `shares` (unreduced) and writes the message.
struct SendStrip<'a> {
    m0: &'a [Block],
    m1: &'a [Block],
    y: &'a [u64],
    difference: &'a mut [u64],
    shares: &'a mut [u64],
    l: usize,
    message: &'a mut [u8],
}

impl WithSimd for SendStrip<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { m0, m1, y, difference, shares, l, message } = self;
        let mut writer = BitWriter::new(message);
        let mut at = 0;
        for k in 0..l {
            let end = at + mask_blocks(y.len(), l - k);
            let (m0, m1) = (&m0[at..end], &m1[at..end]);
            at = end;
            match lane_bytes(l - k) {
                1 => hide::<u8>(m0, m1, y, difference, shares, k),
                2 => hide::<u16>(m0, m1, y, difference, shares, k),
                4 => hide::<u32>(m0, m1, y, difference, shares, k),
                _ => hide::<u64>(m0, m1, y, difference, shares, k),
            }
            writer.push(difference, (l - k) as u32);
        }
        writer.finish();
    }
}

#[inline(always)]
fn hide<L: Pod + Into<u64>>(
    m0: &[Block],
    m1: &[Block],
    y: &[u64],
    difference: &mut [u64],
    shares: &mut [u64],
    k: usize,
) {
    let (m0, m1) = (bytemuck::cast_slice::<Block, L>(m0), bytemuck::cast_slice::<Block, L>(m1));
    for ((((&m0, &m1), &y), d), s) in m0.iter().zip(m1).zip(y).zip(difference).zip(shares) {
        let m0: u64 = m0.into();
        *d = y.wrapping_add(m0).wrapping_sub(m1.into());
        *s = s.wrapping_sub(m0 << k);
    }
}

/// The receiver's work on a strip: adds its shares to `shares` (unreduced).
struct ReceiveStrip<'a> {
    masks: &'a [Block],
    x: u64,
    difference: &'a mut [u64],
    shares: &'a mut [u64],
    l: usize,
    message: &'a [u8],
}

impl WithSimd for ReceiveStrip<'_> {
    type Output = Result<(), BitsError>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> Self::Output {
        let Self { masks, x, difference, shares, l, message } = self;
        let (mut bit, mut at) = (0, 0);
        for k in 0..l {
            bits::unpack_run(message, bit, (l - k) as u32, difference)?;
            bit += shares.len() * (l - k);
            let end = at + mask_blocks(shares.len(), l - k);
            let masks = &masks[at..end];
            at = end;
            // All ones where the choice bit is set, else zero.
            let chosen = (x >> k & 1).wrapping_neg();
            match lane_bytes(l - k) {
                1 => open::<u8>(masks, chosen, difference, shares, k),
                2 => open::<u16>(masks, chosen, difference, shares, k),
                4 => open::<u32>(masks, chosen, difference, shares, k),
                _ => open::<u64>(masks, chosen, difference, shares, k),
            }
        }
        Ok(())
    }
}

#[inline(always)]
fn open<L: Pod + Into<u64>>(masks: &[Block], chosen: u64, difference: &[u64], shares: &mut [u64], k: usize) {
    for ((&m, &d), s) in bytemuck::cast_slice::<Block, L>(masks).iter().zip(difference).zip(shares) {
        let m: u64 = m.into();
        *s = s.wrapping_add(m.wrapping_add(d & chosen) << k);
    }
}

#[inline(always)]
const fn lane_bytes(bits: usize) -> usize {
    bits.div_ceil(8).next_power_of_two()
}

#[inline(always)]
const fn mask_blocks(width: usize, bits: usize) -> usize {
    (width * lane_bytes(bits)).div_ceil(BLOCK_BYTES)
}

fn strip_blocks(width: usize, l: usize) -> usize {
    (1..=l).map(|bits| mask_blocks(width, bits)).sum()
}

const fn strip_bits(width: usize, l: usize) -> usize {
    width * (l * (l + 1) / 2)
}

const fn strip_bytes(width: usize, l: usize) -> usize {
    strip_bits(width, l).div_ceil(8)
}

fn check(what: &'static str, expected: usize, found: usize) -> Result<(), SharedError> {
    if expected == found { Ok(()) } else { Err(SharedError::Length { what, expected, found }) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mpc::prg::Prg;
    use proptest::prelude::*;

    /// Ideal COTs: what the extension would give.
    fn cots(choices: &[u8], count: usize, delta: Block, seed: u128) -> (Vec<Block>, Vec<Block>) {
        let mut q = vec![Block::ZERO; count];
        Prg::new(Block(seed)).fill_blocks(&mut q);
        let t = (0..count).map(|j| q[j] ^ (Block::mask(choices[j / 8] >> (j % 8) & 1 == 1) & delta)).collect();
        (q, t)
    }

    fn random(count: usize, modulus: ShareModulus, seed: u128) -> Vec<u64> {
        let mut x = vec![0; count];
        Prg::new(Block(seed)).fill_u64(&mut x);
        x.iter_mut().for_each(|x| *x = modulus.reduce(*x));
        x
    }

    struct Run {
        message: Vec<u8>,
        sender: Vec<u64>,
        receiver: Vec<u64>,
    }

    fn run(shape: &ProductShape, x: &[u64], y: &[u64], seed: u128) -> Run {
        let delta = Block(seed.wrapping_mul(0x1234_5678_9abc_def1) << 3).with_lsb_set();
        let choices = choice_bits(x, shape.modulus());
        let (q, t) = cots(&choices, shape.ots(), delta, seed);
        let hash = CrHash::derive(Block(seed), 1);
        let (message, sender) = send(shape, &hash, delta, &q, y).unwrap();
        let receiver = receive(shape, &hash, &t, &choices, &message).unwrap();
        Run { message, sender, receiver }
    }

    fn check_products(rows: usize, width: usize, l: u32, x: &[u64], y: &[u64]) {
        let modulus = ShareModulus::pow2(l).unwrap();
        let shape = ProductShape::new(rows, width, modulus).unwrap();
        let got = run(&shape, x, y, 77);
        assert_eq!(got.message.len(), shape.message_len());
        for i in 0..rows * width {
            assert!(got.sender[i] <= modulus.mask() && got.receiver[i] <= modulus.mask());
            let sum = modulus.add(got.sender[i], got.receiver[i]);
            assert_eq!(sum, modulus.mul(x[i / width], y[i]), "l {l} width {width} element {i}");
        }
    }

    #[test]
    fn shares_add_up_to_the_product() {
        for l in [1, 2, 7, 8, 9, 13, 16, 17, 32, 33, 43, 48, 63, 64] {
            let modulus = ShareModulus::pow2(l).unwrap();
            for (rows, width) in [(1, 1), (5, 1), (3, 7), (2, 32), (1, 256), (2, 257), (1, 600)] {
                check_products(rows, width, l, &random(rows, modulus, 1), &random(rows * width, modulus, 2));
            }
            let edges = [0, 1, modulus.mask(), modulus.mask() >> 1, (modulus.mask() >> 1) + 1, modulus.reduce(2)];
            let y = edges.repeat(edges.len());
            check_products(edges.len(), edges.len(), l, &edges, &y);
        }
    }

    #[test]
    fn empty_shapes_cost_nothing() {
        let modulus = ShareModulus::pow2(32).unwrap();
        for (rows, width) in [(0, 5), (5, 0), (0, 0)] {
            let shape = ProductShape::new(rows, width, modulus).unwrap();
            let got = run(&shape, &vec![3; rows], &[], 5);
            assert!(got.message.is_empty() && got.sender.is_empty() && got.receiver.is_empty());
        }
    }

    #[test]
    fn messages_are_tight_and_do_not_depend_on_values() {
        let len =
            |rows, width, l| ProductShape::new(rows, width, ShareModulus::pow2(l).unwrap()).unwrap().message_len();
        assert_eq!(len(1, 1, 1), 1);
        assert_eq!(len(1, 1, 32), 66);
        assert_eq!(len(7, 128, 32), 7 * 128 * 66);
        assert_eq!(len(1, 256 + 3, 13), (256 * 91 / 8) + (3usize * 91).div_ceil(8));
        let shape = ProductShape::new(4, 33, ShareModulus::pow2(43).unwrap()).unwrap();
        let zeros = run(&shape, &[0; 4], &[0; 132], 3);
        let ones = run(&shape, &[shape.modulus().mask(); 4], &[shape.modulus().mask(); 132], 3);
        assert_eq!(zeros.message.len(), ones.message.len());
    }

    #[test]
    fn shares_and_message_look_uniform() {
        // Constant operands, so that only the masks vary. 4096 elements: 2^18 bits, standard deviation 256.
        let shape = ProductShape::new(16, 256, ShareModulus::pow2(64).unwrap()).unwrap();
        for (x, y) in [(0, 0), (u64::MAX, u64::MAX), (0, u64::MAX), (5, 9)] {
            let got = run(&shape, &[x; 16], &[y; 4096], 11);
            for shares in [&got.sender, &got.receiver] {
                for bit in [0, 1, 31, 62, 63] {
                    let ones = shares.iter().filter(|&s| s >> bit & 1 == 1).count();
                    // 4096 coins: standard deviation 32.
                    assert!(ones.abs_diff(2048) < 6 * 32, "bit {bit}: {ones}");
                }
                let ones: u32 = shares.iter().map(|s| s.count_ones()).sum();
                assert!(ones.abs_diff(1 << 17) < 6 * 256, "{ones}");
                let mut distinct = shares.clone();
                distinct.sort_unstable();
                distinct.dedup();
                assert_eq!(distinct.len(), 4096);
            }
            let bits = got.message.len() as u32 * 8;
            let ones: u32 = got.message.iter().map(|b| b.count_ones()).sum();
            assert!(f64::from(ones.abs_diff(bits / 2)) < 3.0 * f64::from(bits).sqrt(), "{ones} of {bits}");
        }
    }

    #[test]
    fn wrong_sizes_and_padding_are_refused() {
        let modulus = ShareModulus::pow2(3).unwrap();
        let shape = ProductShape::new(2, 3, modulus).unwrap();
        let hash = CrHash::new(Block(1));
        let (q, y) = (vec![Block(9); 6], vec![1; 6]);
        assert!(send(&shape, &hash, Block(1), &q[1..], &y).is_err());
        assert!(send(&shape, &hash, Block(1), &q, &y[1..]).is_err());
        let (message, _) = send(&shape, &hash, Block(1), &q, &y).unwrap();
        assert_eq!(message.len(), 2 * 3);
        assert!(receive(&shape, &hash, &q, &[0], &message).is_ok());
        assert!(receive(&shape, &hash, &q[1..], &[0], &message).is_err());
        assert!(receive(&shape, &hash, &q, &[0, 0], &message).is_err());
        assert!(receive(&shape, &hash, &q, &[0x40], &message).is_err());
        assert!(receive(&shape, &hash, &q, &[0], &message[1..]).is_err());
        // 18 bits a row: the last byte has six unused bits.
        for at in [2, 5] {
            let mut bad = message.clone();
            bad[at] |= 0x80;
            assert_eq!(receive(&shape, &hash, &q, &[0], &bad), Err(BitsError::Padding.into()));
        }
        assert!(ProductShape::new(usize::MAX, 2, modulus).is_err());
        assert!(ProductShape::new(usize::MAX / 2, 1, modulus).is_err());
        assert!(ProductShape::new(usize::MAX, 0, modulus).is_err());
        assert!(ProductShape::new(1, 1, ShareModulus::PowerOfTwo(0)).is_err());
        assert!(ProductShape::new(1, 1, ShareModulus::PowerOfTwo(65)).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn products_hold_for_any_shape(l in 1u32..=64, rows in 1usize..5, width in 1usize..40, seed: u64) {
            let modulus = ShareModulus::pow2(l).unwrap();
            let x = random(rows, modulus, u128::from(seed));
            check_products(rows, width, l, &x, &random(rows * width, modulus, u128::from(!seed)));
        }
    }
}
