//! Keys: the client's secret key, its public key, and the switching keys of Galois automorphisms.

use rayon::prelude::*;
use zeroize::Zeroizing;

use super::{HeError, ParameterSet, Result, wire};
use crate::{
    arith::{
        Modulus,
        sample::{self, SecureRng, xof},
    },
    engine::cpu::plain_ntt::Twiddles,
};

/// What a uniform polynomial is for; part of its stream's name, so that one seed serves all of them.
#[derive(Clone, Copy)]
pub(super) enum Domain {
    PublicKey = 1,
    Galois = 2,
    Ciphertext = 3,
    Relinearisation = 4,
}

/// The uniform polynomial number `counter` of `seed`, NTT domain, `[limbs][N]` over the first `limbs` moduli.
pub(super) fn uniform_half(
    params: &ParameterSet,
    seed: &[u8; 32],
    domain: Domain,
    counter: u64,
    limbs: usize,
    out: &mut [u32],
) -> Result<()> {
    let mut stream = xof(seed, domain as u8, counter).ok_or(HeError::CounterExhausted)?;
    for (limb, out) in out.chunks_mut(params.n()).take(limbs).enumerate() {
        sample::uniform_residues(&mut stream, params.ring().moduli()[limb], out);
    }
    Ok(())
}

/// A ternary secret key.
///
/// It has no wire form, no `Debug`, no `Clone` and no serde, and is wiped on drop. None of these compiles:
///
/// ```compile_fail
/// fn copied(key: &heliostat::he::SecretKey) -> heliostat::he::SecretKey { key.clone() }
/// ```
/// ```compile_fail
/// fn sent(key: &heliostat::he::SecretKey) -> String { serde_json::to_string(key).unwrap() }
/// ```
/// ```compile_fail
/// fn printed(key: &heliostat::he::SecretKey) -> String { format!("{key:?}") }
/// ```
pub struct SecretKey {
    ternary: Zeroizing<Vec<i8>>,
    /// `[all limbs][N]`, NTT domain.
    ntt: Zeroizing<Vec<u32>>,
}

impl SecretKey {
    /// Samples a uniform ternary secret.
    pub fn generate(params: &ParameterSet, rng: &mut SecureRng) -> Self {
        let mut ternary = Zeroizing::new(vec![0; params.n()]);
        sample::ternary(rng, &mut ternary);
        let ntt = transform(params, &ternary);
        Self { ternary, ntt }
    }

    /// The key in the NTT domain modulo limb `limb`.
    pub(super) fn limb(&self, params: &ParameterSet, limb: usize) -> &[u32] {
        &self.ntt[limb * params.n()..][..params.n()]
    }

    /// The key in every form that it has in memory or could be packed in, for searches of transcripts.
    #[cfg(test)]
    pub(crate) fn forms(&self, params: &ParameterSet) -> Vec<Vec<u8>> {
        let mut forms = vec![self.ternary.iter().map(|&x| x as u8).collect::<Vec<u8>>()];
        for limb in 0..params.ring().moduli().len() {
            let limb = self.limb(params, limb);
            forms.push(crate::arith::bits::pack(limb, params.residue_bits()));
            forms.push(limb.iter().flat_map(|x| x.to_le_bytes()).collect());
        }
        forms
    }
}

/// Small integers modulo every limb of the ring, NTT domain. Runs here and not on a backend, whose buffers are not wiped.
fn transform(params: &ParameterSet, small: &[i8]) -> Zeroizing<Vec<u32>> {
    let mut out = Zeroizing::new(vec![0; params.ring().moduli().len() * params.n()]);
    let tables = tables(params);
    transform_into(&tables, small, &mut out);
    out
}

fn tables(params: &ParameterSet) -> Vec<Twiddles> {
    (0..params.ring().moduli().len()).map(|limb| Twiddles::new(params.ring(), limb)).collect()
}

fn transform_into(tables: &[Twiddles], small: &[i8], out: &mut [u32]) {
    for (table, out) in tables.iter().zip(out.chunks_mut(small.len())) {
        for (out, &x) in out.iter_mut().zip(small) {
            *out = small_residue(table.modulus, x);
        }
        table.forward(out);
    }
}

/// The residue of a small integer without a branch on its sign.
#[inline]
pub(super) fn small_residue(p: Modulus, x: i8) -> u32 {
    (x as i32 + (p.value() as i32 & (x as i32 >> 31))) as u32
}

/// `s(X^g)`.
fn automorphism(ternary: &[i8], g: usize) -> Zeroizing<Vec<i8>> {
    let n = ternary.len();
    let mut out = Zeroizing::new(vec![0; n]);
    for (i, &x) in ternary.iter().enumerate() {
        let e = i * g % (2 * n);
        out[e % n] = if e < n { x } else { -x };
    }
    out
}

