//! The operations that a device must offer: a small trait over opaque buffers, one implementation a device.
//!
//! All batches are flat arrays of `u32` residues, canonical in `[0, p)`, in the order `[poly][limb][coefficient]`; limb `i`
//! is modulo `ring.moduli()[i]`. "Coefficient domain" is the power basis of `Z_q[X]/(X^N + 1)`; "NTT domain" is
//! `f(psi^(2*brv(i)+1))` at index `i`, `brv` the bit reversal on `log2 N` bits and `psi` the root that
//! [`super::RnsRing`] names per limb. Operations are functional: they leave their inputs alone and return a new buffer.
//! Each is one launch (or a fixed number of launches) however large the batch.

use std::{any::Any, fmt, sync::Arc};

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

/// A device that computes on batches of RNS polynomials.
pub trait Backend: Send + Sync {
    /// Name, adapter, driver.
    fn info(&self) -> BackendInfo;

    /// Counters of every operation run so far.
    fn ops(&self) -> Vec<OpCount>;

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

    /// Hybrid key switch with one special prime (the ring's last modulus) and one digit a limb.
    ///
    /// `x` is `[polys][limbs][N]`, coefficient domain, `limbs` the data limbs of the ring. `key` is
    /// `[limbs digits][2][limbs + 1][N]` in the NTT domain. Digit `i` of `x` is its limb `i` as integers in `[0, p_i)`,
    /// reduced modulo every limb. The result, `[polys][2][limbs][N]` in the coefficient domain, is
    /// `round(sum_i digit_i * key_i / special)` by the exact rounding of [`Backend::mod_switch`].
    fn key_switch(&self, ring: &Arc<RnsRing>, x: &Buffer, polys: usize, key: &Buffer) -> Result<Buffer>;

    /// Modulus switch in the coefficient domain: drops the limbs from `shape.limbs` down to `target`, last one first;
    /// dropping limb `p` replaces `x` by `(x - [x]_p) / p`, `[x]_p` centred in `(-p/2, p/2)`.
    fn mod_switch(&self, ring: &Arc<RnsRing>, x: &Buffer, shape: Shape, target: usize) -> Result<Buffer>;
}
