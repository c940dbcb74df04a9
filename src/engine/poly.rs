//! Batches of RNS polynomials on a device, with the domain in the type.

use std::{fmt, marker::PhantomData, sync::Arc};

use num_bigint::{BigInt, BigUint, Sign};

use super::{Buffer, Engine, EngineError, Result, RnsRing, Shape};
use crate::arith::Modulus;

/// The coefficient domain: index `i` is the coefficient of `X^i`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coeff {}

/// The NTT domain: index `i` is the value at `psi^(2 brv(i) + 1)`, see [`super::Backend`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ntt {}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::Coeff {}
    impl Sealed for super::Ntt {}
}

/// [`Coeff`] or [`Ntt`].
pub trait Domain: sealed::Sealed + Send + Sync + 'static {
    /// `coefficient` or `NTT`.
    const NAME: &'static str;
}

impl Domain for Coeff {
    const NAME: &'static str = "coefficient";
}

impl Domain for Ntt {
    const NAME: &'static str = "NTT";
}

/// A batch of polynomials `[polys][limbs][N]` in `Z_q[X]/(X^N + 1)`, `q` the product of the first `limbs` moduli of its ring,
/// on the device of an [`Engine`].
///
/// It is immutable and cheap to clone. Operations run on whole batches, give new ones, and need operands on the same device,
/// in the same ring and of the same shape; anything else is [`EngineError::Shape`]. What belongs to the other domain does not
/// compile:
///
/// ```compile_fail,E0308
/// use heliostat::engine::{Coeff, EngineError, Ntt, Poly};
/// fn mixed(a: &Poly<Coeff>, b: &Poly<Ntt>) -> Result<Poly<Coeff>, EngineError> { a.add(b) }
/// ```
/// ```compile_fail,E0599
/// use heliostat::engine::{Coeff, EngineError, Poly};
/// fn product(a: &Poly<Coeff>) -> Result<Poly<Coeff>, EngineError> { a.mul(a) }
/// ```
/// ```compile_fail,E0599
/// use heliostat::engine::{EngineError, Ntt, Poly};
/// fn switched(a: &Poly<Ntt>) -> Result<Poly<Ntt>, EngineError> { a.mod_switch(1) }
/// ```
pub struct Poly<D> {
    engine: Engine,
    ring: Arc<RnsRing>,
    shape: Shape,
    buffer: Buffer,
    domain: PhantomData<fn() -> D>,
}

impl<D> Clone for Poly<D> {
    fn clone(&self) -> Self {
        let Self { engine, ring, shape, buffer, .. } = self;
        Self {
            engine: engine.clone(),
            ring: Arc::clone(ring),
            shape: *shape,
            buffer: buffer.clone(),
            domain: PhantomData,
        }
    }
}

impl<D: Domain> fmt::Debug for Poly<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shape { polys, limbs } = self.shape;
        write!(f, "Poly([{polys}][{limbs}][{}], {} domain)", self.ring.n(), D::NAME)
    }
}

impl<D: Domain> Poly<D> {
    /// Copies residues `[polys][limbs][N]` to the device; row `[_][i]` is modulo `ring.moduli()[i]`.
    ///
    /// # Errors
    /// [`EngineError::Shape`] when the length is no multiple of `limbs * N`, `limbs` is not from 1 to the ring's, or a residue
    /// is not below its modulus; whatever the device reports.
    pub fn upload(engine: &Engine, ring: &Arc<RnsRing>, limbs: usize, residues: &[u32]) -> Result<Self> {
        let shape = shape_of("upload", ring, limbs, residues.len())?;
        let canonical = |(row, words): (usize, &[u32])| {
            let p = ring.moduli()[row % limbs].value();
            words.iter().all(|&word| word < p)
        };
        require("upload", residues.chunks(ring.n()).enumerate().all(canonical), || {
            "every residue must be below its limb's modulus".into()
        })?;
        let buffer = engine.backend().upload(residues)?;
        Ok(Self::new(engine, ring, shape, buffer))
    }

