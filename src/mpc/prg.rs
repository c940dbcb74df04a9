//! AES as a pseudorandom generator and as a correlation-robust hash.

use aes::Aes128Enc;
use aes::cipher::array::Array;
use aes::cipher::consts::U16;
use aes::cipher::{
    BlockCipherEncBackend, BlockCipherEncClosure, BlockCipherEncrypt, BlockSizeUser, InOut, KeyInit, ParBlocks,
};

use zeroize::Zeroize;

use super::block::{BLOCK_BYTES, Block};

type AesBlock = Array<u8, U16>;

/// AES-128 in counter mode: block `i` of the stream is AES_seed(i), `i` as a little-endian 128-bit integer.
///
/// The key schedule is wiped on drop. The stream position advances with every call, so that consecutive calls never
/// return the same output; [`Prg::seek`] goes back only on purpose.
pub struct Prg {
    cipher: Aes128Enc,
    counter: u64,
}

impl Prg {
    /// The stream of a (secret, uniform) seed, from block 0.
    pub fn new(seed: Block) -> Self {
        Self { cipher: Aes128Enc::new(&seed.to_bytes().into()), counter: 0 }
    }

    /// The same stream from block `counter`, as an independent generator.
    pub fn at(&self, counter: u64) -> Self {
        Self { cipher: self.cipher.clone(), counter }
    }

    /// Index of the next block.
    pub fn counter(&self) -> u64 {
        self.counter
    }

    /// Makes `counter` the index of the next block.
    pub fn seek(&mut self, counter: u64) {
        self.counter = counter;
    }

    /// The next block.
    pub fn next_block(&mut self) -> Block {
        let mut out = [Block::ZERO];
        self.fill_blocks(&mut out);
        out[0]
    }

    /// Overwrites `out` with the next blocks.
    pub fn fill_blocks(&mut self, out: &mut [Block]) {
        let counter = self.counter;
        self.counter = counter.wrapping_add(out.len() as u64);
        self.cipher.encrypt_with_backend(CounterStream { out, counter });
    }

    /// Overwrites `out` with blocks `counter ..` of the stream and leaves the position where it is.
    pub fn fill_blocks_at(&self, counter: u64, out: &mut [Block]) {
        self.cipher.encrypt_with_backend(CounterStream { out, counter });
    }

    /// Overwrites `out` with the next bytes. Whole blocks are used up: the unused end of the last one is dropped.
    pub fn fill_bytes(&mut self, out: &mut [u8]) {
        let mut buffer = [Block::ZERO; 256];
        for chunk in out.chunks_mut(256 * BLOCK_BYTES) {
            let blocks = &mut buffer[..chunk.len().div_ceil(BLOCK_BYTES)];
            self.fill_blocks(blocks);
            chunk.copy_from_slice(&bytemuck::cast_slice(blocks)[..chunk.len()]);
        }
        buffer.zeroize();
    }

    /// Overwrites `out` with the next words, two to a block.
    pub fn fill_u64(&mut self, out: &mut [u64]) {
        self.fill_bytes(bytemuck::cast_slice_mut(out));
    }
}

/// The circular correlation-robust tweakable hash
/// `H(x, tweak) = pi(sigma(x) ^ tweak) ^ sigma(x) ^ tweak`, `sigma(hi || lo) = (hi ^ lo) || hi`,
/// where `pi` is AES-128 under a public key (Guo, Katz, Wang, Yu, "Efficient and secure multiparty computation from
/// fixed-key block ciphers", S&P 2020).
///
/// One permutation call carries the tweak only as long as nobody can choose `x`, or `sigma(x) ^ tweak` could be made to
/// collide. That holds for what is hashed here: labels and OT outputs of semi-honest parties are pseudorandom.
///
/// Under one key the advantage of an adversary grows with the number of hashes made under that key, over all sessions
/// that share it (Guo, Katz, Wang, Weng, Yu, "Better concrete security for half-gates garbling", CRYPTO 2020). So take a
/// fresh key per session and per batch, by [`CrHash::derive`] from a seed that neither party chose after seeing inputs.
pub struct CrHash {
    cipher: Aes128Enc,
}

impl CrHash {
    /// The hash under a key; both parties use the same one.
    pub fn new(key: Block) -> Self {
        Self { cipher: Aes128Enc::new(&key.to_bytes().into()) }
    }