/// An encryption of zero that lets anyone re-randomise: `(b, a)` with `b = -a s + e`, NTT domain, all data limbs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey {
    seed: [u8; 32],
    b: Vec<u32>,
}

impl PublicKey {
    /// The public key of `secret`. `seed` is public and must not serve another key.
    pub fn generate(params: &ParameterSet, secret: &SecretKey, seed: [u8; 32], rng: &mut SecureRng) -> Result<Self> {
        let (n, limbs) = (params.n(), params.key_limbs());
        let mut a = vec![0; limbs * n];
        uniform_half(params, &seed, Domain::PublicKey, 0, limbs, &mut a)?;
        let mut e = Zeroizing::new(vec![0; n]);
        sample::centred_binomial(rng, &mut e);
        let e = transform(params, &e);
        let b = (0..limbs * n).map(|i| {
            let p = params.ring().moduli()[i / n];
            p.sub(e[i], p.mul(a[i], secret.ntt[i]))
        });
        Ok(Self { seed, b: b.collect() })
    }

    /// `(b, a)`, `[2][limbs][N]`.
    pub(super) fn expand(&self, params: &ParameterSet) -> Result<Vec<u32>> {
        let mut out = self.b.clone();
        out.resize(2 * self.b.len(), 0);
        uniform_half(params, &self.seed, Domain::PublicKey, 0, params.key_limbs(), &mut out[self.b.len()..])?;
        Ok(out)
    }

    /// 32 bytes of seed, then `b` packed at the bits of a prime.
    pub fn to_bytes(&self, params: &ParameterSet) -> Vec<u8> {
        let mut out = self.seed.to_vec();
        wire::write_residues(params, &self.b, &mut out);
        out
    }

    /// Reads what [`Self::to_bytes`] wrote.
    ///
    /// # Errors
    /// If the length is not exactly right or a residue is not below its modulus.
    pub fn from_bytes(params: &ParameterSet, mut bytes: &[u8]) -> Result<Self> {
        const WHAT: &str = "public key";
        let seed = wire::take_array(WHAT, &mut bytes)?;
        Ok(Self { seed, b: wire::read_residues(params, WHAT, bytes, 1, params.key_limbs())? })
    }
}

/// Key-switching keys of automorphisms: those that output packing of blocks up to some width needs, `N / 2^j + 1`, or any others.
///
/// Hybrid switching (Han and Ki, CT-RSA 2020) with special primes of product `P` and as many limbs a digit: digit `i` encrypts
/// `P g_i s(X^g)`, where `g_i` is 1 modulo the primes of the digit and 0 modulo the others. Uniform halves are a seed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GaloisKeys {
    seed: [u8; 32],
    elements: Vec<usize>,
    /// `[elements][digits][all limbs][N]`, NTT domain.
    c0: Vec<u32>,
}

/// The switching key from `s^2` to `s`, which makes a product of two ciphertexts one of two parts again. As [`GaloisKeys`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelinearisationKey {
    seed: [u8; 32],
    /// `[digits][all limbs][N]`, NTT domain.
    c0: Vec<u32>,
}

/// Switching keys from the `sources` (NTT domain, all limbs) to `secret`, `[sources][digits][all limbs][N]`: the halves that are
/// not uniform. The uniform half of digit `d` of source `k` is number `counter(k, d)` of `domain`.
fn switching_keys(
    params: &ParameterSet,
    secret: &SecretKey,
    sources: &[Zeroizing<Vec<u32>>],
    (seed, domain): (&[u8; 32], Domain),
    counter: impl Fn(usize, usize) -> u64 + Sync,
    rng: &mut SecureRng,
) -> Result<Vec<u32>> {
    if params.specials().is_empty() {
        return Err(HeError::shape("switching keys", format!("{} has no special prime", params.name())));
    }
    let (n, digits, moduli) = (params.n(), params.key_digits(), params.ring().moduli());
    let all = moduli.len();
    let tables = tables(params);
    let special = |p: Modulus| params.specials().iter().fold(1, |acc, q| p.mul(acc, p.reduce(q.value() as u64)));
    let forks: Vec<SecureRng> = (0..sources.len() * digits).map(|_| rng.fork()).collect();
    let mut c0 = vec![0; sources.len() * digits * all * n];
    c0.par_chunks_mut(all * n).zip(forks).enumerate().try_for_each(|(k, (out, mut rng))| {
        let (source, digit) = (k / digits, k % digits);
        let mut a = vec![0; all * n];
        uniform_half(params, seed, domain, counter(source, digit), all, &mut a)?;
        let mut e = Zeroizing::new(vec![0; n]);
        sample::centred_binomial(&mut rng, &mut e);
        transform_into(&tables, &e, out);
        for (limb, out) in out.chunks_mut(n).enumerate() {
            let p = moduli[limb];
            // P g_i: P modulo the primes of the digit, else 0.
            let inside = limb < params.key_limbs() && limb / params.digit_limbs() == digit;
            let factor = if inside { special(p) } else { 0 };
            for (i, out) in out.iter_mut().enumerate() {
                let at = limb * n + i;
                *out = p.sub(*out, p.mul(a[at], secret.ntt[at]));
                *out = p.add(*out, p.mul(sources[source][at], factor));
            }
        }
        Ok::<_, HeError>(())
    })?;
    Ok(c0)
}