    /// Takes a buffer of the engine's backend for residues `[polys][limbs][N]` of this domain. The caller vouches for domain and
    /// range.
    ///
    /// # Errors
    /// [`EngineError::Shape`] when the length is no multiple of `limbs * N`, or `limbs` is not from 1 to the ring's.
    pub fn from_buffer(engine: &Engine, ring: &Arc<RnsRing>, limbs: usize, buffer: Buffer) -> Result<Self> {
        let shape = shape_of("from_buffer", ring, limbs, buffer.words())?;
        Ok(Self::new(engine, ring, shape, buffer))
    }

    /// Copies the residues back, `[polys][limbs][N]`.
    pub fn download(&self) -> Result<Vec<u32>> {
        self.engine.backend().download(&self.buffer)
    }

    /// The engine whose device holds it.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// The ring.
    pub fn ring(&self) -> &Arc<RnsRing> {
        &self.ring
    }

    /// Numbers of polynomials and of limbs.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The untyped buffer, for operations of [`super::Backend`] that have no method here.
    pub fn buffer(&self) -> &Buffer {
        &self.buffer
    }

    /// Residue-wise sum.
    pub fn add(&self, other: &Self) -> Result<Self> {
        self.fits("add", other)?;
        self.with(self.engine.backend().add(&self.ring, &self.buffer, &other.buffer, self.shape)?)
    }

    /// Residue-wise difference `self - other`.
    pub fn sub(&self, other: &Self) -> Result<Self> {
        self.fits("sub", other)?;
        self.with(self.engine.backend().sub(&self.ring, &self.buffer, &other.buffer, self.shape)?)
    }

    /// Product with an integer.
    pub fn scale(&self, factor: i64) -> Result<Self> {
        let factors: Vec<u32> = self.moduli().iter().map(|p| p.from_i64(factor)).collect();
        self.scale_limbs(&factors)
    }

    /// Product of limb `i` with `factors[i]`, each below its modulus: an integer modulo `q` by its residues.
    pub fn scale_limbs(&self, factors: &[u32]) -> Result<Self> {
        self.with(self.engine.backend().mul_scalar(&self.ring, &self.buffer, self.shape, factors)?)
    }

    /// The polynomials with the given indices, in that order; an index may come twice.
    pub fn select(&self, indices: &[usize]) -> Result<Self> {
        let items: Vec<_> = indices.iter().map(|&index| Some((0, index))).collect();
        let item_words = self.shape.limbs * self.ring.n();
        let buffer = self.engine.backend().gather(&[&self.buffer], item_words, &items)?;
        let shape = Shape { polys: indices.len(), ..self.shape };
        Ok(Self::new(&self.engine, &self.ring, shape, buffer))
    }

    fn new(engine: &Engine, ring: &Arc<RnsRing>, shape: Shape, buffer: Buffer) -> Self {
        Self { engine: engine.clone(), ring: Arc::clone(ring), shape, buffer, domain: PhantomData }
    }

    /// A result of the same shape.
    fn with<T>(&self, buffer: Buffer) -> Result<Poly<T>>
    where
        T: Domain,
    {
        Ok(Poly::new(&self.engine, &self.ring, self.shape, buffer))
    }

    fn moduli(&self) -> &[Modulus] {
        &self.ring.moduli()[..self.shape.limbs]
    }

    /// Fails unless `other` can be an operand of `operation` beside `self`.
    fn fits(&self, operation: &'static str, other: &Self) -> Result<()> {
        require(operation, self.engine.same_device(&other.engine), || {
            "the polynomials are on different devices; download and upload one of them".into()
        })?;
        let same = Arc::ptr_eq(&self.ring, &other.ring)
            || (self.ring.n(), self.ring.moduli()) == (other.ring.n(), other.ring.moduli());
        require(operation, same, || {
            format!("the polynomials are of different rings, N = {} and N = {}", self.ring.n(), other.ring.n())
        })?;
        require(operation, self.shape == other.shape, || {
            format!("the batches have different shapes, {:?} and {:?}", self.shape, other.shape)
        })
    }
}