    /// The hash of batch number `batch` under a session's hash seed.
    pub fn derive(seed: Block, batch: u64) -> Self {
        Self::new(Prg { cipher: Aes128Enc::new(&seed.to_bytes().into()), counter: batch }.next_block())
    }

    /// Hashes one block. Batches are several times faster: see [`CrHash::hash_in_place`].
    #[inline]
    pub fn hash(&self, x: Block, tweak: u64) -> Block {
        let mut out = [x];
        self.hash_in_place(&mut out, |_| tweak);
        out[0]
    }

    /// Replaces `blocks[i]` by `H(blocks[i], tweak(i))`.
    #[inline]
    pub fn hash_in_place(&self, blocks: &mut [Block], tweak: impl Fn(usize) -> u64) {
        self.cipher.encrypt_with_backend(HashInPlace { blocks, tweak });
    }

    /// Writes `H(input[i], tweak(i))` to `output[i]` for as many blocks as the shorter slice has.
    #[inline]
    pub fn hash_blocks(&self, input: &[Block], output: &mut [Block], tweak: impl Fn(usize) -> u64) {
        let count = input.len().min(output.len());
        output[..count].copy_from_slice(&input[..count]);
        self.hash_in_place(&mut output[..count], tweak);
    }
}

/// `sigma(hi || lo) = (hi ^ lo) || hi`, a linear orthomorphism.
#[inline(always)]
pub(super) fn sigma(x: Block) -> Block {
    let (hi, lo) = ((x.0 >> 64) as u64, x.0 as u64);
    Block(((hi ^ lo) as u128) << 64 | hi as u128)
}

/// Counter mode as one call into the cipher's vector code, which so stays in registers for the whole slice.
struct CounterStream<'a> {
    out: &'a mut [Block],
    counter: u64,
}

impl BlockSizeUser for CounterStream<'_> {
    type BlockSize = U16;
}

impl BlockCipherEncClosure for CounterStream<'_> {
    #[inline(always)]
    fn call<B: BlockCipherEncBackend<BlockSize = U16>>(self, backend: &B) {
        let width = ParBlocks::<B>::default().len();
        let mut counter = self.counter;
        for chunk in self.out.chunks_mut(width) {
            // Written as words, so that the counters are made by vector stores which the cipher's vector loads can forward.
            for (i, block) in bytemuck::cast_slice_mut::<Block, [u64; 2]>(chunk).iter_mut().enumerate() {
                *block = [counter.wrapping_add(i as u64), 0];
            }
            counter = counter.wrapping_add(width as u64);
            let (blocks, _) = AesBlock::slice_as_chunks_mut(bytemuck::cast_slice_mut(chunk));
            let (wide, tail) = ParBlocks::<B>::slice_as_chunks_mut(blocks);
            for blocks in wide {
                backend.encrypt_par_blocks(blocks.into());
            }
            for block in tail {
                backend.encrypt_block(block.into());
            }
        }
    }
}

struct HashInPlace<'a, F> {
    blocks: &'a mut [Block],
    tweak: F,
}

impl<F> BlockSizeUser for HashInPlace<'_, F> {
    type BlockSize = U16;
}

