//! The NTT behind the CPU backend: our own and two libraries, interchangeable word for word.
//!
//! Of the libraries only the transforms are used: some of their pointwise routines are wrong for some primes.

use std::sync::Arc;

use rayon::prelude::*;

use super::{lane_residue::scale_row, plain_ntt::Twiddles};
use crate::{arith::Modulus, engine::RnsRing};

/// Who computes the NTTs of a [`super::CpuBackend`]. All give the same words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NttLibrary {
    /// Our own, on the vectors of the machine. Needs neither a copy nor a pass for `1/N`; its speed beside
    /// the libraries' is in `kernels-bench/RESULTS.md`.
    Plain,
    /// `concrete-ntt`: AVX2 where present.
    Concrete,
    /// `tfhe-ntt`: AVX-512 where present.
    #[cfg(feature = "tfhe-ntt")]
    Tfhe,
}

impl NttLibrary {
    /// Every choice that this build has.
    pub const ALL: &[Self] = &[
        Self::Plain,
        Self::Concrete,
        #[cfg(feature = "tfhe-ntt")]
        Self::Tfhe,
    ];

    /// Name for reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Concrete => "concrete-ntt",
            #[cfg(feature = "tfhe-ntt")]
            Self::Tfhe => "tfhe-ntt",
        }
    }
}

impl Default for NttLibrary {
    /// Our own; the libraries are its oracles.
    fn default() -> Self {
        Self::Plain
    }
}

/// The NTT of one limb, in place on `N` canonical residues, in the order and domain that [`crate::engine::Backend`] fixes.
pub(super) trait CpuNtt: Send + Sync {
    /// Coefficient to NTT domain.
    fn forward(&self, x: &mut [u32]);

    /// NTT to coefficient domain, `1/N` included.
    fn inverse(&self, x: &mut [u32]);

    /// [`Self::forward`] of `x` into `out`.
    fn forward_from(&self, x: &[u32], out: &mut [u32]) {
        out.copy_from_slice(x);
        self.forward(out);
    }

    /// [`Self::inverse`] of `x` into `out`.
    fn inverse_from(&self, x: &[u32], out: &mut [u32]) {
        out.copy_from_slice(x);
        self.inverse(out);
    }

    /// Our own tables, where it is our own transform.
    fn plain(&self) -> Option<&Twiddles> {
        None
    }
}

impl CpuNtt for Twiddles {
    fn forward(&self, x: &mut [u32]) {
        Twiddles::forward(self, x);
    }

    fn inverse(&self, x: &mut [u32]) {
        Twiddles::inverse(self, x);
    }

    fn forward_from(&self, x: &[u32], out: &mut [u32]) {
        Twiddles::forward_from(self, x, out);
    }

    fn inverse_from(&self, x: &[u32], out: &mut [u32]) {
        Twiddles::inverse_from(self, x, out);
    }

    fn plain(&self) -> Option<&Twiddles> {
        Some(self)
    }
}

/// The transforms of every limb of `ring`.
pub(super) fn plans(library: NttLibrary, ring: &Arc<RnsRing>) -> Vec<Box<dyn CpuNtt>> {
    (0..ring.moduli().len()).into_par_iter().map(|limb| plan(library, ring, limb)).collect()
}

/// The library's transform if it has one for this limb that agrees with ours, else ours.
fn plan(library: NttLibrary, ring: &Arc<RnsRing>, limb: usize) -> Box<dyn CpuNtt> {
    let plain = Twiddles::new(ring, limb);
    let (n, p) = (ring.n(), plain.modulus.value());
    let candidate: Option<Box<dyn CpuNtt>> = match library {
        NttLibrary::Plain => None,
        NttLibrary::Concrete => concrete_ntt::prime32::Plan::try_new(n, p)
            .map(|plan| Box::new(Concrete { plan, n_inv: NInverse::of(&plain) }) as _),
        #[cfg(feature = "tfhe-ntt")]
        NttLibrary::Tfhe => {
            tfhe_ntt::prime32::Plan::try_new(n, p).map(|plan| Box::new(Tfhe { plan, n_inv: NInverse::of(&plain) }) as _)
        }
    };
    match candidate {
        Some(candidate) if agree(&plain, candidate.as_ref(), n) => candidate,
        _ => Box::new(plain),
    }
}