impl Poly<Coeff> {
    /// Polynomials with small integer coefficients, `values` being `[polys][N]`, modulo the first `limbs` moduli.
    ///
    /// # Errors
    /// [`EngineError::Shape`] when the length is no multiple of N, or `limbs` is not from 1 to the ring's; whatever the device
    /// reports.
    pub fn from_signed(engine: &Engine, ring: &Arc<RnsRing>, limbs: usize, values: &[i64]) -> Result<Self> {
        let n = ring.n();
        require("from_signed", values.len().is_multiple_of(n), || {
            format!("{} coefficients are not polynomials of {n}", values.len())
        })?;
        let every: Vec<u32> = (0..n as u32).collect();
        let buffer = engine.backend().expand(ring, limbs, values, &every)?;
        Ok(Self::new(engine, ring, Shape { polys: values.len() / n, limbs }, buffer))
    }

    /// To the NTT domain.
    pub fn forward(&self) -> Result<Poly<Ntt>> {
        self.with(self.engine.backend().ntt_forward(&self.ring, &self.buffer, self.shape)?)
    }

    /// `f(X) -> f(X^element)`, `element` odd below 2N.
    pub fn automorphism(&self, element: usize) -> Result<Self> {
        self.with(self.engine.backend().automorphism(&self.ring, &self.buffer, self.shape, element)?)
    }

    /// Divides by the moduli from number `limbs` on, last one first, rounding to the nearest integer each time:
    /// [`super::Backend::mod_switch`].
    pub fn mod_switch(&self, limbs: usize) -> Result<Self> {
        let buffer = self.engine.backend().mod_switch(&self.ring, &self.buffer, self.shape, limbs)?;
        Ok(Self::new(&self.engine, &self.ring, Shape { limbs, ..self.shape }, buffer))
    }

    /// Copies the coefficients back as integers in `(-q/2, q/2)`, `[polys][N]`. For examples and checks: one long integer a
    /// coefficient.
    pub fn to_integers(&self) -> Result<Vec<BigInt>> {
        let (n, words) = (self.ring.n(), self.download()?);
        let basis = IntegerBasis::new(self.moduli());
        let poly = self.shape.limbs * n;
        let coefficients = words.chunks(poly).flat_map(|poly| (0..n).map(|i| poly.iter().skip(i).step_by(n).copied()));
        Ok(coefficients.map(|residues| basis.lift(residues)).collect())
    }
}

impl Poly<Ntt> {
    /// To the coefficient domain.
    pub fn inverse(&self) -> Result<Poly<Coeff>> {
        self.with(self.engine.backend().ntt_inverse(&self.ring, &self.buffer, self.shape)?)
    }

    /// Products in the ring, polynomial by polynomial.
    pub fn mul(&self, other: &Self) -> Result<Self> {
        self.fits("mul", other)?;
        self.with(self.engine.backend().mul(&self.ring, &self.buffer, &other.buffer, self.shape)?)
    }

    /// `self + a b`, polynomial by polynomial.
    pub fn mul_add(&self, a: &Self, b: &Self) -> Result<Self> {
        self.fits("mul_accumulate", a)?;
        self.fits("mul_accumulate", b)?;
        let backend = self.engine.backend();
        self.with(backend.mul_accumulate(&self.ring, &self.buffer, &a.buffer, &b.buffer, self.shape)?)
    }

    /// `f(X) -> f(X^element)`, `element` odd below 2N.
    pub fn automorphism(&self, element: usize) -> Result<Self> {
        self.with(self.engine.backend().automorphism_ntt(&self.ring, &self.buffer, self.shape, element)?)
    }
}

/// Integers from their residues: `x = sum_i [r_i (q/p_i)^-1]_(p_i) (q/p_i) mod q`.
struct IntegerBasis {
    q: BigUint,
    /// `p_i`, `q / p_i` and its inverse modulo `p_i`.
    limbs: Vec<(Modulus, BigUint, u32)>,
}

impl IntegerBasis {
    fn new(moduli: &[Modulus]) -> Self {
        let q: BigUint = moduli.iter().map(|p| BigUint::from(p.value())).product();
        let inverses = crate::arith::crt::CrtBasis::new(moduli);
        let limb = |(&p, &inverse): (&Modulus, &u32)| (p, &q / p.value(), inverse);
        let limbs = moduli.iter().zip(inverses.cofactor_inverse()).map(limb).collect();
        Self { limbs, q }
    }