/// Both halves of a switching key, `[digits][2][all limbs][N]`, from its `c0`.
fn expand_key(
    params: &ParameterSet,
    c0: &[u32],
    (seed, domain): (&[u8; 32], Domain),
    counter: impl Fn(usize) -> u64 + Sync,
) -> Result<Vec<u32>> {
    let (digits, all) = (params.key_digits(), params.ring().moduli().len());
    let poly = all * params.n();
    let mut out = vec![0; digits * 2 * poly];
    out.par_chunks_mut(2 * poly).enumerate().try_for_each(|(digit, out)| {
        let (half, a) = out.split_at_mut(poly);
        half.copy_from_slice(&c0[digit * poly..][..poly]);
        uniform_half(params, seed, domain, counter(digit), all, a)
    })?;
    Ok(out)
}

impl RelinearisationKey {
    /// The relinearisation key of `secret`. `seed` is public and must not serve another key of this kind.
    ///
    /// # Errors
    /// If the set has no special prime.
    pub fn generate(params: &ParameterSet, secret: &SecretKey, seed: [u8; 32], rng: &mut SecureRng) -> Result<Self> {
        let n = params.n();
        let square = secret.ntt.iter().enumerate().map(|(i, &s)| params.ring().moduli()[i / n].mul(s, s));
        let square = [Zeroizing::new(square.collect())];
        let named = (&seed, Domain::Relinearisation);
        let c0 = switching_keys(params, secret, &square, named, |_, digit| digit as u64, rng)?;
        Ok(Self { seed, c0 })
    }

    /// Both halves, `[digits][2][all limbs][N]`.
    pub(super) fn expand(&self, params: &ParameterSet) -> Result<Vec<u32>> {
        expand_key(params, &self.c0, (&self.seed, Domain::Relinearisation), |digit| digit as u64)
    }

    /// Bytes on the wire.
    pub fn byte_len(params: &ParameterSet) -> Option<usize> {
        GaloisKeys::byte_len_for(params, 1)
    }

    /// 32 bytes of seed, then the other halves packed at the bits of a prime.
    pub fn to_bytes(&self, params: &ParameterSet) -> Vec<u8> {
        let mut out = self.seed.to_vec();
        wire::write_residues(params, &self.c0, &mut out);
        out
    }

    /// Reads what [`Self::to_bytes`] wrote.
    ///
    /// # Errors
    /// If the length is not exactly right or a residue is not below its modulus.
    pub fn from_bytes(params: &ParameterSet, mut bytes: &[u8]) -> Result<Self> {
        const WHAT: &str = "relinearisation key";
        let seed = wire::take_array(WHAT, &mut bytes)?;
        let c0 = wire::read_residues(params, WHAT, bytes, params.key_digits(), params.ring().moduli().len())?;
        Ok(Self { seed, c0 })
    }
}

impl GaloisKeys {
    /// The Galois elements of output packing of blocks up to `block` (a power of two): `N h / block + 1` for `h = 2, 4 .. block`.
    /// Those of a narrower block are a prefix.
    pub fn elements_for_block(n: usize, block: usize) -> Vec<usize> {
        (0..block.max(1).ilog2()).map(|j| (n >> j) + 1).collect()
    }

    /// Keys for blocks up to `block`. `seed` is public and must not serve other keys of this kind.
    ///
    /// # Errors
    /// If the set has no special prime or `block` is not a power of two up to N.
    pub fn generate(
        params: &ParameterSet,
        secret: &SecretKey,
        block: usize,
        seed: [u8; 32],
        rng: &mut SecureRng,
    ) -> Result<Self> {
        check_block(params, block)?;
        Self::generate_for(params, secret, &Self::elements_for_block(params.n(), block), seed, rng)
    }

