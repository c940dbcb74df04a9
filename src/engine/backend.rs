//! The operations that a device must offer: a small trait over opaque buffers, one implementation a device.
//!
//! All batches are flat arrays of `u32` residues, canonical in `[0, p)`, in the order `[poly][limb][coefficient]`; limb `i`
//! is modulo `ring.moduli()[i]`. "Coefficient domain" is the power basis of `Z_q[X]/(X^N + 1)`; "NTT domain" is
//! `f(psi^(2*brv(i)+1))` at index `i`, `brv` the bit reversal on `log2 N` bits and `psi` the root that
//! [`super::RnsRing`] names per limb. Operations are functional: they leave their inputs alone and return a new buffer.
//! Each is one launch (or a fixed number of launches) however large the batch.

use std::{any::Any, fmt, ops::Range, sync::Arc};

use super::{EngineError, RnsRing};

/// Result of an engine operation.
pub type Result<T> = std::result::Result<T, EngineError>;

/// Device memory: an opaque, immutable, cheaply cloned array of `u32` words of one backend.
#[derive(Clone)]
pub struct Buffer {
    words: usize,
    inner: Arc<dyn Any + Send + Sync>,
}

impl Buffer {
    /// Wraps a backend's own representation of `words` words.
    pub fn new<T: Any + Send + Sync>(words: usize, inner: T) -> Self {
        Self { words, inner: Arc::new(inner) }
    }

    /// Number of `u32` words.
    pub fn words(&self) -> usize {
        self.words
    }

    /// The backend's own representation, if it is a `T`.
    pub fn downcast<T: Any>(&self) -> Option<&T> {
        self.inner.downcast_ref()
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} words)", self.words)
    }
}

/// Number of polynomials and of limbs in a batch; the ring gives N. `limbs` is a prefix of the ring's moduli.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Polynomials.
    pub polys: usize,
    /// Limbs of each, the first of the ring's moduli.
    pub limbs: usize,
}

/// Sizes of [`Backend::matmul_plain`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MatmulShape {
    /// Independent products (heads).
    pub groups: usize,
    /// Input ciphertexts a group.
    pub inputs: usize,
    /// Output ciphertexts a group.
    pub outputs: usize,
    /// Limbs.
    pub limbs: usize,
}

/// Sizes of a hybrid key switch (Han and Ki, CT-RSA 2020).
///
/// The ring's moduli are data limbs followed by `special` special primes. A key is made for all data limbs; the input may
/// have fewer, after modulus switches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeySwitchShape {
    /// Polynomials; ciphertexts of [`Backend::rotate`].
    pub polys: usize,
    /// Limbs of the input, the first of the ring's moduli.
    pub limbs: usize,
    /// Special primes, the last of the ring's moduli. Their product should not be below that of a digit's limbs.
    pub special: usize,
    /// Limbs of a digit; the last digit may have fewer.
    pub digit_limbs: usize,
}

impl KeySwitchShape {
    /// One special prime, one digit a limb, all data limbs of `ring`: what BFV uses here.
    pub fn full(ring: &RnsRing, polys: usize) -> Self {
        Self { polys, limbs: ring.moduli().len().saturating_sub(1), special: 1, digit_limbs: 1 }
    }

    /// Digits of the input.
    pub fn digits(&self) -> usize {
        self.limbs.div_ceil(self.digit_limbs.max(1))
    }

    /// Limbs that the inner product runs on: those of the input and the special primes.
    pub fn rows(&self) -> usize {
        self.limbs + self.special
    }

    /// The index into the ring's moduli of each of the [`Self::rows`].
    pub fn row_limbs(&self, ring: &RnsRing) -> Vec<usize> {
        let all = ring.moduli().len();
        (0..self.limbs).chain(all - self.special..all).collect()
    }

    /// Digits of a key.
    pub fn key_digits(&self, ring: &RnsRing) -> usize {
        (ring.moduli().len() - self.special).div_ceil(self.digit_limbs.max(1))
    }

    /// Words of one key, `[key digits][2][all limbs][N]`.
    pub fn key_words(&self, ring: &RnsRing) -> usize {
        self.key_digits(ring) * 2 * ring.moduli().len() * ring.n()
    }
}

/// One rotation of a batch, see [`Backend::rotate`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rotation {
    /// Index of the ciphertext that is rotated.
    pub input: usize,
    /// Galois element g, odd below 2N.
    pub element: usize,
    /// Index of the switching key from `s(X^g)` to `s`.
    pub key: usize,
}

/// Sizes of [`Backend::modular_gemm`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GemmShape {
    /// Input items (columns of the weight matrix).
    pub inputs: usize,
    /// Output items (rows of the weight matrix).
    pub outputs: usize,
    /// Polynomials an item: 2 for a ciphertext.
    pub polys: usize,
    /// Limbs.
    pub limbs: usize,
}