    fn lift(&self, residues: impl Iterator<Item = u32>) -> BigInt {
        let terms = self.limbs.iter().zip(residues).map(|((p, rest, inverse), r)| rest * p.mul(r, *inverse));
        let x = terms.sum::<BigUint>() % &self.q;
        if &x * 2u32 > self.q { -BigInt::from_biguint(Sign::Plus, &self.q - x) } else { x.into() }
    }
}

fn shape_of(operation: &'static str, ring: &RnsRing, limbs: usize, words: usize) -> Result<Shape> {
    let most = ring.moduli().len();
    require(operation, (1..=most).contains(&limbs), || format!("{limbs} limbs asked for, the ring has 1 to {most}"))?;
    let poly = limbs * ring.n();
    require(operation, words.is_multiple_of(poly), || {
        format!("{words} words are not polynomials of {limbs} limbs at N = {}", ring.n())
    })?;
    Ok(Shape { polys: words / poly, limbs })
}

fn require(operation: &'static str, holds: bool, detail: impl FnOnce() -> String) -> Result<()> {
    if holds { Ok(()) } else { Err(EngineError::Shape { operation, detail: detail() }) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const N: usize = 16;

    fn ring(engine: &Engine) -> Arc<RnsRing> {
        engine.ring(N, 30, 3).unwrap()
    }

    fn integers(values: &[i64]) -> Vec<BigInt> {
        values.iter().map(|&value| value.into()).collect()
    }

    /// `a b` modulo `X^N + 1`.
    fn negacyclic(a: &[i64], b: &[i64]) -> Vec<i64> {
        let mut out = vec![0; N];
        for (i, a) in a.iter().enumerate() {
            for (j, b) in b.iter().enumerate() {
                out[(i + j) % N] += if i + j < N { a * b } else { -a * b };
            }
        }
        out
    }

    proptest! {
        #[test]
        fn it_is_the_ring_of_integer_polynomials(
            a in prop::collection::vec(-1i64 << 28..1 << 28, 2 * N),
            b in prop::collection::vec(-1i64 << 28..1 << 28, 2 * N),
            factor in -1000i64..1000,
            half in 0usize..N,
        ) {
            let engine = Engine::cpu();
            let ring = ring(&engine);
            let poly = |values: &[i64]| Poly::from_signed(&engine, &ring, 3, values).unwrap();
            let zip = |f: &dyn Fn(i64, i64) -> i64| a.iter().zip(&b).map(|(&a, &b)| f(a, b)).collect::<Vec<_>>();
            let (pa, pb) = (poly(&a), poly(&b));
            prop_assert_eq!(pa.to_integers().unwrap(), integers(&a));
            prop_assert_eq!(pa.add(&pb).unwrap().to_integers().unwrap(), integers(&zip(&|a, b| a + b)));
            prop_assert_eq!(pa.sub(&pb).unwrap().to_integers().unwrap(), integers(&zip(&|a, b| a - b)));
            prop_assert_eq!(pa.scale(factor).unwrap().to_integers().unwrap(), integers(&zip(&|a, _| a * factor)));
            let products = [negacyclic(&a[..N], &b[..N]), negacyclic(&a[N..], &b[N..])].concat();
            let (na, nb) = (pa.forward().unwrap(), pb.forward().unwrap());
            prop_assert_eq!(na.mul(&nb).unwrap().inverse().unwrap().to_integers().unwrap(), integers(&products));
            let sums: Vec<i64> = products.iter().zip(&a).map(|(p, a)| p + a).collect();
            prop_assert_eq!(na.mul_add(&na, &nb).unwrap().inverse().unwrap().to_integers().unwrap(), integers(&sums));
            // Both domains have the same automorphisms.
            let element = 2 * half + 1;
            let rotated = pa.automorphism(element).unwrap();
            prop_assert_eq!(&rotated.to_integers().unwrap()[N], &BigInt::from(a[N]));
            let other = na.automorphism(element).unwrap().inverse().unwrap();
            prop_assert_eq!(rotated.download().unwrap(), other.download().unwrap());
        }
    }

    #[test]
    fn integers_are_centred_and_switched_down_by_rounding() {
        let engine = Engine::cpu();
        let ring = ring(&engine);
        let q: BigInt = ring.moduli().iter().map(|p| BigInt::from(p.value())).product();
        let half: BigInt = (&q - 1) / 2;
        // (q-1)/2 and -(q-1)/2, the ends of the range.
        let residues =
            |x: &BigInt| ring.moduli().iter().map(|p| (x % p.value() + p.value()) % p.value()).collect::<Vec<_>>();
        let mut words = vec![0; 3 * N];
        for (i, x) in [half.clone(), -half.clone()].iter().enumerate() {
            residues(x).into_iter().enumerate().for_each(|(limb, r)| words[limb * N + i] = r.try_into().unwrap());
        }
        let poly = Poly::<Coeff>::upload(&engine, &ring, 3, &words).unwrap();
        let lifted = poly.to_integers().unwrap();
        assert_eq!(lifted[..3], [half.clone(), -half, 0.into()]);
        let p = ring.moduli()[2].value();
        let switched = poly.mod_switch(2).unwrap();
        assert_eq!(switched.shape(), Shape { polys: 1, limbs: 2 });
        for (x, y) in lifted.iter().zip(switched.to_integers().unwrap()) {
            let rest: BigInt = x - y * p;
            assert!(&rest * 2 < p.into() && rest * 2 > -BigInt::from(p));
        }
    }

    #[test]
    fn selection_copies_polynomials() {
        let engine = Engine::cpu();
        let ring = ring(&engine);
        let values: Vec<i64> = (0..3 * N as i64).collect();
        let poly = Poly::from_signed(&engine, &ring, 2, &values).unwrap();
        let picked = poly.select(&[2, 0, 2]).unwrap();
        let expected = [&values[2 * N..], &values[..N], &values[2 * N..]].concat();
        assert_eq!(picked.to_integers().unwrap(), integers(&expected));
        assert!(poly.select(&[3]).is_err());
        assert_eq!(format!("{poly:?}"), "Poly([3][2][16], coefficient domain)");
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let (engine, other) = (Engine::cpu(), Engine::cpu());
        let ring = ring(&engine);
        let poly = |engine: &Engine, ring: &Arc<RnsRing>, limbs, polys| {
            Poly::from_signed(engine, ring, limbs, &vec![1; polys * ring.n()]).unwrap()
        };
        let a = poly(&engine, &ring, 2, 2);
        let narrow = engine.ring(N, 20, 3).unwrap();
        for (b, word) in [
            (poly(&other, &ring, 2, 2), "device"),
            (poly(&engine, &narrow, 2, 2), "rings"),
            (poly(&engine, &engine.ring(2 * N, 30, 3).unwrap(), 2, 1), "rings"),
            (poly(&engine, &ring, 3, 2), "shapes"),
            (poly(&engine, &ring, 2, 1), "shapes"),
        ] {
            for result in [a.add(&b), a.sub(&b)] {
                let error = result.unwrap_err();
                assert!(matches!(error, EngineError::Shape { .. }) && error.to_string().contains(word), "{error}");
            }
        }
        // An equal ring made twice is the same ring.
        assert!(a.add(&poly(&engine, &engine.ring(N, 30, 3).unwrap(), 2, 2)).is_ok());
        let p = ring.moduli()[0].value();
        for (limbs, words) in [(1, vec![p; N]), (1, vec![0; N + 1]), (0, vec![]), (4, vec![0; 4 * N])] {
            assert!(Poly::<Ntt>::upload(&engine, &ring, limbs, &words).is_err(), "{limbs} {}", words.len());
        }
        assert!(Poly::<Coeff>::from_signed(&engine, &ring, 1, &[0; 3]).is_err());
        assert!(Poly::<Coeff>::from_signed(&engine, &ring, 4, &[0; N]).is_err());
        assert!(a.mod_switch(3).is_err() && a.automorphism(2).is_err() && a.scale_limbs(&[1]).is_err());
    }
}