impl<F: Fn(usize) -> u64> BlockCipherEncClosure for HashInPlace<'_, F> {
    #[inline(always)]
    fn call<B: BlockCipherEncBackend<BlockSize = U16>>(self, backend: &B) {
        let width = ParBlocks::<B>::default().len();
        let mut image = ParBlocks::<B>::default();
        for (c, chunk) in self.blocks.chunks_mut(width).enumerate() {
            for (i, block) in chunk.iter_mut().enumerate() {
                *block = sigma(*block) ^ Block(u128::from((self.tweak)(c * width + i)));
            }
            let (blocks, _) = AesBlock::slice_as_chunks_mut(bytemuck::cast_slice_mut(chunk));
            let (wide, tail) = ParBlocks::<B>::slice_as_chunks_mut(blocks);
            for blocks in wide {
                backend.encrypt_par_blocks(InOut::from((&*blocks, &mut image)));
                let image = AesBlock::slice_as_flattened(&image);
                for (x, y) in AesBlock::slice_as_flattened_mut(blocks).iter_mut().zip(image) {
                    *x ^= y;
                }
            }
            for block in tail {
                let mut y = *block;
                backend.encrypt_block((&mut y).into());
                for byte in 0..BLOCK_BYTES {
                    block[byte] ^= y[byte];
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn naive_aes(key: Block, x: Block) -> Block {
        let mut y = AesBlock::from(x.to_bytes());
        aes::Aes128::new(&key.to_bytes().into()).encrypt_block(&mut y);
        Block::from_bytes(y.into())
    }

    #[test]
    fn counter_mode_matches_the_block_cipher() {
        // FIPS 197, appendix B pins the byte order of key and data.
        let hex =
            |s: &str| Block::from_bytes(std::array::from_fn(|i| u8::from_str_radix(&s[2 * i..][..2], 16).unwrap()));
        let key = hex("2b7e151628aed2a6abf7158809cf4f3c");
        assert!(naive_aes(key, hex("3243f6a8885a308d313198a2e0370734")) == hex("3925841d02dc09fbdc118597196a0b32"));
        let mut prg = Prg::new(key);
        for count in [0usize, 1, 7, 63, 64, 65, 200, 513] {
            let first = prg.counter();
            let mut out = vec![Block::ONES; count];
            prg.fill_blocks(&mut out);
            for (i, x) in out.iter().enumerate() {
                assert!(*x == naive_aes(key, Block(u128::from(first) + i as u128)), "{count} {i}");
            }
            assert_eq!(prg.counter(), first + count as u64);
        }
    }

    #[test]
    fn bytes_and_seek_agree_with_blocks() {
        let mut prg = Prg::new(Block(7));
        let mut blocks = vec![Block::ZERO; 9];
        prg.fill_blocks(&mut blocks);
        let mut bytes = [0u8; 35];
        prg.seek(2);
        prg.fill_bytes(&mut bytes);
        assert_eq!(bytes[..], bytemuck::cast_slice::<Block, u8>(&blocks[2..])[..35]);
        assert_eq!(prg.counter(), 5);
        let mut words = [0u64; 3];
        prg.at(5).fill_u64(&mut words);
        assert_eq!(words[..], bytemuck::cast_slice::<Block, u64>(&blocks[5..])[..3]);
        assert!(prg.next_block() == blocks[5]);
    }

    #[test]
    fn sigma_is_a_linear_orthomorphism() {
        // Both sigma and x -> sigma(x) ^ x must be injective; being linear, no basis combination may vanish.
        let rank = |f: &dyn Fn(Block) -> Block| {
            let mut rows: Vec<u128> = (0..128).map(|i| f(Block(1 << i)).0).collect();
            let mut rank = 0;
            for bit in 0..128 {
                if let Some(p) = (rank..rows.len()).find(|&r| rows[r] >> bit & 1 == 1) {
                    rows.swap(rank, p);
                    for r in 0..rows.len() {
                        if r != rank && rows[r] >> bit & 1 == 1 {
                            rows[r] ^= rows[rank];
                        }
                    }
                    rank += 1;
                }
            }
            rank
        };
        assert_eq!(rank(&sigma), 128);
        assert_eq!(rank(&|x| sigma(x) ^ x), 128);
    }

    proptest! {
        #[test]
        fn hash_matches_its_formula(key: u128, start: u64, count in 0usize..200) {
            let hash = CrHash::new(Block(key));
            let mut input = vec![Block::ZERO; count];
            Prg::new(Block(!key)).fill_blocks(&mut input);
            let mut output = vec![Block::ZERO; count];
            hash.hash_blocks(&input, &mut output, |i| start.wrapping_add(i as u64 / 2));
            for i in 0..count {
                let tweak = start.wrapping_add(i as u64 / 2);
                let (hi, lo) = (input[i].0 >> 64, input[i].0 & u128::from(u64::MAX));
                let x = Block((hi ^ lo) << 64 | hi) ^ Block(u128::from(tweak));
                prop_assert!(output[i] == naive_aes(Block(key), x) ^ x);
                prop_assert!(hash.hash(input[i], tweak) == output[i]);
            }
        }
    }

    #[test]
    fn batches_and_tweaks_separate() {
        let x = Block(99);
        let (h0, h1) = (CrHash::derive(Block(1), 0), CrHash::derive(Block(1), 1));
        assert!(h0.hash(x, 0) != h1.hash(x, 0) && h0.hash(x, 0) != h0.hash(x, 1));
        assert!(h0.hash(x, 5) == CrHash::derive(Block(1), 0).hash(x, 5));
    }
}