/// Sizes of [`Backend::ring_gemm`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingGemmShape {
    /// Bits `l` of the ring `Z_{2^l}`, 1 to 64.
    pub bits: u32,
    /// Independent products.
    pub batch: usize,
    /// Rows of the left operand.
    pub rows: usize,
    /// Inner dimension.
    pub inner: usize,
    /// Columns of the right operand.
    pub cols: usize,
}

impl RingGemmShape {
    /// Words of a ring element: 1 up to 32 bits, else 2 (low word first).
    pub fn element_words(&self) -> usize {
        if self.bits <= 32 { 1 } else { 2 }
    }
}

/// What the right operand of [`Backend::ring_gemm`] holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RingOperand {
    /// Ring elements of [`RingGemmShape::element_words`] words.
    Ring,
    /// Signed 16-bit integers as [`small_words`] packs them.
    Small,
}

/// A tile of the weight polynomials of `coefficient` packing, see [`Backend::expand_matrix`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpandShape {
    /// Rows of the matrix.
    pub inner: usize,
    /// Columns of the matrix.
    pub cols: usize,
    /// Rows that share a polynomial, K.
    pub block: usize,
    /// Columns that share a polynomial, m; `m K <= N`.
    pub columns: usize,
    /// Limbs.
    pub limbs: usize,
    /// Groups of `columns` columns that are wanted.
    pub outputs: Range<usize>,
    /// Blocks of `block` rows that are wanted.
    pub inputs: Range<usize>,
}

/// An item of [`Backend::gather`]: which of the sources and which item of it; `None` is zeros.
pub type GatherItem = Option<(usize, usize)>;

/// Signed 16-bit integers two a word, the earlier one in the low half; an odd one out is followed by zero. The form in which
/// weights are kept on a device.
pub fn small_words(values: &[i16]) -> Vec<u32> {
    let word = |pair: &[i16]| pair[0] as u16 as u32 | (pair.get(1).map_or(0, |&high| high as u16 as u32) << 16);
    values.chunks(2).map(word).collect()
}

/// Where a computation runs, for reports.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct BackendInfo {
    /// `cpu`, `gpu` or `dual`.
    pub kind: &'static str,
    /// CPU model or adapter name.
    pub adapter: String,
    /// Driver and its version, empty on the CPU.
    pub driver: String,
    /// Whether the adapter is a software rasteriser (never chosen by `auto`).
    pub software: bool,
    /// Product form of the kernels: `u64` or `split16` on a GPU, the NTT library on the CPU.
    pub form: &'static str,
}

/// How often an operation ran on each device.
#[derive(Clone, Debug, PartialEq, Eq, Default, serde::Serialize)]
pub struct OpCount {
    /// Name of the trait method.
    pub name: &'static str,
    /// Runs on the GPU.
    pub gpu: u64,
    /// Runs on the CPU.
    pub cpu: u64,
    /// Runs whose results were compared word by word.
    pub compared: u64,
}

/// Bytes of device memory that a backend holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, serde::Serialize)]
pub struct MemoryUse {
    /// In buffers that are in use.
    pub live: u64,
    /// In free buffers kept for reuse.
    pub pooled: u64,
    /// In copies on their way to the device or back.
    pub staging: u64,
    /// Most of all three together so far.
    pub peak: u64,
    /// Most that it may be, where there is a budget.
    pub budget: Option<u64>,
}

/// A device that computes on batches of RNS polynomials.
pub trait Backend: Send + Sync {
    /// Name, adapter, driver.
    fn info(&self) -> BackendInfo;

    /// Counters of every operation run so far.
    fn ops(&self) -> Vec<OpCount>;

    /// Device memory held; all zero where the device is the CPU.
    fn memory(&self) -> MemoryUse {
        MemoryUse::default()
    }

    /// Gives back device memory that is kept for reuse, wiped where the options say so, as between the connections of a server.
    ///
    /// # Errors
    /// A failing device.
    fn release(&self) -> Result<()> {
        Ok(())
    }

    /// What went wrong on the device while another one did the work in its place, for reports; `None` where nothing has. One
    /// sentence without a full stop.
    fn degraded(&self) -> Option<String> {
        None
    }

    /// Copies words to the device.
    fn upload(&self, words: &[u32]) -> Result<Buffer>;

    /// Copies a buffer back.
    fn download(&self, x: &Buffer) -> Result<Vec<u32>>;

    /// Coefficient to NTT domain.
    fn ntt_forward(&self, ring: &Arc<RnsRing>, x: &Buffer, shape: Shape) -> Result<Buffer>;

    /// NTT to coefficient domain, `1/N` included.
    fn ntt_inverse(&self, ring: &Arc<RnsRing>, x: &Buffer, shape: Shape) -> Result<Buffer>;