/// Whether the transform of `X` is the same, that is, whether all evaluation points are, and whether the inverse undoes it.
fn agree(plain: &Twiddles, other: &dyn CpuNtt, n: usize) -> bool {
    let mut x = vec![0; n];
    x[1] = 1;
    let (mut ours, mut theirs) = (x.clone(), x.clone());
    plain.forward(&mut ours);
    other.forward(&mut theirs);
    let same = ours == theirs;
    other.inverse(&mut theirs);
    same && theirs == x
}

/// `1/N`: the libraries' inverse leaves the factor N in.
struct NInverse {
    modulus: Modulus,
    value: u32,
}

impl NInverse {
    fn of(tables: &Twiddles) -> Self {
        Self { modulus: tables.modulus, value: tables.n_inv }
    }

    fn apply(&self, x: &mut [u32]) {
        scale_row(self.modulus, self.value, x);
    }
}

struct Concrete {
    plan: concrete_ntt::prime32::Plan,
    n_inv: NInverse,
}

impl CpuNtt for Concrete {
    fn forward(&self, x: &mut [u32]) {
        self.plan.fwd(x);
    }

    fn inverse(&self, x: &mut [u32]) {
        self.plan.inv(x);
        self.n_inv.apply(x);
    }
}

#[cfg(feature = "tfhe-ntt")]
struct Tfhe {
    plan: tfhe_ntt::prime32::Plan,
    n_inv: NInverse,
}

#[cfg(feature = "tfhe-ntt")]
impl CpuNtt for Tfhe {
    fn forward(&self, x: &mut [u32]) {
        self.plan.fwd(x);
    }

    fn inverse(&self, x: &mut [u32]) {
        self.plan.inv(x);
        self.n_inv.apply(x);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arith::primes::ntt_primes;

    /// Every prime of the named parameter sets, and what small tests use.
    const RINGS: [(u32, usize, usize); 8] = [
        (27, 4096, 4),
        (30, 8192, 7),
        (30, 16384, 14),
        (30, 32768, 29),
        (30, 32, 4),
        (27, 64, 4),
        (20, 1024, 2),
        (30, 65536, 2),
    ];

    #[test]
    fn libraries_agree_with_ours_on_every_prime_of_the_parameter_sets() {
        for (bits, n, count) in RINGS {
            let ring = Arc::new(RnsRing::new(n, &ntt_primes(bits, n, count).unwrap()).unwrap());
            for limb in 0..count {
                let ours = Twiddles::new(&ring, limb);
                let p = ours.modulus.value();
                let n_inv = || NInverse::of(&ours);
                let libraries: Vec<(&str, Box<dyn CpuNtt>)> = vec![
                    (
                        "concrete",
                        Box::new(Concrete {
                            plan: concrete_ntt::prime32::Plan::try_new(n, p).unwrap(),
                            n_inv: n_inv(),
                        }),
                    ),
                    #[cfg(feature = "tfhe-ntt")]
                    ("tfhe", Box::new(Tfhe { plan: tfhe_ntt::prime32::Plan::try_new(n, p).unwrap(), n_inv: n_inv() })),
                ];
                let mixed: Vec<u32> = (0..n as u64).map(|i| ours.modulus.reduce((i + 1) * 0x9e37_79b9_7f4a)).collect();
                for (name, library) in libraries {
                    assert!(agree(&ours, library.as_ref(), n), "{name}: another root at N = {n}, p = {p}");
                    for f in [mixed.clone(), vec![p - 1; n]] {
                        let (mut a, mut b) = (f.clone(), f.clone());
                        ours.forward(&mut a);
                        library.forward(&mut b);
                        assert!(a == b, "{name}: forward, N = {n}, p = {p}");
                        // The inverse of an arbitrary vector, not only of a transform.
                        let (mut a, mut b) = (f.clone(), f);
                        ours.inverse(&mut a);
                        library.inverse(&mut b);
                        assert!(a == b, "{name}: inverse, N = {n}, p = {p}");
                    }
                }
            }
        }
    }

    #[test]
    fn dimensions_that_the_libraries_lack_fall_back() {
        let ring = Arc::new(RnsRing::new(8, &ntt_primes(30, 8, 1).unwrap()).unwrap());
        for &library in NttLibrary::ALL {
            let mut x = vec![0, 1, 0, 0, 0, 0, 0, 0];
            plans(library, &ring)[0].forward(&mut x);
            assert_eq!(x[0], ring.psi()[0]);
        }
    }
}