    /// Keys for the Galois elements `elements`, distinct odd numbers above 1 and below 2N. `seed` is public and must not serve
    /// other keys of this kind.
    ///
    /// # Errors
    /// If the set has no special prime, or `elements` breaks its rule.
    pub fn generate_for(
        params: &ParameterSet,
        secret: &SecretKey,
        elements: &[usize],
        seed: [u8; 32],
        rng: &mut SecureRng,
    ) -> Result<Self> {
        check_elements(params, elements)?;
        let elements = elements.to_vec();
        let rotated: Vec<_> = elements.iter().map(|&g| transform(params, &automorphism(&secret.ternary, g))).collect();
        let counter = |element: usize, digit| galois_counter(elements[element], digit);
        let c0 = switching_keys(params, secret, &rotated, (&seed, Domain::Galois), counter, rng)?;
        Ok(Self { seed, elements, c0 })
    }

    /// The Galois elements that have a key.
    pub fn elements(&self) -> &[usize] {
        &self.elements
    }

    /// Widest block that these keys pack, in a set of dimension `n`.
    pub fn block(&self, n: usize) -> usize {
        let needed = Self::elements_for_block(n, n);
        1 << needed.iter().take_while(|element| self.elements.contains(element)).count()
    }

    /// The key of element number `index`, `[digits][2][all limbs][N]`.
    pub(super) fn expand(&self, params: &ParameterSet, index: usize) -> Result<Vec<u32>> {
        let words = params.key_digits() * params.ring().moduli().len() * params.n();
        let counter = |digit| galois_counter(self.elements[index], digit);
        expand_key(params, &self.c0[index * words..][..words], (&self.seed, Domain::Galois), counter)
    }

    /// Bytes of the keys for blocks up to `block`.
    pub fn byte_len(params: &ParameterSet, block: usize) -> Option<usize> {
        Self::byte_len_for(params, Self::elements_for_block(params.n(), block).len())
    }

    /// Bytes of the keys of `elements` elements.
    pub fn byte_len_for(params: &ParameterSet, elements: usize) -> Option<usize> {
        let polys = elements.checked_mul(params.key_digits())?;
        wire::residues_len(params, polys, params.ring().moduli().len()).map(|len| len + 32)
    }

    /// 32 bytes of seed, then the other halves packed at the bits of a prime.
    pub fn to_bytes(&self, params: &ParameterSet) -> Vec<u8> {
        let mut out = self.seed.to_vec();
        wire::write_residues(params, &self.c0, &mut out);
        out
    }

    /// Reads what [`Self::to_bytes`] wrote for keys of blocks up to `block`, which both sides know.
    ///
    /// # Errors
    /// If the length is not exactly right or a residue is not below its modulus.
    pub fn from_bytes(params: &ParameterSet, block: usize, bytes: &[u8]) -> Result<Self> {
        check_block(params, block)?;
        Self::from_bytes_for(params, &Self::elements_for_block(params.n(), block), bytes)
    }

    /// Reads what [`Self::to_bytes`] wrote for keys of `elements`, in their order, which both sides know.
    ///
    /// # Errors
    /// If the length is not exactly right or a residue is not below its modulus.
    pub fn from_bytes_for(params: &ParameterSet, elements: &[usize], mut bytes: &[u8]) -> Result<Self> {
        const WHAT: &str = "switching keys";
        check_elements(params, elements)?;
        let seed = wire::take_array(WHAT, &mut bytes)?;
        let polys = elements.len() * params.key_digits();
        let c0 = wire::read_residues(params, WHAT, bytes, polys, params.ring().moduli().len())?;
        Ok(Self { seed, elements: elements.to_vec(), c0 })
    }
}

/// The counter of a digit's uniform half.
fn galois_counter(element: usize, digit: usize) -> u64 {
    (element as u64) << 8 | digit as u64
}

fn check_elements(params: &ParameterSet, elements: &[usize]) -> Result<()> {
    let sound = |(i, element): (usize, &usize)| {
        element % 2 == 1 && (3..2 * params.n()).contains(element) && !elements[..i].contains(element)
    };
    if elements.iter().enumerate().all(sound) {
        return Ok(());
    }
    let detail = format!("{elements:?} are not distinct odd numbers above 1 and below 2N = {}", 2 * params.n());
    Err(HeError::shape("Galois keys", detail))
}

fn check_block(params: &ParameterSet, block: usize) -> Result<()> {
    if !block.is_power_of_two() || block > params.n() {
        return Err(HeError::shape("Galois keys", format!("block {block} is not a power of two up to {}", params.n())));
    }
    Ok(())
}