    /// Residue-wise sum.
    fn add(&self, ring: &Arc<RnsRing>, a: &Buffer, b: &Buffer, shape: Shape) -> Result<Buffer>;

    /// Residue-wise difference `a - b`.
    fn sub(&self, ring: &Arc<RnsRing>, a: &Buffer, b: &Buffer, shape: Shape) -> Result<Buffer>;

    /// Residue-wise product; in the NTT domain, the ring product.
    fn mul(&self, ring: &Arc<RnsRing>, a: &Buffer, b: &Buffer, shape: Shape) -> Result<Buffer>;

    /// Residue-wise `acc + a * b`.
    fn mul_accumulate(&self, ring: &Arc<RnsRing>, acc: &Buffer, a: &Buffer, b: &Buffer, shape: Shape)
    -> Result<Buffer>;

    /// Product with one constant a limb (`scalars.len() == shape.limbs`, each below its modulus).
    fn mul_scalar(&self, ring: &Arc<RnsRing>, x: &Buffer, shape: Shape, scalars: &[u32]) -> Result<Buffer>;

    /// Plaintext-ciphertext matrix product in the NTT domain:
    /// `out[g][o][c] = sum_i ct[g][i][c] * plain[g][o][i]`, with `ct` laid out `[groups][inputs][2][limbs][N]`, `plain`
    /// `[groups][outputs][inputs][limbs][N]` and the result `[groups][outputs][2][limbs][N]`.
    fn matmul_plain(&self, ring: &Arc<RnsRing>, ct: &Buffer, plain: &Buffer, shape: MatmulShape) -> Result<Buffer>;

    /// Sparse polynomials of small signed integers to residues, coefficient domain: polynomial `k` has
    /// `values[k*positions.len() + j]` at exponent `positions[j]` (distinct, below N), zero elsewhere.
    /// `values.len()` is a multiple of `positions.len()`; the result has `values.len() / positions.len()` polynomials.
    fn expand(&self, ring: &Arc<RnsRing>, limbs: usize, values: &[i64], positions: &[u32]) -> Result<Buffer>;

    /// One level of output packing on coefficient-domain polynomials. `x` is `[2h][parts][limbs][N]` with
    /// `shape.polys == 2h * parts`; for `j < h` and every part, with `E = x[j]`, `O = x[j + h]`, gives
    /// `E + X^shift O` and `E - X^shift O`, each `[h][parts][limbs][N]`. `shift < N`.
    fn pack_step(&self, ring: &Arc<RnsRing>, x: &Buffer, shape: Shape, shift: usize) -> Result<(Buffer, Buffer)>;

    /// `f(X) -> f(X^g)` in the coefficient domain, `g` odd below `2N`.
    fn automorphism(&self, ring: &Arc<RnsRing>, x: &Buffer, shape: Shape, g: usize) -> Result<Buffer>;

    /// `f(X) -> f(X^g)` in the NTT domain, where it is a permutation; `g` odd below `2N`.
    fn automorphism_ntt(&self, ring: &Arc<RnsRing>, x: &Buffer, shape: Shape, g: usize) -> Result<Buffer>;

    /// Hybrid key switch.
    ///
    /// `x` is `[polys][limbs][N]`, coefficient domain. `key` is `[key digits][2][all limbs][N]` in the NTT domain, of which a
    /// prefix of the digits and the limbs in [`KeySwitchShape::row_limbs`] are used. Digit `i` of `x` is, for digits of one
    /// limb, its limb `i` as integers in `[0, p_i)`; for wider ones what [`Backend::base_convert`] makes of the limbs of the
    /// digit, which themselves stay as they are. The result, `[polys][2][limbs][N]` in the coefficient domain, is
    /// `sum_i digit_i * key_i` with the special primes dropped, last one first, by the exact rounding of
    /// [`Backend::mod_switch`].
    fn key_switch(&self, ring: &Arc<RnsRing>, x: &Buffer, shape: KeySwitchShape, key: &Buffer) -> Result<Buffer>;

    /// A batch of rotations of ciphertexts, hoisted: every input is decomposed once, however many rotations read it
    /// (Halevi, Shoup, CRYPTO 2018).
    ///
    /// `x` is `[polys][2][limbs][N]`, coefficient domain; `keys` is `[keys][key digits][2][all limbs][N]`, NTT domain. Rotation
    /// `r` gives `(c0(X^g) + k0, k1)`, where `(k0, k1)` is the sum of [`Backend::key_switch`] over the digits of `c1`, each
    /// digit taken first and mapped by `X -> X^g` then. The result is `[rotations][2][limbs][N]`, coefficient domain.
    fn rotate(
        &self,
        ring: &Arc<RnsRing>,
        x: &Buffer,
        shape: KeySwitchShape,
        keys: &Buffer,
        rotations: &[Rotation],
    ) -> Result<Buffer>;

    /// Base conversion in the coefficient domain: `x`, `[polys][from.len()][N]` modulo the limbs `from` of the ring, to
    /// `[polys][to.len()][N]` modulo the limbs `to` (Halevi, Polyakov, Shoup, CT-RSA 2019, in fixed point).
    ///
    /// With `Q` the product of `from` and `y_i = [x (Q/q_i)^-1]_{q_i}`, gives `sum_i y_i (Q/q_i) - v Q`, where
    /// `v = (sum_i floor(y_i floor(2^(k_i + 31) / q_i) / 2^(k_i - 1)) + 2^31) >> 32`, `k_i` the bits of `q_i`. That is `x`
    /// centred in `(-Q/2, Q/2)`, but for values within `Q 2^-24` of `+-Q/2`, which may come out on the other side.
    /// At most 32 limbs in `from`.
    fn base_convert(
        &self,
        ring: &Arc<RnsRing>,
        x: &Buffer,
        polys: usize,
        from: Range<usize>,
        to: Range<usize>,
    ) -> Result<Buffer>;

    /// Product with a matrix of small integers: `out[o] = sum_i weights[o][i] * x[i]`, in either domain. `x` is
    /// `[inputs][polys][limbs][N]`, `weights` is `[outputs][inputs]` as [`small_words`] packs it, the result
    /// `[outputs][polys][limbs][N]`.
    fn modular_gemm(&self, ring: &Arc<RnsRing>, x: &Buffer, weights: &Buffer, shape: GemmShape) -> Result<Buffer>;

    /// Matrix products modulo `2^l`: `a` is `[batch][rows][inner]` ring elements, `b` is `[batch][inner][cols]` of `operand`,
    /// the result `[batch][rows][cols]` ring elements in `[0, 2^l)`. Words of the operands beyond `l` bits do not matter.
    fn ring_gemm(&self, a: &Buffer, b: &Buffer, operand: RingOperand, shape: RingGemmShape) -> Result<Buffer>;

    /// Weight polynomials of `coefficient` packing, from a matrix `[inner][cols]` of small integers on the device
    /// ([`small_words`]) to the NTT domain: polynomial `(g, b)` has `W[bK + j][gm + o]` at `X^(oK + j)` for `j < K`,
    /// `o < m`, zero where that is outside the matrix. The result is `[outputs][inputs][limbs][N]`.
    fn expand_matrix(&self, ring: &Arc<RnsRing>, weights: &Buffer, shape: &ExpandShape) -> Result<Buffer>;

    /// [`Backend::matmul_plain`] of one group with the plaintexts of [`Backend::expand_matrix`]: `ct` is `[inputs][2][limbs][N]` in the
    /// NTT domain, the result `[outputs][2][limbs][N]`. A backend may do both at once, without the plaintexts in memory.
    fn matmul_matrix(&self, ring: &Arc<RnsRing>, ct: &Buffer, weights: &Buffer, shape: &ExpandShape) -> Result<Buffer> {
        let plain = self.expand_matrix(ring, weights, shape)?;
        let (inputs, outputs) = (shape.inputs.len(), shape.outputs.len());
        self.matmul_plain(ring, ct, &plain, MatmulShape { groups: 1, inputs, outputs, limbs: shape.limbs })
    }

    /// [`Backend::matmul_plain`] with plaintexts of integers: polynomial `k` of `[groups][outputs][inputs]` has the
    /// coefficients `values[k*N ..][..N]`. A backend may do both at once, without the transformed plaintexts in memory.
    fn matmul_integers(&self, ring: &Arc<RnsRing>, ct: &Buffer, values: &[i64], shape: MatmulShape) -> Result<Buffer> {
        let positions: Vec<u32> = (0..ring.n() as u32).collect();
        let plain = self.expand(ring, shape.limbs, values, &positions)?;
        let plain = self.ntt_forward(ring, &plain, Shape { polys: values.len() / ring.n(), limbs: shape.limbs })?;
        self.matmul_plain(ring, ct, &plain, shape)
    }

    /// A new buffer of `items.len()` items of `item_words` words, copied from items of `sources`.
    fn gather(&self, sources: &[&Buffer], item_words: usize, items: &[GatherItem]) -> Result<Buffer>;

    /// Modulus switch in the coefficient domain: drops the limbs from `shape.limbs` down to `target`, last one first;
    /// dropping limb `p` replaces `x` by `(x - [x]_p) / p`, `[x]_p` centred in `(-p/2, p/2)`.
    fn mod_switch(&self, ring: &Arc<RnsRing>, x: &Buffer, shape: Shape, target: usize) -> Result<Buffer>;
}
